// Do two sets of feature vectors lie in the same places: precision, recall, density, coverage by nearest
// neighbours.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace adanat {

struct ManifoldOptions {
  int64_t neighbours = 3;  // k of precision and recall (Kynkaanniemi et al. 2019, torch-fidelity, ADM)
  int64_t density_neighbours = 5;  // k of density and coverage (Naeem et al. 2020)
  // Squared distances in float16, as the ADM evaluator has them on a GPU: coarse enough to move the third
  // digit.
  bool half = false;
  int64_t block = 2048;  // rows and columns of distances that are in memory together
};

struct ManifoldScores {
  double precision = 0;  // share of generated vectors inside the ball of a real one
  double recall = 0;     // share of real vectors inside the ball of a generated one
  double f_score = 0;    // 2 p r / (p + r), 0 where both are 0
  double density = 0;    // real balls a generated vector lies in, mean, divided by k; may exceed 1
  double coverage = 0;   // share of real vectors with a generated one inside their ball
};

// generated (N, D), real (M, D), any float type, on the CPU; N, M > both k. A vector's ball reaches to its
// k-th nearest neighbour in its own set (itself not counted). Precision and recall include the ball's surface
// (<=), density and coverage do not (<), as their authors' programs. Distances in float64 (option `half`
// apart), in blocks: memory is O(block^2 + (N + M) k). RunError: too few vectors, other widths, values that
// are not finite. Source: torch-fidelity 0.4.0 metric_prc.py; guided-diffusion evaluations/evaluator.py;
// clovaai prdc.
ManifoldScores manifold_scores(const at::Tensor& generated, const at::Tensor& real,
                               const ManifoldOptions& options = {});

}  // namespace adanat
