#include <array>
#include <cstring>
#include <mutex>
#include <optional>

#include "core/base/error.h"
#include "core/data/dataset_kinds.h"
#include "core/io/npy.h"

namespace adanat {
namespace {

// Arrays up to this size are kept whole; larger ones are read in order, a block at a time.
constexpr uint64_t kKeepBytes = uint64_t{1} << 30;
constexpr int64_t kBlockRows = 64;

// "arr_0" (N, H, W, 3) u8 and perhaps "arr_1" (N) labels: what samplers hand to the ADM evaluator.
class NpzDataset : public ImageDataset {
 public:
  explicit NpzDataset(NpzFile file) : file_(std::move(file)) {
    const NpyHeader header = file_.header("arr_0");
    const auto& shape = header.shape;
    if (header.dtype != DType::kU8 || shape.size() != 4 || shape[3] != 3)
      throw InputError(cat(where(), ": arr_0 must be bytes of the shape (N, height, width, 3)"));
    if (shape[0] < 1) throw InputError(cat(where(), ": arr_0 holds no image"));
    if (shape[1] < 1 || shape[2] < 1 || shape[1] > kMaxImageSide || shape[2] > kMaxImageSide ||
        shape[1] * shape[2] > kMaxImagePixels)
      throw InputError(cat(where(), ": arr_0 holds images of ", shape[2], "x", shape[1],
                           " pixels, outside 1 to ", kMaxImageSide));
    count_ = shape[0], height_ = int(shape[1]), width_ = int(shape[2]);
    if (file_.contains("arr_1")) {
      const NpyArray labels = file_.array("arr_1", uint64_t(count_) * 8 + kMaxNpyHeader);
      if (labels.shape != std::vector<int64_t>{count_})
        throw InputError(
            cat(labels.where, ": must hold one label for each of the ", count_, " images of arr_0"));
      labels_ = labels.as_int64();
    }
    int64_t classes = 1;
    for (const int64_t label : labels_) {
      if (label < 0 || label >= 1'000'000)
        throw InputError(cat(where(), ": arr_1 holds the label ", label, ", outside 0 to 999999"));
      classes = std::max(classes, label + 1);
    }
    for (int64_t c = 0; c < classes; ++c) names_.push_back(labels_.empty() ? "all" : std::to_string(c));
    if (header.bytes() <= kKeepBytes) whole_ = file_.array("arr_0", kKeepBytes + kMaxNpyHeader).bytes;
  }
  int64_t size() const override { return count_; }
  int64_t label(int64_t i) const override { return labels_.empty() ? 0 : labels_.at(size_t(i)); }
  Image image(int64_t i) const override {
    Image out;
    out.width = width_, out.height = height_;
    out.rgb.resize(row_bytes());
    if (!whole_.empty()) {
      std::memcpy(out.rgb.data(), whole_.data() + size_t(i) * row_bytes(), row_bytes());
    } else {
      const std::lock_guard lock(mutex_);
      const Block& block = block_of(i);
      std::memcpy(out.rgb.data(), block.rows.data() + size_t(i - block.begin) * row_bytes(), row_bytes());
    }
    return out;
  }
  std::string item_name(int64_t i) const override { return cat(where(), ": image ", i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override {
    return cat(where(), ": ", count_, " images of ", width_, "x", height_,
               labels_.empty() ? "" : cat(", ", names_.size(), " classes"));
  }

 private:
  struct Block {
    int64_t begin = -1, end = -1;
    std::vector<std::byte> rows;
  };
  std::string where() const { return file_.path().string(); }
  size_t row_bytes() const { return size_t(width_) * size_t(height_) * 3; }
  // Two blocks are kept: threads that decode together are a few rows apart. Going back begins anew at the
  // front.
  const Block& block_of(int64_t i) const {
    for (const Block& block : blocks_)
      if (i >= block.begin && i < block.end) return block;
    if (!stream_ || stream_->position() > i) stream_.emplace(file_.stream("arr_0"));
    do {
      std::swap(blocks_[0], blocks_[1]);
      Block& block = blocks_[0];
      const int64_t begin = stream_->position(), end = std::min(count_, begin + kBlockRows);
      block.begin = block.end = -1;  // should reading fail
      block.rows.resize(size_t(end - begin) * row_bytes());
      stream_->read(block.rows.data(), end - begin);
      block.begin = begin, block.end = end;
    } while (i >= blocks_[0].end);
    return blocks_[0];
  }

  NpzFile file_;
  int64_t count_ = 0;
  int width_ = 0, height_ = 0;
  std::vector<int64_t> labels_;
  std::vector<std::string> names_;
  std::vector<std::byte> whole_;
  mutable std::mutex mutex_;
  mutable std::optional<NpyStream> stream_;
  mutable std::array<Block, 2> blocks_;
};

}  // namespace

std::unique_ptr<ImageDataset> try_open_npz(const std::filesystem::path& path, const std::string& split) {
  if (path.extension() != ".npz" || std::filesystem::is_directory(path)) return nullptr;
  NpzFile file = NpzFile::open(path);
  if (!file.contains("arr_0")) {
    std::string names;
    for (const std::string& name : file.names()) names += (names.empty() ? "" : ", ") + name;
    throw InputError(
        cat(path.string(), ": holds no images (arr_0), only: ", names.empty() ? "nothing" : names));
  }
  if (!split.empty())
    throw InputError(cat(path.string(), ": has no split \"", split, "\"; .npz files have none"));
  return std::make_unique<NpzDataset>(std::move(file));
}

}  // namespace adanat
