// Distances between two sets of feature vectors: Frechet (FID, FD) and polynomial-kernel (KID, KD). All in
// float64.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace adanat {

// What the Frechet distance needs to know of a set.
struct GaussianStats {
  int64_t count = 0;
  at::Tensor mean;        // (D) f64, CPU
  at::Tensor covariance;  // (D, D) f64, CPU, divided by count - 1
};

// Mean and covariance of a stream of vectors, without keeping them. Not thread-safe.
// Sums of squares are kept around the running mean (Chan, Golub, LeVeque 1979), so nothing cancels. Vectors
// are summed in blocks of kBlock, whatever the batches they come in: batching changes no digit, order changes
// the result by rounding.
class GaussianAccumulator {
 public:
  static constexpr int64_t kBlock = 256;
  // float32_mean: the mean is the one that numpy.mean gives for a float32 array (rows added one by one in
  // float32), as in torch-fidelity, clean-fid and the ADM evaluator. The covariance is float64 around the
  // float64 mean in any case.
  explicit GaussianAccumulator(int64_t dimensions, bool float32_mean = false);
  // features (B, D), any float type and device; B may be 0. RunError for another D or a value that is not
  // finite.
  void add(const at::Tensor& features);
  int64_t count() const { return count_ + pending_count_; }
  int64_t dimensions() const { return dimensions_; }
  // RunError with fewer than 2 vectors.
  GaussianStats stats() const;

 private:
  // Mean and scatter of `count` vectors; scatter (D, D) = sum of (x - mean)(x - mean)^T.
  struct Sums {
    int64_t count = 0;
    at::Tensor mean, scatter;
  };
  static void combine(Sums& into, const at::Tensor& rows);
  static void combine(Sums& into, int64_t count, const at::Tensor& mean, const at::Tensor& scatter);

  int64_t dimensions_, count_ = 0, pending_count_ = 0;
  bool float32_mean_;
  Sums sums_;
  at::Tensor pending_;         // (kBlock, D) f64, the first pending_count_ rows are not summed yet
  std::vector<float> column_;  // with float32_mean: the running column sums
};

// |mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2), never below 0. Both roots by symmetric
// eigenvalues; negative ones (rounding; there are many where count <= D) count as 0. RunError if the
// dimensions differ.
double frechet_distance(const GaussianStats& a, const GaussianStats& b);

// Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 of a (N, D) and b (M, D), N, M >=
// 2: means of k over all pairs of different rows of a, and of b, minus twice the mean over all pairs across.
// May be below 0. Source: Binkowski et al. 2018; the same value as torch-fidelity's with one subset of
// everything.
double kernel_distance(const at::Tensor& a, const at::Tensor& b);

struct MeanAndDeviation {
  double mean = 0, deviation = 0;  // deviation over the values, divided by their number (as numpy's)
};
// values must not be empty.
MeanAndDeviation mean_and_deviation(const std::vector<double>& values);

// kernel_distance on the given rows: a[rows_a[i]] against b[rows_b[i]], rows_* (subsets, size) i64.
MeanAndDeviation kernel_distance(const at::Tensor& a, const at::Tensor& b, const at::Tensor& rows_a,
                                 const at::Tensor& rows_b);

// `size` different rows out of `count` for each of `subsets`, (subsets, size) i64. Row i of subset s in set
// `which` (0 or 1) draws philox4x32_10 at counter (s, i, which, 3 << 16) with key `seed`; the rows with the
// smallest (word 0, word 1, i) are taken in that order. RunError if size > count.
at::Tensor random_subsets(int64_t count, int64_t subsets, int64_t size, uint64_t seed, int64_t which);

// The subsets of torch-fidelity: one RandomState(seed), and for each subset choice(count_a, size), then
// choice(count_b, size). Both (subsets, size) i64. RunError if size is over a count.
struct SubsetPair {
  at::Tensor a, b;
};
SubsetPair numpy_subsets(int64_t count_a, int64_t count_b, int64_t subsets, int64_t size, uint32_t seed);

}  // namespace adanat
