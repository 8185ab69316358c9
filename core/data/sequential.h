// Every image of a dataset once, in order, decoded one batch ahead: for encoding and measuring.
#pragma once
#include <ATen/core/Tensor.h>

#include <future>
#include <optional>
#include <string>
#include <vector>

#include "core/data/dataset.h"

namespace adanat {

struct SequentialBatch {
  at::Tensor images;                  // (B, 3, S, S) u8, ADM-cropped, B <= batch_size
  at::Tensor labels;                  // (B) i64
  std::vector<std::string> captions;  // B of them where the dataset has captions, else none
};

// Not thread-safe. With `skip_broken` broken items (their captions included) are left out and counted (the
// first ones named on stderr); without it the first one is thrown as InputError from next().
class SequentialReader {
 public:
  SequentialReader(const ImageDataset& dataset, int64_t image_size, int64_t batch_size, bool skip_broken);
  ~SequentialReader();
  SequentialReader(const SequentialReader&) = delete;
  SequentialReader& operator=(const SequentialReader&) = delete;
  // Empty at the end. InputError at the end if every item was broken.
  std::optional<SequentialBatch> next();
  int64_t skipped() const { return skipped_; }

 private:
  struct Decoded {
    SequentialBatch batch;
    int64_t next_item = 0, skipped = 0;
  };
  Decoded decode(int64_t first) const;

  const ImageDataset& dataset_;
  int64_t image_size_, batch_size_;
  bool skip_broken_;
  std::future<Decoded> ahead_;
  int64_t delivered_ = 0, skipped_ = 0;
};

}  // namespace adanat
