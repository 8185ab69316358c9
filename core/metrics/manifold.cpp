#include "core/metrics/manifold.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "core/base/error.h"

namespace adanat {
namespace {

void check(const char* what, const at::Tensor& x, int64_t neighbours) {
  if (x.dim() != 2) throw RunError(cat("manifold: ", what, " features must be (N, D), got ", x.sizes()));
  if (x.size(0) <= neighbours)
    throw RunError(cat("manifold: ", neighbours, " nearest neighbours need more than ", neighbours, " ", what,
                       " images, got ", x.size(0)));
  if (!at::isfinite(x).all().item<bool>())
    throw RunError(cat("manifold: a ", what, " feature is not a finite number"));
}

// One block of a set: its vectors and their squared lengths, in the arithmetic of the distances.
struct Block {
  at::Tensor rows, norms;  // (n, D), (n)
};

class Distances {
 public:
  explicit Distances(const ManifoldOptions& options) : options_(options) {}

  int64_t blocks(const at::Tensor& x) const { return (x.size(0) + options_.block - 1) / options_.block; }
  int64_t begin(int64_t b) const { return b * options_.block; }

  Block block(const at::Tensor& x, int64_t b) const {
    const at::Tensor rows = x.slice(0, begin(b), std::min(x.size(0), begin(b + 1)));
    if (!options_.half) {
      const at::Tensor wide = rows.to(at::kDouble);
      return {wide, wide.square().sum(1)};
    }
    // float16 inputs and results, sums in float32: what a GPU's matrix product does.
    const at::Tensor narrow = rows.to(at::kHalf).to(at::kFloat);
    return {narrow, narrow.square().to(at::kHalf).to(at::kFloat).sum(1).to(at::kHalf)};
  }

  // Squared distances (n, m), >= 0.
  at::Tensor operator()(const Block& a, const Block& b) const {
    const at::Tensor product = at::matmul(a.rows, b.rows.t());
    if (!options_.half) return (a.norms.unsqueeze(1) + b.norms.unsqueeze(0) - 2 * product).clamp_min(0);
    const at::Tensor twice = product.to(at::kHalf).to(at::kFloat) * 2;
    const at::Tensor narrow = ((a.norms.to(at::kFloat).unsqueeze(1) - twice.to(at::kHalf).to(at::kFloat))
                                   .to(at::kHalf)
                                   .to(at::kFloat) +
                               b.norms.to(at::kFloat).unsqueeze(0))
                                  .to(at::kHalf)
                                  .to(at::kFloat);
    if (at::isfinite(narrow).all().item<bool>()) return narrow.clamp_min(0);
    // Beyond float16's range the evaluator computes the block again in float32.
    return (a.rows.square().sum(1).unsqueeze(1) + b.rows.square().sum(1).unsqueeze(0) - 2 * product)
        .clamp_min(0);
  }

 private:
  const ManifoldOptions& options_;
};

// (N, depth): squared distances of each row to its nearest neighbours in the same set, ascending, itself
// first.
at::Tensor nearest(const at::Tensor& x, int64_t depth, const Distances& distances) {
  std::vector<at::Tensor> out;
  for (int64_t i = 0; i < distances.blocks(x); ++i) {
    const Block a = distances.block(x, i);
    at::Tensor best;
    for (int64_t j = 0; j < distances.blocks(x); ++j) {
      at::Tensor d = distances(a, distances.block(x, j));
      // A vector's distance to itself is rounding; it must neither miss the first place nor exceed 0.
      if (i == j) d.diagonal().zero_();
      const at::Tensor all = best.defined() ? at::cat({best, d}, 1) : d;
      best = std::get<0>(at::topk(all, std::min(depth, all.size(1)), 1, /*largest=*/false, /*sorted=*/true));
    }
    out.push_back(best);
  }
  return at::cat(out);
}

double share(const at::Tensor& flags) {
  return flags.to(at::kDouble).mean().item<double>();
}

}  // namespace

ManifoldScores manifold_scores(const at::Tensor& generated, const at::Tensor& real,
                               const ManifoldOptions& options) {
  if (options.neighbours < 1 || options.density_neighbours < 1 || options.block < 1)
    throw RunError("manifold: neighbours and block must be at least 1");
  const int64_t k = options.neighbours, density_k = options.density_neighbours,
                depth = std::max(k, density_k) + 1;
  check("generated", generated, k);
  check("real", real, std::max(k, density_k));
  if (generated.size(1) != real.size(1))
    throw RunError(cat("manifold: ", generated.size(1), " against ", real.size(1), " dimensions"));
  const Distances distances(options);
  const at::Tensor real_near = nearest(real, depth, distances),
                   generated_near = nearest(generated, k + 1, distances);
  const at::Tensor real_ball = real_near.select(1, k), density_ball = real_near.select(1, density_k);
  const at::Tensor generated_ball = generated_near.select(1, k);

  at::Tensor in_real = at::zeros({generated.size(0)}, at::kBool),
             in_generated = at::zeros({real.size(0)}, at::kBool);
  at::Tensor covered = at::zeros({real.size(0)}, at::kBool);
  double memberships = 0;
  for (int64_t i = 0; i < distances.blocks(generated); ++i) {
    const Block a = distances.block(generated, i);
    const int64_t first = distances.begin(i), rows = a.rows.size(0);
    for (int64_t j = 0; j < distances.blocks(real); ++j) {
      const Block b = distances.block(real, j);
      const int64_t left = distances.begin(j), columns = b.rows.size(0);
      const at::Tensor d = distances(a, b);
      in_real.narrow(0, first, rows).logical_or_((d <= real_ball.narrow(0, left, columns)).any(1));
      in_generated.narrow(0, left, columns)
          .logical_or_((d <= generated_ball.narrow(0, first, rows).unsqueeze(1)).any(0));
      const at::Tensor dense = d < density_ball.narrow(0, left, columns);
      covered.narrow(0, left, columns).logical_or_(dense.any(0));
      memberships += dense.sum().item<double>();
    }
  }
  ManifoldScores out;
  out.precision = share(in_real);
  out.recall = share(in_generated);
  out.f_score = 2 * out.precision * out.recall / std::max(1e-5, out.precision + out.recall);
  out.density = memberships / double(density_k) / double(generated.size(0));
  out.coverage = share(covered);
  return out;
}

}  // namespace adanat
