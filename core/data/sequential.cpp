#include "core/data/sequential.h"

#include <ATen/ops/empty.h>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/resample.h"

namespace adanat {

SequentialReader::SequentialReader(const ImageDataset& dataset, int64_t image_size, int64_t batch_size,
                                   bool skip_broken)
    : dataset_(dataset), image_size_(image_size), batch_size_(batch_size), skip_broken_(skip_broken) {
  ahead_ = std::async(std::launch::async, [this] { return decode(0); });
}

SequentialReader::~SequentialReader() {
  if (ahead_.valid()) ahead_.wait();
}

SequentialReader::Decoded SequentialReader::decode(int64_t first) const {
  const int64_t s = image_size_, plane = s * s;
  Decoded out;
  at::Tensor images = at::empty({batch_size_, 3, s, s}, at::kByte),
             labels = at::empty({batch_size_}, at::kLong);
  auto* pixels = images.mutable_data_ptr<uint8_t>();
  int64_t filled = 0, item = first;
  for (; filled < batch_size_ && item < dataset_.size(); ++item) {
    Image image;
    std::string caption;
    try {
      if (dataset_.has_captions()) caption = dataset_.caption(item);
      image = adm_center_crop(dataset_.image(item), int(s));
    } catch (const InputError& error) {
      if (!skip_broken_) throw;
      if (skipped_ + out.skipped < 5) warning(cat("skipped: ", error.what()));
      ++out.skipped;
      continue;
    }
    for (int64_t p = 0; p < plane; ++p)
      for (int64_t c = 0; c < 3; ++c) pixels[(filled * 3 + c) * plane + p] = image.rgb[size_t(p * 3 + c)];
    labels.mutable_data_ptr<int64_t>()[filled++] = dataset_.label(item);
    if (dataset_.has_captions()) out.batch.captions.push_back(std::move(caption));
  }
  out.batch.images = images.narrow(0, 0, filled), out.batch.labels = labels.narrow(0, 0, filled);
  out.next_item = item;
  return out;
}

std::optional<SequentialBatch> SequentialReader::next() {
  if (!ahead_.valid()) return std::nullopt;
  Decoded ready = ahead_.get();
  skipped_ += ready.skipped;
  delivered_ += ready.batch.labels.size(0);
  if (ready.next_item < dataset_.size())
    ahead_ = std::async(std::launch::async, [this, item = ready.next_item] { return decode(item); });
  if (ready.batch.labels.size(0) == 0) {
    if (delivered_ == 0) throw InputError(cat(dataset_.describe(), ": none of its images can be read"));
    return next();  // a whole batch of broken items; ends when nothing is ahead
  }
  return std::move(ready.batch);
}

}  // namespace adanat
