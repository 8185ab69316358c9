#include "core/data/dataset.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/data/dataset_kinds.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

// Items [begin, end) of another dataset.
class RangeDataset : public ImageDataset {
 public:
  RangeDataset(std::unique_ptr<ImageDataset> all, int64_t begin, int64_t end)
      : all_(std::move(all)), begin_(begin), end_(end) {}
  int64_t size() const override { return end_ - begin_; }
  int64_t label(int64_t i) const override { return all_->label(begin_ + i); }
  Image image(int64_t i) const override { return all_->image(begin_ + i); }
  bool has_captions() const override { return all_->has_captions(); }
  std::string caption(int64_t i) const override { return all_->caption(begin_ + i); }
  std::string item_name(int64_t i) const override { return all_->item_name(begin_ + i); }
  const std::vector<std::string>& class_names() const override { return all_->class_names(); }
  std::string describe() const override {
    return cat(all_->describe(), ", items ", begin_, ":", end_, " (", size(), " images)");
  }

 private:
  std::unique_ptr<ImageDataset> all_;
  int64_t begin_, end_;
};

std::unique_ptr<ImageDataset> open_whole(const fs::path& path, const std::string& split) {
  std::error_code error;
  const auto status = fs::status(path, error);
  if (auto dataset = try_open_shards(path, split)) return dataset;
  if (!fs::exists(status)) throw InputError(cat(path.string(), ": no such file or folder"));
  if (auto dataset = try_open_mnist(path, split)) return dataset;
  if (fs::is_directory(status)) {
    auto files = open_folder(path);
    if (auto dataset = try_open_cifar(files, split)) return dataset;
    return open_tree(std::move(files), split);
  }
  if (TarArchive::has_tar_name(path)) {
    auto archive = TarArchive::open(path);
    if (auto dataset = try_open_shard(path, archive, split)) return dataset;
    auto files = open_archive(path, std::move(archive));
    if (auto dataset = try_open_cifar(files, split)) return dataset;
    return open_tree(std::move(files), split);
  }
  if (auto dataset = try_open_cifar_file(path, split)) return dataset;
  if (auto dataset = try_open_npz(path, split)) return dataset;
  if (auto dataset = try_open_tsv(path, split)) return dataset;
  throw InputError(cat(
      path.string(),
      ": is no dataset that this program reads; give a folder or .tar(.gz) with one folder per class, MNIST "
      "idx files, CIFAR binaries, an .npz with arr_0, a .tsv of captions or WebDataset shards"));
}

}  // namespace

DatasetSpec parse_dataset_spec(const std::string& text) {
  DatasetSpec spec;
  spec.path = text;
  std::error_code ignored;
  if (fs::exists(spec.path, ignored)) return spec;
  std::string rest = text;
  const size_t at = rest.rfind('@');
  if (at != std::string::npos && rest.find('/', at) == std::string::npos) {
    const std::string range = rest.substr(at + 1);
    const size_t colon = range.find(':');
    const auto bad = [&] {
      return InputError(cat(
          text, ": the range after '@' must read begin:end, with numbers or nothing on either side, not \"",
          range, "\""));
    };
    if (colon == std::string::npos) throw bad();
    const auto parse = [&](std::string_view digits, int64_t& value) {
      if (digits.empty()) return;
      const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
      if (code != std::errc() || end != digits.data() + digits.size() || value < 0) throw bad();
    };
    parse(std::string_view(range).substr(0, colon), spec.begin);
    parse(std::string_view(range).substr(colon + 1), spec.end);
    rest.resize(at);
  }
  if (!fs::exists(rest, ignored)) {
    const size_t hash = rest.rfind('#');
    if (hash != std::string::npos && rest.find('/', hash) == std::string::npos) {
      spec.split = rest.substr(hash + 1);
      rest.resize(hash);
      if (spec.split.empty())
        throw InputError(cat(text, ": the name of a split is missing after '#' (train, test or val)"));
    }
  }
  spec.path = rest;
  return spec;
}

std::unique_ptr<ImageDataset> open_dataset(const fs::path& path, const std::string& split) {
  const DatasetSpec spec = parse_dataset_spec(path.string());
  if (!is_utf8(spec.path.string()))
    throw InputError(
        cat(one_line(spec.path.string()), ": the path is not valid UTF-8; rename the file or its folder"));
  auto dataset = open_whole(spec.path, spec.split.empty() ? split : spec.split);
  // They are stored in token files and models, and typed as --class.
  for (const std::string& name : dataset->class_names())
    if (!is_name(name))
      throw InputError(
          cat(spec.path.string(), ": the class \"", one_line(name),
              "\" has a name that is empty, not valid UTF-8 or holds control characters; rename it"));
  if (spec.begin == 0 && spec.end == -1) return dataset;
  const int64_t end = spec.end == -1 ? dataset->size() : spec.end;
  if (end > dataset->size() || spec.begin >= end)
    throw InputError(cat(path.string(), ": the range ", spec.begin, ":", end,
                         " is empty or reaches past the ", dataset->size(), " images there are"));
  return std::make_unique<RangeDataset>(std::move(dataset), spec.begin, end);
}

}  // namespace adanat
