// Features of generated images on disk, so that a long measurement that was stopped goes on where it was, to
// the same digits.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/config.h"

namespace adanat {

// What a network says of a batch of images, on the CPU in float32.
struct FeatureRows {
  at::Tensor pool;     // (B, D)
  at::Tensor logits;   // (B, K): without bias for Inception
  at::Tensor spatial;  // (B, 2023) or undefined
  int64_t size() const { return pool.size(0); }
};

// One entry = one sequence of images, named by a key that holds all it depends on. Files are written whole
// under a temporary name; what cannot be written or read is said in a warning and costs time only, never an
// error. Not thread-safe.
class FeatureCache {
 public:
  // $XDG_CACHE_HOME/adanat/features, or ~/.cache/adanat/features; empty if there is neither.
  static std::filesystem::path default_folder();
  // `folder` empty: nothing is kept. Entries used least recently are removed until the others hold
  // `limit_bytes` at most, and this one does not grow over it.
  FeatureCache(std::filesystem::path folder, const Json& key, uint64_t limit_bytes = uint64_t{4} << 30);
  // Gives `visit` the rows from the first image on, in the pieces in which they were added, up to the first
  // gap; one file is in memory at a time. -> the number of images.
  int64_t load(const std::function<void(const FeatureRows&)>& visit);
  // The rows of the next images. Written to disk every 30 s, or by flush().
  void add(const FeatureRows& rows);
  void flush();

 private:
  std::filesystem::path entry_;  // empty: nothing is kept
  std::string key_;
  uint64_t limit_bytes_, bytes_ = 0;
  int64_t begin_ = 0;  // first image of pending_
  std::vector<FeatureRows> pending_;
  double flushed_at_;
};

}  // namespace adanat
