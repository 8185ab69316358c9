#include "core/metrics/inception_score.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "core/base/error.h"
#include "core/metrics/random_state.h"

namespace adanat {

InceptionScore::InceptionScore(std::vector<int32_t> split_of_row, int64_t splits, bool float32_softmax)
    : split_of_row_(std::move(split_of_row)),
      splits_(splits),
      float32_softmax_(float32_softmax),
      counts_(size_t(splits), 0),
      entropy_(size_t(splits), 0.0) {
  for (const int32_t split : split_of_row_)
    if (split < 0 || split >= splits)
      throw RunError(cat("inception score: split ", split, " is not in 0..", splits - 1));
}

void InceptionScore::add(const at::Tensor& logits) {
  if (logits.dim() != 2 || (sums_.defined() && logits.size(1) != sums_.size(1)))
    throw RunError(cat("inception score: wanted (B, K) logits of one width, got ", logits.sizes()));
  const int64_t count = logits.size(0), classes = logits.size(1);
  if (rows_ + count > int64_t(split_of_row_.size()))
    throw RunError(cat("inception score: more than the ", split_of_row_.size(), " rows it was made for"));
  if (!sums_.defined()) sums_ = at::zeros({splits_, classes}, at::kDouble);
  if (count == 0) return;
  const at::Tensor x = logits.detach().to(at::kCPU);
  if (!at::isfinite(x).all().item<bool>()) throw RunError("inception score: a logit is not a finite number");
  const auto type = float32_softmax_ ? at::kFloat : at::kDouble;
  const at::Tensor p = at::softmax(x.to(type), 1).to(at::kDouble).contiguous();
  const at::Tensor log_p = at::log_softmax(x.to(type), 1).to(at::kDouble);
  const at::Tensor entropy = (p * log_p).sum(1).contiguous();
  auto* sums = sums_.mutable_data_ptr<double>();
  const auto* values = p.const_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    const auto split = size_t(split_of_row_[size_t(rows_ + i)]);
    for (int64_t k = 0; k < classes; ++k) sums[int64_t(split) * classes + k] += values[i * classes + k];
    entropy_[split] += entropy.const_data_ptr<double>()[i];
    ++counts_[split];
  }
  rows_ += count;
}

MeanAndDeviation InceptionScore::result() const {
  if (rows_ != int64_t(split_of_row_.size()))
    throw RunError(cat("inception score: got ", rows_, " of ", split_of_row_.size(), " rows"));
  std::vector<double> scores;
  for (int64_t s = 0; s < splits_; ++s) {
    const double n = double(counts_[size_t(s)]);
    if (n == 0)
      throw RunError(cat("inception score: ", rows_, " images are too few for ", splits_, " splits"));
    // mean KL = mean sum p log p - sum q log q with q = mean p; a q of 0 has p = 0 everywhere and adds
    // nothing.
    double kl = entropy_[size_t(s)] / n;
    const auto* sum = sums_.const_data_ptr<double>() + s * sums_.size(1);
    for (int64_t k = 0; k < sums_.size(1); ++k)
      if (sum[k] > 0) kl -= sum[k] / n * std::log(sum[k] / n);
    scores.push_back(std::exp(kl));
  }
  return mean_and_deviation(scores);
}

std::vector<int32_t> even_splits(int64_t count, int64_t splits, bool shuffle, uint32_t seed) {
  std::vector<int32_t> of_position(static_cast<size_t>(count));
  for (int64_t s = 0; s < splits; ++s)
    std::fill(of_position.begin() + s * count / splits, of_position.begin() + (s + 1) * count / splits,
              int32_t(s));
  if (!shuffle) return of_position;
  std::vector<int32_t> out(of_position.size());
  const std::vector<int64_t> order = RandomState(seed).permutation(count);
  for (size_t position = 0; position < order.size(); ++position)
    out[size_t(order[position])] = of_position[position];
  return out;
}

std::vector<int32_t> chunk_splits(int64_t count, int64_t size) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out[size_t(i)] = int32_t(i / size);
  return out;
}

}  // namespace adanat
