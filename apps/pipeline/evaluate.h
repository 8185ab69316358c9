// Measuring images with a model folder's `measure` network: protocol "classifier". Its figures are FD and KD,
// never FID.
#pragma once
#include <functional>
#include <optional>

#include "apps/pipeline/pipeline.h"
#include "core/data/dataset.h"
#include "core/features/feature_net.h"
#include "core/metrics/frechet.h"

namespace adanat {

// What the measure network says of one set of images. Not thread-safe.
class MeasuredSet {
 public:
  // `keep_features`: also the vectors themselves, which the kernel distance needs.
  MeasuredSet(FeatureNet& net, bool keep_features) : net_(net), keep_features_(keep_features) {}
  // images (B, 3, S, S) u8; labels (B) i64 or undefined. RunError on a feature that is not finite.
  void add(const at::Tensor& images, const at::Tensor& labels);
  int64_t count() const { return accumulator_ ? accumulator_->count() : 0; }
  int64_t dimensions() const { return dimensions_; }
  GaussianStats stats() const { return accumulator_->stats(); }
  at::Tensor features() const;  // (count, D) f32; only with keep_features
  // Share of images that the network gives their label; empty where there were none.
  std::optional<double> accuracy() const;

 private:
  FeatureNet& net_;
  bool keep_features_;
  std::optional<GaussianAccumulator> accumulator_;
  std::vector<at::Tensor> kept_;
  int64_t dimensions_ = 0, labelled_ = 0, right_ = 0;
};

// Subsets of the kernel distance: 100 of 1000 images each, as KID's.
inline constexpr int64_t kKernelSubsets = 100, kKernelSubsetSize = 1000;

}  // namespace adanat
