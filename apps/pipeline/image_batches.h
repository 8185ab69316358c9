// The images of a dataset as they are, in order, decoded ahead by several threads: what measuring reads.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <future>
#include <optional>

#include "core/data/dataset.h"

namespace adanat {

struct ImageBatch {
  at::Tensor
      images;  // (B, 3, H, W) u8; (B, 3, 299, 299) f32 in [0, 255] with pillow_299; or what prepare made
  at::Tensor labels;           // (B) i64
  std::vector<int64_t> items;  // which item of the dataset each is
};

struct ImageBatchOptions {
  int64_t batch_size = 32;
  int64_t crop = 0;  // > 0: ADM centre crop to this size first
  bool pillow_299 =
      false;  // clean-fid: each channel resized by Pillow's bicubic to 299x299 and clipped to 0..255
  std::function<at::Tensor(const at::Tensor&)> prepare =
      {};                    // done to each batch while the last one is measured
  bool skip_broken = false;  // leave unreadable images out, count them, name the first ones on stderr
};

// Not thread-safe. Without crop and pillow_299 all images must have one size.
class ImageBatches {
 public:
  ImageBatches(const ImageDataset& dataset, ImageBatchOptions options);
  ~ImageBatches();
  ImageBatches(const ImageBatches&) = delete;
  ImageBatches& operator=(const ImageBatches&) = delete;
  // Empty at the end. InputError: an image that cannot be read (without skip_broken), that has another size
  // than the first; at the end if every image was broken.
  std::optional<ImageBatch> next();
  int64_t skipped() const { return skipped_; }

 private:
  struct Decoded {
    ImageBatch batch;
    int64_t next_item = 0, skipped = 0;
  };
  Decoded decode(int64_t first, int64_t skipped_before);

  const ImageDataset& dataset_;
  ImageBatchOptions options_;
  int width_ = 0, height_ = 0;  // of the first image, 0 before it
  std::future<Decoded> ahead_;
  int64_t delivered_ = 0, skipped_ = 0;
};

}  // namespace adanat
