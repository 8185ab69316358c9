// MNIST and its relatives (Fashion-MNIST, EMNIST): idx files, plain or gzip.
// Layout: 00 00 08 D (D dimensions of unsigned bytes), D sizes of 4 bytes big-endian, then the bytes.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "core/base/error.h"
#include "core/data/dataset_kinds.h"
#include "core/io/gzip.h"
#include "core/io/mapped_file.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxValues = uint64_t{4} << 30;

struct Idx {
  std::vector<uint64_t> sizes;
  std::string bytes;  // the whole file; values from `begin` on
  size_t begin = 0;
};

// Number of values that the header promises.
uint64_t read_header(Idx& idx, std::string_view header, size_t dimensions, const std::string& where) {
  const auto byte = [&](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(header[i])); };
  idx.begin = 4 + 4 * dimensions;
  if (header.size() < idx.begin || byte(0) != 0 || byte(1) != 0 || byte(2) != 8 || byte(3) != dimensions)
    throw InputError(cat(where, ": is no idx file of unsigned bytes with ", dimensions, " dimension",
                         dimensions == 1 ? "" : "s"));
  uint64_t total = 1;
  for (size_t d = 0; d < dimensions; ++d) {
    const size_t at = 4 + 4 * d;
    idx.sizes.push_back(byte(at) << 24 | byte(at + 1) << 16 | byte(at + 2) << 8 | byte(at + 3));
    if (__builtin_mul_overflow(total, idx.sizes.back(), &total)) total = UINT64_MAX;
  }
  return total;
}

Idx read_idx(const fs::path& path, size_t dimensions) {
  const std::string where = path.string();
  const auto file = MappedFile::open(path);
  const auto wrong_size = [&](uint64_t total, const std::string& actual) {
    return InputError(cat(where, ": its header says ", total, " bytes of values, but there are ", actual,
                          "; it is cut short or damaged"));
  };
  Idx idx;
  if (!is_gzip(file->bytes())) {
    idx.bytes.assign(reinterpret_cast<const char*>(file->data()), file->size());
    const uint64_t total = read_header(idx, idx.bytes, dimensions, where);
    if (total != idx.bytes.size() - idx.begin)
      throw wrong_size(total, std::to_string(idx.bytes.size() - idx.begin));
    return idx;
  }
  // What the header promises is all that is inflated, and a promise that so few bytes cannot hold is refused
  // first.
  const uint64_t total =
      read_header(idx, gunzip_start(file->bytes(), where, 4 + 4 * dimensions), dimensions, where);
  if (total > kMaxValues || total > file->size() * kMaxDeflateRatio)
    throw wrong_size(total, cat("only ", file->size(), " bytes compressed"));
  idx.bytes = gunzip(file->bytes(), where, idx.begin + total);
  if (total != idx.bytes.size() - idx.begin)
    throw wrong_size(total, std::to_string(idx.bytes.size() - idx.begin));
  return idx;
}

class MnistDataset : public ImageDataset {
 public:
  MnistDataset(const fs::path& images, const fs::path& labels) : path_(images) {
    images_ = read_idx(images, 3);
    labels_ = read_idx(labels, 1);
    if (images_.sizes[0] != labels_.sizes[0])
      throw InputError(cat(images.string(), ": holds ", images_.sizes[0], " images, but ", labels.string(),
                           " holds ", labels_.sizes[0], " labels"));
    if (images_.sizes[0] == 0) throw InputError(cat(images.string(), ": holds no images"));
    for (const uint64_t side : {images_.sizes[1], images_.sizes[2]})
      if (side < 1 || side > static_cast<uint64_t>(kMaxImageSide))
        throw InputError(cat(images.string(), ": images of ", images_.sizes[2], "x", images_.sizes[1],
                             " are outside 1..", kMaxImageSide));
    int64_t largest = 0;
    for (int64_t i = 0; i < size(); ++i) largest = std::max(largest, label(i));
    // Digits have ten classes even where a small file lacks some of them.
    for (int64_t c = 0; c < std::max<int64_t>(10, largest + 1); ++c) classes_.push_back(std::to_string(c));
  }

  int64_t size() const override { return static_cast<int64_t>(images_.sizes[0]); }
  int64_t label(int64_t i) const override {
    return static_cast<unsigned char>(labels_.bytes.at(labels_.begin + static_cast<size_t>(i)));
  }
  Image image(int64_t i) const override {
    Image image;
    image.height = static_cast<int>(images_.sizes[1]);
    image.width = static_cast<int>(images_.sizes[2]);
    const size_t pixels = static_cast<size_t>(image.height) * image.width;
    image.rgb.resize(pixels * 3);
    const char* grey = images_.bytes.data() + images_.begin + static_cast<size_t>(i) * pixels;
    for (size_t p = 0; p < pixels; ++p)
      std::memset(image.rgb.data() + p * 3, static_cast<unsigned char>(grey[p]), 3);
    return image;
  }
  std::string item_name(int64_t i) const override { return cat(path_.string(), ": image ", i); }
  const std::vector<std::string>& class_names() const override { return classes_; }
  std::string describe() const override {
    return cat(path_.string(), ": ", size(), " images of ", images_.sizes[2], "x", images_.sizes[1], ", ",
               classes_.size(), " classes");
  }

 private:
  fs::path path_;
  Idx images_, labels_;
  std::vector<std::string> classes_;
};

bool replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.rfind(from);
  if (at == std::string::npos) return false;
  text.replace(at, from.size(), to);
  return true;
}

fs::path labels_beside(const fs::path& images) {
  std::string name = images.filename().string();
  if (!replace(name, "images", "labels") || !replace(name, "idx3", "idx1"))
    throw InputError(
        cat(images.string(),
            ": the name must hold \"images\" and \"idx3\", so that the labels file can be found"));
  const std::string plain = name.ends_with(".gz") ? name.substr(0, name.size() - 3) : name;
  std::error_code ignored;
  for (const std::string& candidate : {name, plain, plain + ".gz"})
    if (fs::exists(images.parent_path() / candidate, ignored)) return images.parent_path() / candidate;
  throw InputError(cat(images.string(), ": its labels file ", name, " is not beside it"));
}

bool is_images_name(std::string_view name) {
  return name.find("images") != std::string_view::npos && name.find("idx3") != std::string_view::npos;
}

// "t10k-..." and "...-test-..." (EMNIST) are test sets.
std::string split_of_name(std::string_view name) {
  return name.find("t10k") != std::string_view::npos || name.find("test") != std::string_view::npos ? "test"
                                                                                                    : "train";
}

}  // namespace

std::unique_ptr<ImageDataset> try_open_mnist(const fs::path& path, const std::string& split) {
  std::error_code ignored;
  std::vector<fs::path> found;
  if (fs::is_directory(path, ignored)) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(path, error))
      if (is_images_name(entry.path().filename().string()) && entry.is_regular_file(ignored))
        found.push_back(entry.path());
    std::sort(found.begin(), found.end());
  } else if (is_images_name(path.filename().string())) {
    found.push_back(path);
  }
  if (found.empty()) return nullptr;
  std::optional<fs::path> chosen;
  for (const char* candidate : {"train", "test"}) {
    if (!split.empty() && split != candidate) continue;
    for (const fs::path& images : found)
      if (!chosen && split_of_name(images.filename().string()) == candidate) chosen = images;
  }
  if (!chosen)
    throw InputError(cat(path.string(), ": has no split \"", split,
                         "\"; MNIST files are train-images-idx3-ubyte and ",
                         "t10k-images-idx3-ubyte (.gz), for train and test"));
  return std::make_unique<MnistDataset>(*chosen, labels_beside(*chosen));
}

}  // namespace adanat
