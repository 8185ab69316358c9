#include "apps/pipeline/image_batches.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/data/parallel.h"
#include "core/io/resample.h"

namespace adanat {
namespace {

constexpr int64_t kInceptionSide = 299;

struct Item {
  Image image;
  std::vector<float> resized;  // with pillow_299
  std::string broken;          // why it cannot be read
  std::exception_ptr failure;  // anything else
};

}  // namespace

ImageBatches::ImageBatches(const ImageDataset& dataset, ImageBatchOptions options)
    : dataset_(dataset), options_(std::move(options)) {
  ahead_ = std::async(std::launch::async, [this] { return decode(0, 0); });
}

ImageBatches::~ImageBatches() {
  if (ahead_.valid()) ahead_.wait();
}

ImageBatches::Decoded ImageBatches::decode(int64_t first, int64_t skipped_before) {
  const int64_t count = std::min(options_.batch_size, dataset_.size() - first);
  std::vector<Item> items(static_cast<size_t>(count));
  for_each_in_parallel(count, [&](int64_t i) {
    Item& item = items[size_t(i)];
    try {
      item.image = dataset_.image(first + i);
      if (options_.crop > 0) item.image = adm_center_crop(item.image, int(options_.crop));
      if (options_.pillow_299) {
        item.resized = resize_bicubic_float(item.image, int(kInceptionSide), int(kInceptionSide));
        for (float& v : item.resized) v = std::clamp(v, 0.0f, 255.0f);
      }
    } catch (const InputError& error) {
      item.broken = error.what();
    } catch (...) {
      item.failure = std::current_exception();
    }
  });

  Decoded out;
  out.next_item = first + count;
  std::vector<const Item*> good;
  for (int64_t i = 0; i < count; ++i) {
    const Item& item = items[size_t(i)];
    if (item.failure) std::rethrow_exception(item.failure);
    if (!item.broken.empty()) {
      if (!options_.skip_broken)
        throw InputError(cat(item.broken, " (--skip-broken leaves such images out)"));
      if (skipped_before + out.skipped < 5) warning(cat("skipped: ", item.broken));
      ++out.skipped;
      continue;
    }
    if (width_ == 0) width_ = item.image.width, height_ = item.image.height;
    if (!options_.pillow_299 && (item.image.width != width_ || item.image.height != height_))
      throw InputError(cat(dataset_.item_name(first + i), ": is ", item.image.width, "x", item.image.height,
                           " pixels, the images before it are ", width_, "x", height_,
                           "; this protocol needs one size: give --crop S to bring all to SxS"));
    good.push_back(&item);
    out.batch.items.push_back(first + i);
  }
  const auto n = int64_t(good.size());
  out.batch.labels = at::empty({n}, at::kLong);
  const int64_t plane = options_.pillow_299 ? kInceptionSide * kInceptionSide : int64_t(width_) * height_;
  if (options_.pillow_299)
    out.batch.images = at::empty({n, 3, kInceptionSide, kInceptionSide}, at::kFloat);
  else
    out.batch.images = at::empty({n, 3, height_, width_}, at::kByte);
  for (int64_t i = 0; i < n; ++i) {
    const Item& item = *good[size_t(i)];
    out.batch.labels.mutable_data_ptr<int64_t>()[i] = dataset_.label(out.batch.items[size_t(i)]);
    if (options_.pillow_299) {
      std::copy(item.resized.begin(), item.resized.end(),
                out.batch.images.mutable_data_ptr<float>() + i * 3 * plane);
      continue;
    }
    uint8_t* target = out.batch.images.mutable_data_ptr<uint8_t>() + i * 3 * plane;
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t p = 0; p < plane; ++p) target[c * plane + p] = item.image.rgb[size_t(p * 3 + c)];
  }
  if (n > 0 && options_.prepare) out.batch.images = options_.prepare(out.batch.images);
  return out;
}

std::optional<ImageBatch> ImageBatches::next() {
  while (ahead_.valid()) {
    Decoded ready = ahead_.get();
    skipped_ += ready.skipped;
    const int64_t count = ready.batch.labels.size(0);
    delivered_ += count;
    if (ready.next_item < dataset_.size())
      ahead_ = std::async(std::launch::async, [this, item = ready.next_item, skipped = skipped_] {
        return decode(item, skipped);
      });
    if (count > 0) return std::move(ready.batch);
  }
  if (delivered_ == 0) throw InputError(cat(dataset_.describe(), ": none of its images can be read"));
  return std::nullopt;
}

}  // namespace adanat
