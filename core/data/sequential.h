// Every image of a dataset once, in order, decoded one batch ahead: for encoding and measuring.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace adanat {

struct SequentialBatch {
  // (B, 3, H, W) u8; (B, 3, 299, 299) f32 in [0, 255] with pillow_299; or what prepare made of them.
  at::Tensor images;
  at::Tensor labels;           // (B) i64
  std::vector<int64_t> items;  // which item of the dataset each is
  std::vector<std::string>
      captions;  // B of them where they are asked for and the dataset has them, else none
};

struct SequentialOptions {
  int64_t batch_size = 32;
  int64_t crop = 0;  // > 0: ADM centre crop to this size first
  bool pillow_299 =
      false;  // each channel resized by Pillow's bicubic to 299x299, clipped to 0..255 (clean-fid)
  // Done to each batch while the last one is used.
  std::function<at::Tensor(const at::Tensor&)> prepare = {};
  bool captions = false;     // an item whose caption cannot be read is a broken one
  bool skip_broken = false;  // leave broken items out, count them, name the first five on stderr
  // What errors say can be done: about a broken item (without skip_broken), about images of several sizes.
  std::string broken_hint = {}, size_hint = {};
};

// Decodes on as many threads as LibTorch uses when it is made (at::get_num_threads). Not thread-safe. Without
// crop and pillow_299 all images must have one size.
class SequentialReader {
 public:
  SequentialReader(const ImageDataset& dataset, SequentialOptions options);
  ~SequentialReader();
  SequentialReader(const SequentialReader&) = delete;
  SequentialReader& operator=(const SequentialReader&) = delete;
  // Empty at the end. InputError: an item that cannot be read (without skip_broken), an image of another size
  // than the first; at the end if every item was broken.
  std::optional<SequentialBatch> next();
  int64_t skipped() const { return skipped_; }

 private:
  struct Decoded {
    SequentialBatch batch;
    int64_t next_item = 0, skipped = 0;
  };
  struct Item;
  void read(int64_t item, Item& into) const;
  Decoded decode(int64_t first, int64_t skipped_before);
  void fill(SequentialBatch& batch, const std::vector<const Item*>& good) const;

  const ImageDataset& dataset_;
  SequentialOptions options_;
  int64_t threads_;
  int width_ = 0, height_ = 0;  // of the first image, 0 before it
  std::future<Decoded> ahead_;
  int64_t delivered_ = 0, skipped_ = 0;
};

}  // namespace adanat
