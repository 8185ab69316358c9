#include "core/data/sequential.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <exception>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/data/parallel.h"
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
  struct Item {
    std::string caption, broken;  // why it cannot be read
    std::exception_ptr failure;   // anything else
  };
  const int64_t s = image_size_, plane = s * s, count = std::min(batch_size_, dataset_.size() - first);
  std::vector<Item> items(static_cast<size_t>(count));
  const at::Tensor images = at::empty({count, 3, s, s}, at::kByte);
  auto* const pixels = images.mutable_data_ptr<uint8_t>();
  for_each_in_parallel(count, [&](int64_t i) {
    Item& item = items[size_t(i)];
    try {
      if (dataset_.has_captions()) item.caption = dataset_.caption(first + i);
      const Image image = adm_center_crop(dataset_.image(first + i), int(s));
      for (int64_t p = 0; p < plane; ++p)
        for (int64_t c = 0; c < 3; ++c) pixels[(i * 3 + c) * plane + p] = image.rgb[size_t(p * 3 + c)];
    } catch (const InputError& error) {
      item.broken = error.what();
    } catch (...) {
      item.failure = std::current_exception();
    }
  });

  Decoded out;
  out.next_item = first + count;
  std::vector<int64_t> good, labels;
  for (int64_t i = 0; i < count; ++i) {
    Item& item = items[size_t(i)];
    if (item.failure) std::rethrow_exception(item.failure);
    if (!item.broken.empty()) {
      if (!skip_broken_) throw InputError(item.broken);
      if (skipped_ + out.skipped < 5) warning(cat("skipped: ", item.broken));
      ++out.skipped;
      continue;
    }
    good.push_back(i), labels.push_back(dataset_.label(first + i));
    if (dataset_.has_captions()) out.batch.captions.push_back(std::move(item.caption));
  }
  out.batch.images = out.skipped == 0 ? images : images.index_select(0, at::tensor(good, at::kLong));
  out.batch.labels = at::tensor(labels, at::kLong);
  return out;
}

std::optional<SequentialBatch> SequentialReader::next() {
  while (ahead_.valid()) {
    Decoded ready = ahead_.get();
    skipped_ += ready.skipped;
    delivered_ += ready.batch.labels.size(0);
    if (ready.next_item < dataset_.size())
      ahead_ = std::async(std::launch::async, [this, item = ready.next_item] { return decode(item); });
    if (ready.batch.labels.size(0) > 0) return std::move(ready.batch);
  }
  if (delivered_ == 0) throw InputError(cat(dataset_.describe(), ": none of its images can be read"));
  return std::nullopt;
}

}  // namespace adanat
