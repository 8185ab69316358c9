// The Inception Score: how sure a classifier is of each image, and how much the images differ.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/metrics/frechet.h"

namespace adanat {

// exp of the mean over a split's images of KL(p(y|x) || mean p(y|x)), for several splits; p is the softmax of
// the logits. Rows are handed over in order and not kept: what is summed per split is the mean distribution
// and sum p log p, in float64. Source: Salimans et al. 2016. Not thread-safe.
class InceptionScore {
 public:
  // split_of_row[i] is the split of row i, in [0, splits). float32_softmax: p is rounded to float32 (the ADM
  // evaluator).
  InceptionScore(std::vector<int32_t> split_of_row, int64_t splits, bool float32_softmax);
  // logits (B, K), any float type and device, the next B rows. RunError: another K, more rows than there are
  // splits for, or a value that is not finite.
  void add(const at::Tensor& logits);
  // Mean over the splits and their deviation (divided by their number). RunError if rows are missing or a
  // split is empty.
  MeanAndDeviation result() const;

 private:
  std::vector<int32_t> split_of_row_;
  int64_t splits_;
  bool float32_softmax_;
  int64_t rows_ = 0;
  std::vector<int64_t> counts_;  // per split
  std::vector<double> entropy_;  // per split: sum of p log p
  at::Tensor sums_;              // (splits, K) f64: sum of p
};

// torch-fidelity: `splits` parts of nearly equal size, i*count/splits .. (i+1)*count/splits, of the rows in
// the order of RandomState(seed).permutation(count); without `shuffle`, in their own order.
std::vector<int32_t> even_splits(int64_t count, int64_t splits, bool shuffle, uint32_t seed);
// ADM: chunks of `size` rows in order; a shorter last one counts as much as the others.
std::vector<int32_t> chunk_splits(int64_t count, int64_t size);

}  // namespace adanat
