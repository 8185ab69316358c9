#include <algorithm>
#include <cctype>
#include <utility>

#include "core/base/error.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/data/dataset_kinds.h"
#include "core/io/mapped_file.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 16;

bool is_hidden(std::string_view part) {
  return part.starts_with('.') || part == "__MACOSX";
}

class Folder : public FileSource {
 public:
  explicit Folder(fs::path root) : root_(std::move(root)) {
    std::error_code error;
    fs::recursive_directory_iterator walk(root_, fs::directory_options::follow_directory_symlink, error);
    // recursive_directory_iterator gives absolute or relative paths as root_ is; names are what follows
    // root_.
    const auto check = [&](const fs::path& path) {
      if (error) throw InputError(cat(path.string(), ": cannot read the folder: ", error.message()));
    };
    check(root_);
    for (; walk != fs::recursive_directory_iterator(); walk.increment(error), check(root_)) {
      check_interrupt();
      const fs::directory_entry& entry = *walk;
      std::error_code status_error;
      const bool is_folder = entry.is_directory(status_error);
      if (is_hidden(entry.path().filename().string())) {
        if (is_folder) walk.disable_recursion_pending();
        continue;
      }
      if (is_folder && (walk.depth() >= kMaxDepth || leads_back(entry, walk.depth())))
        walk.disable_recursion_pending();
      if (entry.is_regular_file(status_error))
        names_.push_back(entry.path().lexically_relative(root_).generic_string());
    }
    std::sort(names_.begin(), names_.end());
  }

  Bytes read(size_t i) const override {
    auto file = MappedFile::open(root_ / names_[i]);
    const auto bytes = file->bytes();
    return {std::move(file), bytes};
  }
  std::string display_name(size_t i) const override { return (root_ / names_[i]).string(); }
  std::string where() const override { return root_.string(); }

 private:
  // A link to a folder that the walk is in, or to one around it: its images are there already.
  static bool leads_back(const fs::directory_entry& folder, int depth) {
    std::error_code error;
    if (!folder.is_symlink(error)) return false;
    const fs::path target = fs::canonical(folder.path(), error);
    if (error) return false;
    fs::path place = folder.path();
    for (int i = 0; i <= depth; ++i) {
      place = place.parent_path();
      const fs::path here = fs::canonical(place, error);
      if (error ||
          std::mismatch(target.begin(), target.end(), here.begin(), here.end()).first != target.end())
        continue;
      warning(cat(folder.path().string(), ": is a link to a folder that it lies in; left out"));
      return true;
    }
    return false;
  }

  fs::path root_;
};

class Archive : public FileSource {
 public:
  Archive(fs::path path, std::shared_ptr<const TarArchive> archive)
      : path_(std::move(path)), archive_(std::move(archive)) {
    std::vector<std::pair<std::string, size_t>> named;
    for (size_t i = 0; i < archive_->entries().size(); ++i) {
      const std::string& name = archive_->entries()[i].name;
      if (!any_part_hidden(name)) named.emplace_back(name, i);
    }
    std::sort(named.begin(), named.end());
    for (auto& [name, index] : named) {
      // A later entry of the same name replaces the earlier one, as extracting would do.
      if (!names_.empty() && names_.back() == name) {
        entries_.back() = index;
        continue;
      }
      names_.push_back(std::move(name));
      entries_.push_back(index);
    }
  }

  Bytes read(size_t i) const override {
    return {archive_, archive_->bytes(archive_->entries()[entries_[i]])};
  }
  std::string display_name(size_t i) const override { return cat(path_.string(), ": ", names_[i]); }
  std::string where() const override { return path_.string(); }

 private:
  static bool any_part_hidden(std::string_view name) {
    while (true) {
      const size_t slash = name.find('/');
      const std::string_view part = name.substr(0, slash);
      if (is_hidden(part) && part != "..") return true;
      if (slash == std::string_view::npos) return false;
      name.remove_prefix(slash + 1);
    }
  }

  fs::path path_;
  std::shared_ptr<const TarArchive> archive_;
  std::vector<size_t> entries_;  // names_[i] is archive_->entries()[entries_[i]]
};

}  // namespace

std::shared_ptr<const FileSource> open_folder(const fs::path& folder) {
  return std::make_shared<Folder>(folder);
}
std::shared_ptr<const FileSource> open_archive(const fs::path& path,
                                               std::shared_ptr<const TarArchive> archive) {
  return std::make_shared<Archive>(path, std::move(archive));
}

std::string_view split_of_folder(std::string_view name) {
  if (name == "train" || name == "training") return "train";
  if (name == "test" || name == "testing") return "test";
  if (name == "val" || name == "valid" || name == "validation") return "val";
  return "";
}

std::string extension_of(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || name.find('/', dot) != std::string_view::npos) return "";
  std::string extension(name.substr(dot + 1));
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension;
}

bool has_image_name(std::string_view name) {
  const std::string extension = extension_of(name);
  for (const char* known : {"jpg", "jpeg", "png", "bmp", "gif", "ppm", "pgm", "pnm", "webp", "tif", "tiff"})
    if (extension == known) return true;
  return false;
}

}  // namespace adanat
