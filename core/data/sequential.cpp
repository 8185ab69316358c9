#include "core/data/sequential.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <exception>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/parallel.h"
#include "core/io/resample.h"

namespace adanat {
namespace {

constexpr int kInceptionSide = 299;

}  // namespace

struct SequentialReader::Item {
  Image image;
  std::vector<float> resized;  // with pillow_299
  std::string caption;
  std::string broken;          // why it cannot be read
  std::exception_ptr failure;  // anything else
};

SequentialReader::SequentialReader(const ImageDataset& dataset, SequentialOptions options)
    : dataset_(dataset), options_(std::move(options)), threads_(at::get_num_threads()) {
  ahead_ = std::async(std::launch::async, [this] { return decode(0, 0); });
}

SequentialReader::~SequentialReader() {
  if (ahead_.valid()) ahead_.wait();
}

void SequentialReader::read(int64_t item, Item& into) const {
  try {
    if (options_.captions && dataset_.has_captions()) into.caption = dataset_.caption(item);
    into.image = dataset_.image(item);
    if (options_.crop > 0) into.image = adm_center_crop(into.image, int(options_.crop));
    if (options_.pillow_299) {
      into.resized = resize_bicubic_float(into.image, kInceptionSide, kInceptionSide);
      for (float& v : into.resized) v = std::clamp(v, 0.0f, 255.0f);
    }
  } catch (const InputError& error) {
    into.broken = error.what();
  } catch (...) {
    into.failure = std::current_exception();
  }
}

SequentialReader::Decoded SequentialReader::decode(int64_t first, int64_t skipped_before) {
  const int64_t count = std::min(options_.batch_size, dataset_.size() - first);
  std::vector<Item> items(static_cast<size_t>(count));
  for_each_in_parallel(count, threads_, [&](int64_t i) { read(first + i, items[size_t(i)]); });

  Decoded out;
  out.next_item = first + count;
  std::vector<const Item*> good;
  for (int64_t i = 0; i < count; ++i) {
    Item& item = items[size_t(i)];
    if (item.failure) std::rethrow_exception(item.failure);
    if (!item.broken.empty()) {
      if (!options_.skip_broken) throw InputError(item.broken + options_.broken_hint);
      if (skipped_before + out.skipped < 5) warning(cat("skipped: ", item.broken));
      ++out.skipped;
      continue;
    }
    if (width_ == 0) width_ = item.image.width, height_ = item.image.height;
    if (!options_.pillow_299 && (item.image.width != width_ || item.image.height != height_))
      throw InputError(cat(dataset_.item_name(first + i), ": is ", item.image.width, "x", item.image.height,
                           " pixels, the images before it are ", width_, "x", height_, options_.size_hint));
    good.push_back(&item);
    out.batch.items.push_back(first + i);
    if (options_.captions && dataset_.has_captions()) out.batch.captions.push_back(std::move(item.caption));
  }
  fill(out.batch, good);
  if (!good.empty() && options_.prepare) out.batch.images = options_.prepare(out.batch.images);
  return out;
}

void SequentialReader::fill(SequentialBatch& batch, const std::vector<const Item*>& good) const {
  const auto n = int64_t(good.size());
  batch.labels = at::empty({n}, at::kLong);
  for (int64_t i = 0; i < n; ++i)
    batch.labels.mutable_data_ptr<int64_t>()[i] = dataset_.label(batch.items[size_t(i)]);
  if (options_.pillow_299) {
    batch.images = at::empty({n, 3, kInceptionSide, kInceptionSide}, at::kFloat);
    auto* target = batch.images.mutable_data_ptr<float>();
    for (const Item* item : good) target = std::copy(item->resized.begin(), item->resized.end(), target);
    return;
  }
  batch.images = at::empty({n, 3, height_, width_}, at::kByte);
  auto* target = batch.images.mutable_data_ptr<uint8_t>();
  for (const Item* item : good)
    for (size_t c = 0; c < 3; ++c)
      for (size_t p = c; p < item->image.rgb.size(); p += 3) *target++ = item->image.rgb[p];
}

std::optional<SequentialBatch> SequentialReader::next() {
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
