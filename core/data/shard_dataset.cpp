// WebDataset shards: tar archives whose neighbouring members "KEY.jpg", "KEY.txt", "KEY.cls" are one sample.
// Source: webdataset, tariterators.py (the rule for keys).
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/data/dataset_kinds.h"
#include "core/io/tar.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxClass = 1 << 20;
constexpr size_t kMaxShards = 1'000'000;

struct Member {
  std::string_view key;   // up to the first dot of the file's name, folders included
  std::string extension;  // the rest, small letters
};

// An empty extension: no part of a sample, as the names of webdataset's own notes (__NAME__) and those that
// begin with a dot (what macOS puts beside a file).
Member split_name(std::string_view name) {
  const size_t slash = name.rfind('/'), base = slash == std::string_view::npos ? 0 : slash + 1;
  const size_t dot = name.find('.', base);
  const std::string_view file = name.substr(base);
  const bool note =
      file.size() > 4 && file.starts_with("__") && file.substr(2).find("__") != std::string_view::npos;
  if (dot == std::string_view::npos || dot == base || note) return {};
  std::string extension(name.substr(dot + 1));
  for (char& c : extension) c = char(std::tolower(static_cast<unsigned char>(c)));
  return {name.substr(0, dot), std::move(extension)};
}

bool is_image_extension(const std::string& extension) {
  return has_image_name("." + extension) && extension.find('.') == std::string::npos;
}

// Whether an archive is one: a caption or a class stands beside an image of its name.
bool is_shard(const TarArchive& archive) {
  std::string_view key;
  bool image = false, other = false;
  for (const TarEntry& entry : archive.entries()) {
    const Member member = split_name(entry.name);
    if (member.extension.empty()) continue;
    if (member.key != key) key = member.key, image = other = false;
    image = image || is_image_extension(member.extension);
    other = other || member.extension == "txt" || member.extension == "cls";
    if (image && other) return true;
  }
  return false;
}

struct Item {
  size_t shard, image;
  int64_t caption;  // entry of the caption, -1 = none
  int64_t label;
};

class ShardDataset : public ImageDataset {
 public:
  ShardDataset(std::string where, std::vector<std::pair<fs::path, std::shared_ptr<const TarArchive>>> shards)
      : where_(std::move(where)), shards_(std::move(shards)) {
    int64_t without_image = 0, classes = 0;
    int64_t unlabelled = 0;
    for (size_t s = 0; s < shards_.size(); ++s) {
      const auto& entries = shards_[s].second->entries();
      for (size_t begin = 0; begin < entries.size();) {
        const Member first = split_name(entries[begin].name);
        if (first.extension.empty()) {
          ++begin;
          continue;
        }
        size_t end = begin;
        int64_t image = -1, caption = -1, label = -1;
        std::vector<std::string> kinds;  // of its images
        for (; end < entries.size(); ++end) {
          const Member member = split_name(entries[end].name);
          if (member.extension.empty()) continue;
          if (member.key != first.key) break;
          const bool is_image = is_image_extension(member.extension);
          if ((is_image && std::find(kinds.begin(), kinds.end(), member.extension) != kinds.end()) ||
              (member.extension == "txt" && caption >= 0) || (member.extension == "cls" && label >= 0))
            throw InputError(cat(shards_[s].first.string(), ": holds ", printable(entries[end].name),
                                 " although its sample has one of these already"));
          if (is_image) kinds.push_back(member.extension);
          if (is_image && image < 0) image = int64_t(end);  // of several kinds the first
          if (member.extension == "txt") caption = int64_t(end);
          if (member.extension == "cls") label = read_label(s, end);
        }
        begin = end;
        if (image < 0) {
          ++without_image;
          continue;
        }
        has_captions_ = has_captions_ || caption >= 0;
        unlabelled += label < 0;
        classes = std::max(classes, label + 1);
        items_.push_back({s, size_t(image), caption, label});
      }
    }
    if (items_.empty()) throw InputError(cat(where_, ": holds no images"));
    if (without_image > 0)
      warning(cat(where_, ": ", without_image, " samples have no image and are left out"));
    if (unlabelled > 0 && classes > 0)
      warning(cat(where_, ": ", unlabelled, " of ", items_.size(),
                  " samples have no class (.cls), so all of them count as one class"));
    if (unlabelled == 0)
      for (int64_t c = 0; c < classes; ++c) classes_.push_back(std::to_string(c));
    else
      classes_ = {"all"};
    if (unlabelled > 0)
      for (Item& item : items_) item.label = 0;
  }

  int64_t size() const override { return int64_t(items_.size()); }
  int64_t label(int64_t i) const override { return items_.at(size_t(i)).label; }
  bool has_captions() const override { return has_captions_; }
  Image image(int64_t i) const override {
    const Item& item = items_.at(size_t(i));
    return decode_image(bytes(item.shard, item.image), item_name(i));
  }
  std::string caption(int64_t i) const override {
    const Item& item = items_.at(size_t(i));
    if (item.caption < 0) throw InputError(cat(item_name(i), ": has no caption (.txt) beside it"));
    const auto found = bytes(item.shard, size_t(item.caption));
    std::string text(reinterpret_cast<const char*>(found.data()), found.size());
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' '))
      text.pop_back();
    if (text.empty()) throw InputError(cat(item_name(i), ": its caption is empty"));
    if (!is_utf8(text)) throw InputError(cat(item_name(i), ": its caption is not valid UTF-8"));
    return text;
  }
  std::string item_name(int64_t i) const override {
    const Item& item = items_.at(size_t(i));
    return cat(shards_[item.shard].first.string(), ": ",
               shards_[item.shard].second->entries()[item.image].name);
  }
  const std::vector<std::string>& class_names() const override { return classes_; }
  std::string describe() const override {
    return cat(where_, ": ", size(), has_captions_ ? " captioned" : "", " images in ", shards_.size(),
               shards_.size() == 1 ? " shard" : " shards",
               classes_.size() > 1 ? cat(", ", classes_.size(), " classes") : "");
  }

 private:
  std::span<const std::byte> bytes(size_t shard, size_t entry) const {
    const TarArchive& archive = *shards_[shard].second;
    return archive.bytes(archive.entries()[entry]);
  }
  int64_t read_label(size_t shard, size_t entry) const {
    const auto found = bytes(shard, entry);
    std::string_view text(reinterpret_cast<const char*>(found.data()), found.size());
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' '))
      text.remove_suffix(1);
    int64_t label = -1;
    const auto [last, code] = std::from_chars(text.data(), text.data() + text.size(), label);
    if (code != std::errc() || last != text.data() + text.size() || label < 0 || label >= kMaxClass)
      throw InputError(cat(shards_[shard].first.string(), ": ",
                           printable(shards_[shard].second->entries()[entry].name),
                           " must hold a class of 0 to ", kMaxClass - 1, ", not \"", printable(text), "\""));
    return label;
  }

  std::string where_;
  std::vector<std::pair<fs::path, std::shared_ptr<const TarArchive>>> shards_;
  std::vector<Item> items_;
  bool has_captions_ = false;
  std::vector<std::string> classes_;
};

// "x-{000..012}.tar" -> its thirteen files; empty where there is no such range.
std::vector<fs::path> expand_range(const std::string& text) {
  const size_t open = text.find('{'), dots = text.find("..", open), close = text.find('}', open);
  if (open == std::string::npos || close == std::string::npos || dots == std::string::npos || dots > close)
    return {};
  const std::string from = text.substr(open + 1, dots - open - 1),
                    to = text.substr(dots + 2, close - dots - 2);
  const auto digits = [](const std::string& s) {
    return !s.empty() && s.size() < 10 && s.find_first_not_of("0123456789") == std::string::npos;
  };
  if (!digits(from) || !digits(to)) return {};
  const int64_t first = std::stoll(from), last = std::stoll(to);
  if (last < first || size_t(last - first) >= kMaxShards)
    throw InputError(
        cat(text, ": the range {", from, "..", to, "} is empty or over ", kMaxShards, " shards"));
  std::vector<fs::path> out;
  for (int64_t i = first; i <= last; ++i) {
    char number[16];
    std::snprintf(number, sizeof number, "%0*lld", int(from.size()), static_cast<long long>(i));
    out.emplace_back(text.substr(0, open) + number + text.substr(close + 1));
  }
  return out;
}

// A folder of archives and of what their maker noted about them, without images of its own.
std::vector<fs::path> shards_of_folder(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code ignored;  // a folder that cannot be read is named by those who read it as a tree
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with('.')) continue;
    if (entry.is_directory() || has_image_name(name)) return {};
    if (TarArchive::has_tar_name(entry.path())) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

namespace {

std::unique_ptr<ImageDataset> open_shards(
    const fs::path& path, std::vector<std::pair<fs::path, std::shared_ptr<const TarArchive>>> shards,
    const std::string& split) {
  if (!split.empty())
    throw InputError(cat(path.string(), ": has no split \"", split, "\": give the shards of one split"));
  return std::make_unique<ShardDataset>(path.string(), std::move(shards));
}

}  // namespace

std::unique_ptr<ImageDataset> try_open_shard(const fs::path& path, std::shared_ptr<const TarArchive> archive,
                                             const std::string& split) {
  if (!is_shard(*archive)) return nullptr;
  return open_shards(path, {{path, std::move(archive)}}, split);
}

std::unique_ptr<ImageDataset> try_open_shards(const fs::path& path, const std::string& split) {
  std::error_code ignored;
  const bool exists = fs::exists(path, ignored);
  const std::vector<fs::path> files = !exists                           ? expand_range(path.string())
                                      : fs::is_directory(path, ignored) ? shards_of_folder(path)
                                                                        : std::vector<fs::path>();
  std::vector<std::pair<fs::path, std::shared_ptr<const TarArchive>>> shards;
  for (const fs::path& file : files) {
    shards.emplace_back(file, TarArchive::open(file));
    if (shards.size() > 1 || is_shard(*shards[0].second)) continue;
    if (exists) return nullptr;  // archives of another kind
    throw InputError(
        cat(file.string(), ": is no WebDataset shard: no image in it has a .txt or .cls beside it"));
  }
  if (shards.empty()) return nullptr;
  return open_shards(path, std::move(shards), split);
}

}  // namespace adanat
