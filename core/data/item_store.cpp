#include "core/data/item_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/resample.h"

namespace adanat {
namespace {

constexpr int64_t kNamed = 5;

void copy_planes(const uint8_t* source, uint8_t* target, int64_t size, bool flipped) {
  const auto row_bytes = static_cast<size_t>(size);
  if (!flipped) {
    std::memcpy(target, source, row_bytes * row_bytes * 3);
    return;
  }
  for (int64_t row = 0; row < 3 * size; ++row, source += size, target += size)
    std::reverse_copy(source, source + size, target);
}

}  // namespace

ItemStore::ItemStore(std::shared_ptr<const ImageDataset> dataset, int64_t image_size, int64_t cache_bytes)
    : dataset_(std::move(dataset)),
      image_size_(image_size),
      item_bytes_(static_cast<size_t>(3 * image_size * image_size)) {
  const auto count = static_cast<size_t>(dataset_->size());
  states_ = std::make_unique<std::atomic<uint8_t>[]>(count);
  if (count <= static_cast<uint64_t>(cache_bytes) / item_bytes_)
    pixels_.reset(new uint8_t[count * item_bytes_]);
}

bool ItemStore::decode(int64_t i, uint8_t* planes) {
  Image image;
  try {
    image = adm_center_crop(dataset_->image(i), static_cast<int>(image_size_));
  } catch (const InputError& error) {
    std::atomic<uint8_t>& state = states_[static_cast<size_t>(i)];
    if (state.exchange(kBroken) != kBroken) {
      const std::lock_guard lock(warning_mutex_);
      const int64_t count = ++broken_;
      if (count <= kNamed) warning(cat("skipped a broken image: ", error.what()));
      if (count == kNamed) warning("further broken images are counted, but not named");
    }
    return false;
  }
  const auto pixels = static_cast<size_t>(image_size_ * image_size_);
  for (size_t p = 0; p < pixels; ++p)
    for (size_t c = 0; c < 3; ++c) planes[c * pixels + p] = image.rgb[p * 3 + c];
  return true;
}

bool ItemStore::read(int64_t i, bool flipped, uint8_t* target) {
  std::atomic<uint8_t>& state = states_[static_cast<size_t>(i)];
  uint8_t* kept = pixels_ ? pixels_.get() + static_cast<size_t>(i) * item_bytes_ : nullptr;
  uint8_t seen = state.load(std::memory_order_acquire);
  if (seen == kBroken) return false;
  if (kept != nullptr && seen == kUnknown && state.compare_exchange_strong(seen, kBusy)) {
    if (!decode(i, kept)) return false;
    state.store(kKept, std::memory_order_release);
    seen = kKept;
  }
  if (seen == kKept) {
    copy_planes(kept, target, image_size_, flipped);
    return true;
  }
  // Nothing is kept, or another thread is decoding the same item right now: decode for this call alone.
  if (!flipped) return decode(i, target);
  const auto planes = std::make_unique<uint8_t[]>(item_bytes_);
  if (!decode(i, planes.get())) return false;
  copy_planes(planes.get(), target, image_size_, true);
  return true;
}

}  // namespace adanat
