#include "core/metrics/frechet.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/diagonal.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "core/base/error.h"
#include "core/metrics/random_state.h"
#include "kernels/philox.h"

namespace adanat {

GaussianAccumulator::GaussianAccumulator(int64_t dimensions, bool float32_mean)
    : dimensions_(dimensions),
      float32_mean_(float32_mean),
      sums_{0, at::zeros({dimensions}, at::kDouble), at::zeros({dimensions, dimensions}, at::kDouble)},
      pending_(at::empty({kBlock, dimensions}, at::kDouble)),
      column_(float32_mean ? size_t(dimensions) : 0, 0.0f) {}

void GaussianAccumulator::add(const at::Tensor& features) {
  if (features.dim() != 2 || features.size(1) != dimensions_)
    throw RunError(cat("feature statistics: wanted (B, ", dimensions_, "), got ", features.sizes()));
  if (features.size(0) == 0) return;
  const at::Tensor given = features.detach().to(at::kCPU), x = given.to(at::kDouble);
  if (!at::isfinite(x).all().item<bool>())
    throw RunError("feature statistics: a feature is not a finite number");
  if (float32_mean_) {
    const at::Tensor narrow = given.to(at::kFloat).contiguous();
    const auto* row = narrow.const_data_ptr<float>();
    for (int64_t i = 0; i < narrow.size(0); ++i, row += dimensions_)
      for (int64_t d = 0; d < dimensions_; ++d) column_[size_t(d)] += row[d];
  }
  for (int64_t begin = 0; begin < x.size(0);) {
    const int64_t size = std::min(x.size(0) - begin, kBlock - pending_count_);
    pending_.narrow(0, pending_count_, size).copy_(x.narrow(0, begin, size));
    begin += size;
    pending_count_ += size;
    if (pending_count_ < kBlock) break;
    combine(sums_, pending_);
    count_ += kBlock;
    pending_count_ = 0;
  }
}

void GaussianAccumulator::combine(Sums& into, const at::Tensor& rows) {
  const at::Tensor mean = rows.mean(0), centred = rows - mean;
  combine(into, rows.size(0), mean, at::matmul(centred.t(), centred));
}

void GaussianAccumulator::combine(Sums& into, int64_t count, const at::Tensor& mean,
                                  const at::Tensor& scatter) {
  const at::Tensor delta = mean - into.mean;
  const double total = double(into.count + count);
  into.scatter.add_(scatter);
  into.scatter.addr_(delta, delta, 1, double(into.count) * double(count) / total);
  into.mean.add_(delta, double(count) / total);
  into.count += count;
}

GaussianStats GaussianAccumulator::stats() const {
  if (count() < 2)
    throw RunError(cat("feature statistics: a covariance needs 2 images or more, got ", count()));
  Sums all{sums_.count, sums_.mean.clone(), sums_.scatter.clone()};
  if (pending_count_ > 0) combine(all, pending_.narrow(0, 0, pending_count_));
  at::Tensor mean = all.mean;
  for (int64_t d = 0; d < int64_t(column_.size()); ++d)
    mean.mutable_data_ptr<double>()[d] = double(column_[size_t(d)] / float(all.count));
  return {all.count, mean, all.scatter.div_(double(all.count - 1))};
}

double frechet_distance(const GaussianStats& a, const GaussianStats& b) {
  if (a.mean.sizes() != b.mean.sizes())
    throw RunError(cat("Frechet distance: ", a.mean.size(0), " against ", b.mean.size(0), " dimensions"));
  const auto [values, vectors] = at::linalg_eigh(a.covariance);
  const at::Tensor root = at::matmul(vectors * values.clamp_min(0).sqrt(), vectors.t());  // A^1/2
  at::Tensor product = at::matmul(at::matmul(root, b.covariance), root);
  product = (product + product.t()) / 2;  // eigvalsh reads one triangle: let rounding not choose which
  const double cross = at::linalg_eigvalsh(product).clamp_min(0).sqrt().sum().item<double>();
  const double means = (a.mean - b.mean).square().sum().item<double>();
  const double traces = (at::diagonal(a.covariance).sum() + at::diagonal(b.covariance).sum()).item<double>();
  const double out = means + traces - 2 * cross;
  if (!std::isfinite(out)) throw RunError("Frechet distance: the statistics are too large for float64");
  return std::max(0.0, out);
}

double kernel_distance(const at::Tensor& a, const at::Tensor& b) {
  if (a.dim() != 2 || b.dim() != 2 || a.size(1) != b.size(1) || a.size(0) < 2 || b.size(0) < 2)
    throw RunError(cat("kernel distance: wanted two sets of 2 or more vectors of one length, got ", a.sizes(),
                       " and ", b.sizes()));
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  const auto kernel = [&](const at::Tensor& p, const at::Tensor& q) {
    return (at::matmul(p, q.t()) / double(x.size(1)) + 1).pow(3);
  };
  const auto without_diagonal = [&](const at::Tensor& p) {
    const at::Tensor k = kernel(p, p);
    const double n = double(p.size(0));
    return (k.sum() - at::diagonal(k).sum()).item<double>() / (n * (n - 1));
  };
  return without_diagonal(x) + without_diagonal(y) - 2 * kernel(x, y).mean().item<double>();
}

MeanAndDeviation kernel_distance(const at::Tensor& a, const at::Tensor& b, const at::Tensor& rows_a,
                                 const at::Tensor& rows_b) {
  if (rows_a.dim() != 2 || rows_b.dim() != 2 || rows_a.size(0) != rows_b.size(0) || rows_a.size(0) < 1)
    throw RunError(
        cat("kernel distance: subsets ", rows_a.sizes(), " and ", rows_b.sizes(), " do not pair up"));
  std::vector<double> values;
  for (int64_t i = 0; i < rows_a.size(0); ++i)
    values.push_back(kernel_distance(a.index_select(0, rows_a[i].to(a.device())),
                                     b.index_select(0, rows_b[i].to(b.device()))));
  return mean_and_deviation(values);
}

MeanAndDeviation mean_and_deviation(const std::vector<double>& values) {
  MeanAndDeviation out;
  for (const double value : values) out.mean += value / double(values.size());
  for (const double value : values)
    out.deviation += (value - out.mean) * (value - out.mean) / double(values.size());
  out.deviation = std::sqrt(out.deviation);
  return out;
}

at::Tensor random_subsets(int64_t count, int64_t subsets, int64_t size, uint64_t seed, int64_t which) {
  if (size < 1 || size > count || subsets < 1)
    throw RunError(cat("random subsets: cannot take ", subsets, " x ", size, " out of ", count));
  at::Tensor out = at::empty({subsets, size}, at::kLong);
  using Key = std::tuple<uint32_t, uint32_t, int64_t>;
  std::vector<Key> keys(static_cast<size_t>(count));
  for (int64_t s = 0; s < subsets; ++s) {
    for (int64_t i = 0; i < count; ++i) {
      const kernels::Philox4 word =
          kernels::draw(seed, uint32_t(s), uint32_t(i), uint32_t(which), 0, kernels::Stream::kData);
      keys[size_t(i)] = {word.x, word.y, i};
    }
    std::partial_sort(keys.begin(), keys.begin() + size, keys.end());
    for (int64_t i = 0; i < size; ++i)
      out.mutable_data_ptr<int64_t>()[s * size + i] = std::get<2>(keys[size_t(i)]);
  }
  return out;
}

SubsetPair numpy_subsets(int64_t count_a, int64_t count_b, int64_t subsets, int64_t size, uint32_t seed) {
  if (size < 1 || size > count_a || size > count_b || subsets < 1)
    throw RunError(cat("subsets: cannot take ", subsets, " x ", size, " out of ", count_a, " and ", count_b));
  SubsetPair out{at::empty({subsets, size}, at::kLong), at::empty({subsets, size}, at::kLong)};
  RandomState random(seed);
  for (int64_t s = 0; s < subsets; ++s) {
    for (auto [count, rows] : {std::pair{count_a, &out.a}, std::pair{count_b, &out.b}}) {
      const std::vector<int64_t> chosen = random.choice(count, size);
      std::copy(chosen.begin(), chosen.end(), rows->mutable_data_ptr<int64_t>() + s * size);
    }
  }
  return out;
}

}  // namespace adanat
