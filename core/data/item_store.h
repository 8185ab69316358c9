// Decoded, cropped images of a dataset: kept in memory if they fit, and which of them are broken.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/data/dataset.h"

namespace adanat {

// Thread-safe.
class ItemStore {
 public:
  // Keeps pixels if size() * 3*S*S <= cache_bytes (0: never).
  ItemStore(std::shared_ptr<const ImageDataset> dataset, int64_t image_size, int64_t cache_bytes);

  // Writes item i as planes (3, S, S) to `target`, mirrored if asked; false if the item is broken (target is
  // then unspecified). The first meeting with a broken item is counted, the first five are named on stderr.
  bool read(int64_t i, bool flipped, uint8_t* target);

  int64_t broken() const { return broken_.load(); }
  const ImageDataset& dataset() const { return *dataset_; }

 private:
  enum State : uint8_t { kUnknown, kBusy, kKept, kBroken };

  bool decode(int64_t i, uint8_t* planes);

  std::shared_ptr<const ImageDataset> dataset_;
  int64_t image_size_;
  size_t item_bytes_;
  std::unique_ptr<std::atomic<uint8_t>[]> states_;
  std::unique_ptr<uint8_t[]> pixels_;  // null: nothing is kept
  std::atomic<int64_t> broken_{0};
  std::mutex warning_mutex_;
};

}  // namespace adanat
