// CIFAR-10 and CIFAR-100 in their binary form: records of one label (100: coarse, fine) and 3*32*32 bytes,
// channel by channel.
#include <algorithm>
#include <string>
#include <utility>

#include "core/base/error.h"
#include "core/data/dataset_kinds.h"
#include "core/io/mapped_file.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

constexpr int kSide = 32;
constexpr size_t kPixels = size_t{kSide} * kSide;

std::string_view base_name(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? name : name.substr(slash + 1);
}

// What a file is by its name: how many label bytes (1: CIFAR-10, 2: CIFAR-100, 0: none of them) and of which
// split.
struct Kind {
  size_t label_bytes;
  std::string_view split;
};
Kind kind_of(std::string_view base) {
  if (base.starts_with("data_batch_") && base.ends_with(".bin")) return {1, "train"};
  if (base == "test_batch.bin") return {1, "test"};
  if (base == "train.bin") return {2, "train"};
  if (base == "test.bin") return {2, "test"};
  return {0, ""};
}

struct Part {
  FileSource::Bytes bytes;
  std::string name;
};

class CifarDataset : public ImageDataset {
 public:
  CifarDataset(std::string where, std::vector<Part> parts, size_t label_bytes,
               std::vector<std::string> classes)
      : where_(std::move(where)),
        parts_(std::move(parts)),
        label_bytes_(label_bytes),
        classes_(std::move(classes)) {
    const size_t count = label_bytes == 1 ? 10 : 100;
    if (classes_.size() != count) {
      classes_.clear();
      for (size_t c = 0; c < count; ++c) classes_.push_back(std::to_string(c));
    }
    for (const Part& part : parts_) {
      if (part.bytes.bytes.empty() || part.bytes.bytes.size() % record_size() != 0)
        throw InputError(cat(part.name, ": ", part.bytes.bytes.size(),
                             " bytes are not a whole number of CIFAR-", count, " records of ", record_size(),
                             " bytes; it is cut short or damaged"));
      ends_.push_back(size() + static_cast<int64_t>(part.bytes.bytes.size() / record_size()));
    }
    for (int64_t i = 0; i < size(); ++i)
      if (label(i) >= static_cast<int64_t>(count))
        throw InputError(cat(item_name(i), ": the label ", label(i), " is outside 0..", count - 1,
                             "; the file is damaged"));
  }

  int64_t size() const override { return ends_.empty() ? 0 : ends_.back(); }
  int64_t label(int64_t i) const override { return std::to_integer<int64_t>(record(i)[label_bytes_ - 1]); }
  Image image(int64_t i) const override {
    const auto planes = record(i).subspan(label_bytes_);
    Image image;
    image.width = image.height = kSide;
    image.rgb.resize(kPixels * 3);
    for (size_t p = 0; p < kPixels; ++p)
      for (size_t c = 0; c < 3; ++c) image.rgb[p * 3 + c] = std::to_integer<uint8_t>(planes[c * kPixels + p]);
    return image;
  }
  std::string item_name(int64_t i) const override {
    const auto [part, position] = locate(i);
    return cat(parts_[part].name, ": image ", position);
  }
  const std::vector<std::string>& class_names() const override { return classes_; }
  std::string describe() const override {
    return cat(where_, ": CIFAR-", classes_.size(), ", ", size(), " images");
  }

 private:
  size_t record_size() const { return label_bytes_ + kPixels * 3; }
  std::pair<size_t, int64_t> locate(int64_t i) const {
    const auto part = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin());
    return {part, i - (part == 0 ? 0 : ends_[part - 1])};
  }
  std::span<const std::byte> record(int64_t i) const {
    const auto [part, position] = locate(i);
    return parts_.at(part).bytes.bytes.subspan(static_cast<size_t>(position) * record_size(), record_size());
  }

  std::string where_;
  std::vector<Part> parts_;
  std::vector<int64_t> ends_;  // number of images up to and with each part
  size_t label_bytes_;
  std::vector<std::string> classes_;
};

std::vector<std::string> lines_of(std::span<const std::byte> bytes) {
  std::vector<std::string> lines;
  std::string line;
  for (const std::byte byte : bytes) {
    const char c = std::to_integer<char>(byte);
    if (c == '\r') continue;
    if (c != '\n') {
      line += c;
    } else if (!line.empty()) {
      lines.push_back(std::exchange(line, {}));
    }
  }
  if (!line.empty()) lines.push_back(line);
  return lines;
}

std::string missing_split(const std::string& where, const std::string& split) {
  return cat(where, ": has no split \"", split,
             "\"; CIFAR files are data_batch_1.bin ... and test_batch.bin, or train.bin and ",
             "test.bin, for train and test");
}

}  // namespace

std::unique_ptr<ImageDataset> try_open_cifar(const std::shared_ptr<const FileSource>& files,
                                             const std::string& split) {
  const auto& names = files->names();
  size_t label_bytes = 0;
  bool has_train = false;
  for (const std::string& name : names) {
    const Kind kind = kind_of(base_name(name));
    if (kind.label_bytes == 0) continue;
    if (label_bytes != 0 && label_bytes != kind.label_bytes)
      throw InputError(
          cat(files->where(), ": holds both CIFAR-10 and CIFAR-100 files; give the folder of one of them"));
    label_bytes = kind.label_bytes;
    has_train = has_train || kind.split == "train";
  }
  if (label_bytes == 0) return nullptr;
  const std::string chosen = !split.empty() ? split : has_train ? "train" : "test";
  const std::string_view names_file = label_bytes == 1 ? "batches.meta.txt" : "fine_label_names.txt";
  std::vector<Part> parts;
  std::vector<std::string> classes;
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string_view base = base_name(names[i]);
    if (base == names_file) classes = lines_of(files->read(i).bytes);
    if (kind_of(base).label_bytes != 0 && kind_of(base).split == chosen)
      parts.push_back({files->read(i), files->display_name(i)});
  }
  if (parts.empty()) throw InputError(missing_split(files->where(), chosen));
  return std::make_unique<CifarDataset>(cat(files->where(), "#", chosen), std::move(parts), label_bytes,
                                        std::move(classes));
}

std::unique_ptr<ImageDataset> try_open_cifar_file(const fs::path& file, const std::string& split) {
  const Kind kind = kind_of(file.filename().string());
  if (kind.label_bytes == 0) return nullptr;
  if (!split.empty() && split != kind.split) throw InputError(missing_split(file.string(), split));
  const auto mapped = MappedFile::open(file);
  std::vector<std::string> classes;
  const fs::path names =
      file.parent_path() / (kind.label_bytes == 1 ? "batches.meta.txt" : "fine_label_names.txt");
  std::error_code ignored;
  if (fs::is_regular_file(names, ignored)) classes = lines_of(MappedFile::open(names)->bytes());
  return std::make_unique<CifarDataset>(file.string(),
                                        std::vector<Part>{{{mapped, mapped->bytes()}, file.string()}},
                                        kind.label_bytes, std::move(classes));
}

}  // namespace adanat
