// Folder trees, in a folder or in an archive: class = folder.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/data/dataset_kinds.h"

namespace adanat {
namespace {

std::string_view first_part(std::string_view name) {
  return name.substr(0, name.find('/'));
}
std::string_view without_first_part(std::string_view name) {
  const size_t slash = name.find('/');
  return slash == std::string_view::npos ? std::string_view() : name.substr(slash + 1);
}
int64_t depth(std::string_view name) {
  return std::count(name.begin(), name.end(), '/');
}

// A file of the source, its name shortened from the front as folders are recognised.
struct Item {
  size_t index;
  std::string_view name;
};

// Names that say of a file that it is no image: notes, tables, what systems and tools leave in a folder. Any
// other file in a class folder is one, and is reported where it cannot be read.
bool has_other_name(std::string_view name) {
  static const std::set<std::string, std::less<>> kOther = {
      "cfg",  "csv",   "db",  "doc",         "docx", "gz",     "htm", "html", "ini",  "ipynb",
      "json", "jsonl", "log", "mat",         "md",   "npy",    "npz", "pdf",  "pkl",  "pt",
      "pth",  "py",    "rst", "safetensors", "sh",   "sha256", "tar", "tex",  "toml", "tsv",
      "txt",  "url",   "xls", "xlsx",        "xml",  "yaml",   "yml", "zip"};
  return kOther.contains(extension_of(name));
}

bool is_integer(const std::string& text) {
  return !text.empty() && text.size() <= 18 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::vector<std::string> sorted_classes(const std::set<std::string>& names) {
  std::vector<std::string> sorted(names.begin(), names.end());
  if (std::all_of(sorted.begin(), sorted.end(), is_integer))
    std::stable_sort(sorted.begin(), sorted.end(), [](const std::string& a, const std::string& b) {
      return std::stoll(a) < std::stoll(b);
    });
  return sorted;
}

class TreeDataset : public ImageDataset {
 public:
  TreeDataset(std::shared_ptr<const FileSource> files, std::string split, std::vector<std::string> classes,
              std::vector<std::pair<size_t, int64_t>> items, size_t left_out)
      : files_(std::move(files)),
        split_(std::move(split)),
        classes_(std::move(classes)),
        items_(std::move(items)),
        left_out_(left_out) {}

  int64_t size() const override { return static_cast<int64_t>(items_.size()); }
  int64_t label(int64_t i) const override { return items_.at(static_cast<size_t>(i)).second; }
  Image image(int64_t i) const override {
    const size_t file = items_.at(static_cast<size_t>(i)).first;
    const FileSource::Bytes bytes = files_->read(file);
    return decode_image(bytes.bytes, files_->display_name(file));
  }
  std::string item_name(int64_t i) const override {
    return files_->display_name(items_.at(static_cast<size_t>(i)).first);
  }
  const std::vector<std::string>& class_names() const override { return classes_; }
  std::string describe() const override {
    return cat(files_->where(), split_.empty() ? "" : "#" + split_, ": ", size(), " images, ",
               classes_.size(), classes_.size() == 1 ? " class" : " classes",
               left_out_ == 0 ? "" : cat("; ", left_out_, " other files"));
  }

 private:
  std::shared_ptr<const FileSource> files_;
  std::string split_;
  std::vector<std::string> classes_;
  std::vector<std::pair<size_t, int64_t>> items_;  // index of the file, class
  size_t left_out_;                                // files that are no images of a class
};

// Folders that hold everything say nothing: "traffic-signs/train/stop/1.jpg" -> "train/stop/1.jpg". A class
// folder must be left, and train/ alone is a split and no wrapper.
void strip_common_folders(std::vector<Item>& items) {
  while (true) {
    const std::string_view top = first_part(items.front().name);
    if (!split_of_folder(top).empty()) return;
    for (const Item& item : items)
      if (depth(item.name) < 2 || first_part(item.name) != top) return;
    for (Item& item : items) item.name = without_first_part(item.name);
  }
}

// Empty if the tree is not divided into splits: files beside the split folders (a README) do not count.
std::set<std::string> splits_in(const std::vector<Item>& items) {
  std::set<std::string> splits;
  for (const Item& item : items) {
    if (depth(item.name) == 0) continue;
    const std::string_view split = split_of_folder(first_part(item.name));
    if (split.empty()) return {};
    splits.emplace(split);
  }
  return splits;
}

std::string choose_split(const std::set<std::string>& splits, const std::string& wanted,
                         const std::string& where) {
  if (wanted.empty()) return splits.contains("train") ? "train" : *splits.begin();
  if (splits.contains(wanted)) return wanted;
  if (wanted == "test" && splits.contains("val")) return "val";
  std::string known;
  for (const std::string& split : splits) known += (known.empty() ? "" : ", ") + split;
  throw InputError(cat(where, ": has no split \"", wanted, "\"; it has ", known));
}

}  // namespace

std::unique_ptr<ImageDataset> open_tree(std::shared_ptr<const FileSource> files, const std::string& split) {
  const std::string where = files->where();
  std::vector<Item> items;
  std::string_view other;  // the first of them
  for (size_t i = 0; i < files->names().size(); ++i) {
    const std::string_view name = files->names()[i];
    if (!has_other_name(name))
      items.push_back({i, name});
    else if (other.empty())
      other = name;
  }
  if (items.empty())
    throw InputError(cat(where, ": holds no ", files->names().empty() ? "files" : "images",
                         "; one folder per class with images in it was expected"));
  size_t left_out = files->names().size() - items.size();
  const auto leave_out = [&](const Item& item) {
    if (left_out++ == 0) other = files->names()[item.index];
  };
  strip_common_folders(items);

  const std::set<std::string> splits = splits_in(items);
  std::string chosen;
  if (!splits.empty()) {
    chosen = choose_split(splits, split, where);
  } else if (!split.empty()) {
    throw InputError(
        cat(where, ": has no split \"", split, "\": there are no folders train/ and test/ in it"));
  }
  // Classes come from all splits, so that an id means the same in each.
  std::set<std::string> class_set;
  std::vector<Item> of_split;
  for (Item& item : items) {
    bool is_chosen = true;
    if (!splits.empty()) {
      if (depth(item.name) == 0) {
        leave_out(item);
        continue;
      }
      is_chosen = split_of_folder(first_part(item.name)) == chosen;
      item.name = without_first_part(item.name);
    }
    if (depth(item.name) > 0) class_set.emplace(first_part(item.name));
    if (is_chosen) of_split.push_back(item);
  }

  std::vector<std::pair<size_t, int64_t>> chosen_items;
  std::vector<std::string> classes;
  if (class_set.empty()) {
    classes = {"all"};
    for (const Item& item : of_split)
      if (has_image_name(item.name))
        chosen_items.emplace_back(item.index, 0);
      else
        leave_out(item);
  } else {
    classes = sorted_classes(class_set);
    std::map<std::string_view, int64_t> ids;
    for (size_t i = 0; i < classes.size(); ++i) ids.emplace(classes[i], static_cast<int64_t>(i));
    for (const Item& item : of_split)
      if (depth(item.name) > 0)
        chosen_items.emplace_back(item.index, ids.at(first_part(item.name)));
      else
        leave_out(item);
  }
  if (chosen_items.empty())
    throw InputError(cat(where, chosen.empty() ? "" : "#" + chosen,
                         ": holds no images; one folder per class with images in it was expected"));
  if (left_out > 0)
    note(cat(where, ": ", left_out,
             left_out == 1 ? " file that is no image of a class" : " files that are no images of a class",
             " left out, for example ", printable(other)));
  return std::make_unique<TreeDataset>(std::move(files), chosen, std::move(classes), std::move(chosen_items),
                                       left_out);
}

}  // namespace adanat
