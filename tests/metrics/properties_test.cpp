// What must hold for any features, whatever their values.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.h"
#include "core/metrics/inception_score.h"
#include "core/metrics/manifold.h"
#include "support/support.h"

namespace adanat {
namespace {

GaussianStats stats_of(const at::Tensor& features, int64_t batch = 1 << 20) {
  GaussianAccumulator accumulator(features.size(1));
  for (int64_t i = 0; i < features.size(0); i += batch)
    accumulator.add(features.slice(0, i, std::min(i + batch, features.size(0))));
  return accumulator.stats();
}

TEST(FrechetProperties, OfASetWithItselfBySizes) {
  for (const auto& [n, d] : std::vector<std::pair<int64_t, int64_t>>{
           {2, 64}, {50, 64}, {64, 64}, {65, 64}, {1000, 64}, {100, 300}}) {
    at::manual_seed(uint64_t(n * 1000 + d));
    const at::Tensor x = at::randn({n, d}) * 2 + 1;
    const GaussianStats a = stats_of(x),
                        b = stats_of(x.index_select(0, at::randperm(n)));  // computed anew, another order
    const double trace = a.covariance.trace().item<double>();
    EXPECT_LE(frechet_distance(a, b), n > d ? 1e-6 * (1 + 2 * trace) : 1e-4 * trace) << n << " " << d;
    EXPECT_GE(frechet_distance(a, b), 0);
  }
}

TEST(FrechetProperties, BatchesChangeNoDigit) {
  at::manual_seed(5);
  const at::Tensor x = at::randn({700, 33}) + 3;
  const GaussianStats whole = stats_of(x);
  for (const int64_t batch : {1, 31, 256, 257, 699}) {
    const GaussianStats parts = stats_of(x, batch);
    EXPECT_TRUE(parts.mean.equal(whole.mean)) << batch;
    EXPECT_TRUE(parts.covariance.equal(whole.covariance)) << batch;
  }
}

TEST(FrechetProperties, UnitGaussiansOfTheToolsOwnTest) {
  // pytorch-fid tests/test_fid_score.py: identity covariances, means 0 and 1.
  const int64_t d = 256;
  const GaussianStats a{10, at::zeros({d}, at::kDouble), at::eye(d, at::kDouble)};
  const GaussianStats b{10, at::ones({d}, at::kDouble), at::eye(d, at::kDouble)};
  EXPECT_NEAR(frechet_distance(a, b), double(d), 1e-9);
}

TEST(FrechetProperties, KnownGaussiansAreApproached) {
  at::manual_seed(6);
  // N(0, I) against N(0.5, 4 I) in 3 dimensions: 3 * 0.25 + 3 * (1 - 2)^2.
  const double got =
      frechet_distance(stats_of(at::randn({200000, 3})), stats_of(at::randn({200000, 3}) * 2 + 0.5));
  EXPECT_NEAR(got, 3.75, 0.03);  // four deviations of the estimate
}

TEST(FrechetProperties, Float32MeansAreNumpys) {
  // 16777216 + 1 is 16777216 in float32: adding row by row loses the ones, which a pairwise or float64 sum
  // would not.
  at::Tensor x = at::ones({5, 2});
  x[0][0] = 16777216.0;
  GaussianAccumulator narrow(2, true), wide(2);
  narrow.add(x.narrow(0, 0, 2)), narrow.add(x.narrow(0, 2, 3)), wide.add(x);
  EXPECT_EQ(narrow.stats().mean[0].item<double>(), double(16777216.0f / 5.0f));
  EXPECT_EQ(wide.stats().mean[0].item<double>(), 16777220.0 / 5);
  EXPECT_TRUE(narrow.stats().covariance.equal(wide.stats().covariance));
}

TEST(KernelDistanceProperties, OrderAndSymmetry) {
  at::manual_seed(7);
  const at::Tensor a = at::randn({60, 12}), b = at::randn({50, 12}) + 0.2;
  const double d = kernel_distance(a, b);
  EXPECT_NEAR(kernel_distance(a.index_select(0, at::randperm(60)), b), d, 1e-12);
  EXPECT_NEAR(kernel_distance(b, a), d, 1e-12);
  // Unbiased: over disjoint samples of one distribution the mean is 0, so some values are negative.
  double sum = 0;
  for (int i = 0; i < 200; ++i) sum += kernel_distance(at::randn({20, 4}), at::randn({20, 4})) / 200;
  EXPECT_NEAR(sum, 0, 0.15);  // four deviations of the mean
}

TEST(InceptionScoreProperties, ExtremesAndOrder) {
  // Every image sure of its own class: the score is the number of classes. All images alike: 1.
  const at::Tensor sure = at::eye(8) * 200;
  InceptionScore best(even_splits(8, 1, false, 0), 1, false), worst(even_splits(8, 1, false, 0), 1, false);
  best.add(sure), worst.add(at::ones({8, 8}));
  EXPECT_NEAR(best.result().mean, 8, 1e-9);
  EXPECT_NEAR(worst.result().mean, 1, 1e-12);
  at::manual_seed(8);
  const at::Tensor logits = at::randn({40, 5}) * 3;
  InceptionScore one(even_splits(40, 1, false, 0), 1, false), other(even_splits(40, 1, true, 9), 1, false);
  one.add(logits), other.add(logits.index_select(0, at::randperm(40)));
  EXPECT_NEAR(one.result().mean, other.result().mean, 1e-12);
}

// The ADM evaluator's probabilities are float32: what is smaller than its rounding is lost.
TEST(InceptionScoreProperties, ProbabilitiesInFloat32) {
  at::manual_seed(14);
  const at::Tensor logits = at::randn({30, 5}) * 6;
  const auto score = [&](bool narrow) {
    InceptionScore out(even_splits(30, 1, false, 0), 1, narrow);
    out.add(logits);
    return out.result().mean;
  };
  const auto expected = [&](at::ScalarType type) {
    const at::Tensor x = logits.to(type), p = at::softmax(x, 1).to(at::kDouble),
                     log_p = at::log_softmax(x, 1).to(at::kDouble), q = p.mean(0);
    return std::exp((p * log_p).sum(1).mean().item<double>() - (q * q.log()).sum().item<double>());
  };
  EXPECT_NEAR(score(true), expected(at::kFloat), 1e-13);
  EXPECT_NEAR(score(false), expected(at::kDouble), 1e-13);
  EXPECT_GT(std::abs(score(true) - score(false)), 1e-11);
}

TEST(InceptionScoreProperties, SplitsAndErrors) {
  EXPECT_EQ(even_splits(7, 3, false, 0), (std::vector<int32_t>{0, 0, 1, 1, 2, 2, 2}));  // bounds i * 7 / 3
  EXPECT_EQ(chunk_splits(5, 2), (std::vector<int32_t>{0, 0, 1, 1, 2}));
  InceptionScore few(even_splits(3, 10, false, 0), 10, false);
  EXPECT_THROW(few.result(), RunError) << "rows are missing";
  few.add(at::zeros({3, 4}));
  EXPECT_THROW(few.result(), RunError) << "empty splits";
  EXPECT_THROW(few.add(at::zeros({1, 4})), RunError) << "more rows than announced";
  InceptionScore bad(even_splits(2, 1, false, 0), 1, false);
  EXPECT_THROW(bad.add(at::full({1, 3}, NAN)), RunError);
  EXPECT_THROW(InceptionScore({0, 2}, 2, false), RunError);
}

TEST(ManifoldProperties, ModeCollapseAndSpread) {
  // torch-fidelity tests test_prc_convention.py: a collapsed generator is precise and recalls little.
  at::manual_seed(9);
  const at::Tensor collapsed = at::randn({500, 16}) * 0.1, real = at::randn({500, 16}) * 3;
  const ManifoldScores got = manifold_scores(collapsed, real);
  EXPECT_GT(got.precision, 0.8);
  EXPECT_LT(got.recall, 0.3);
  const ManifoldScores turned = manifold_scores(real, collapsed);
  EXPECT_DOUBLE_EQ(turned.precision, got.recall);
  EXPECT_DOUBLE_EQ(turned.recall, got.precision);
  // Two samples of one distribution: density about 1 (Naeem et al. 2020, section 4), coverage about 1 - 2^-k.
  const ManifoldScores same = manifold_scores(at::randn({1500, 8}), at::randn({1500, 8}));
  EXPECT_NEAR(same.density, 1, 0.1);
  EXPECT_NEAR(same.coverage, 1 - 1.0 / 32, 0.02);
  const at::Tensor far = real + 100;
  const ManifoldScores none = manifold_scores(far, real);
  EXPECT_EQ(none.precision + none.recall + none.density + none.coverage + none.f_score, 0);
}

// What manifold_scores says, against the definitions with distances of single pairs.
template <class Distance>
void expect_scores_of_loops(const at::Tensor& g, const at::Tensor& r, Distance distance,
                            const ManifoldOptions& options) {
  const auto ball = [&](const at::Tensor& set, int64_t i, int64_t k) {
    std::vector<double> all;
    for (int64_t j = 0; j < set.size(0); ++j)
      if (j != i) all.push_back(distance(set[i], set[j]));
    std::sort(all.begin(), all.end());
    return all[size_t(k - 1)];
  };
  const int64_t n = g.size(0), m = r.size(0), k = options.neighbours;
  std::vector<double> ball_g, ball_r, dense_r;
  for (int64_t i = 0; i < n; ++i) ball_g.push_back(ball(g, i, k));
  for (int64_t j = 0; j < m; ++j)
    ball_r.push_back(ball(r, j, k)), dense_r.push_back(ball(r, j, options.density_neighbours));
  std::vector<bool> precise(size_t(n), false), recalled(size_t(m), false), covered(size_t(m), false);
  double memberships = 0;
  for (size_t i = 0; i < size_t(n); ++i)
    for (size_t j = 0; j < size_t(m); ++j) {
      const double d = distance(g[int64_t(i)], r[int64_t(j)]);
      if (d <= ball_r[j]) precise[i] = true;
      if (d <= ball_g[i]) recalled[j] = true;
      if (d < dense_r[j]) covered[j] = true, ++memberships;
    }
  const auto share = [](const std::vector<bool>& flags) {
    return double(std::count(flags.begin(), flags.end(), true)) / double(flags.size());
  };
  const ManifoldScores got = manifold_scores(g, r, options);
  EXPECT_DOUBLE_EQ(got.precision, share(precise));
  EXPECT_DOUBLE_EQ(got.recall, share(recalled));
  EXPECT_DOUBLE_EQ(got.density, memberships / double(options.density_neighbours) / double(n));
  EXPECT_DOUBLE_EQ(got.coverage, share(covered));
}

TEST(ManifoldProperties, ByLoopsOverPairs) {
  at::manual_seed(10);
  const at::Tensor g = at::randn({23, 3}, at::kDouble), r = at::randn({31, 3}, at::kDouble) + 0.4;
  const auto distance = [](const at::Tensor& x, const at::Tensor& y) {
    return (x - y).square().sum().item<double>();
  };
  expect_scores_of_loops(g, r, distance, {.neighbours = 2, .density_neighbours = 4, .block = 7});
}

// guided-diffusion evaluations/evaluator.py, _batch_pairwise_distances, one pair at a time: every operation's
// result is rounded to float16, and a product's sum is kept wider. (Values of few bits: sums are exact in
// float32, so their order does not matter.) A distance of a vector to itself is 0 here.
TEST(ManifoldProperties, HalfDistancesByLoopsOverPairs) {
  const auto half = [](float value) { return float(c10::Half(value)); };
  const auto distance = [&](const at::Tensor& x, const at::Tensor& y) {
    float norm_x = 0, norm_y = 0, product = 0;
    for (int64_t k = 0; k < x.size(0); ++k) {
      const float a = half(x[k].item<float>()), b = half(y[k].item<float>());
      norm_x += half(a * a), norm_y += half(b * b), product += a * b;
    }
    return double(std::max(0.0f, half(half(half(norm_x) - half(2 * half(product))) + half(norm_y))));
  };
  at::manual_seed(11);
  // 8 to 63 in sixteenths, and what an input of float16 does not hold.
  const auto set = [](int64_t n, double centre) {
    return (((at::randn({n, 3}) * 6 + centre).clamp(8, 63) * 16).round() + 0.0078125) / 16;
  };
  const at::Tensor g = set(40, 33);
  at::Tensor r = set(45, 36);
  for (int64_t i = 1; i < 8; ++i) r[i] = r[0] + double(i) / 16;  // nearer than float16 can tell
  const ManifoldOptions options{.neighbours = 3, .density_neighbours = 5, .half = true, .block = 16};
  expect_scores_of_loops(g, r, distance, options);
}

TEST(ManifoldProperties, Errors) {
  const at::Tensor x = at::zeros({9, 2});
  EXPECT_THROW(manifold_scores(at::zeros({3, 2}), x), RunError) << "k = 3 needs 4";
  EXPECT_THROW(manifold_scores(x, at::zeros({5, 2})), RunError) << "density's k = 5 needs 6";
  EXPECT_THROW(manifold_scores(x, at::zeros({9, 3})), RunError);
  EXPECT_THROW(manifold_scores(x, at::full({9, 2}, INFINITY)), RunError);
  // Copies of one point: every distance 0, every ball a point, whose surface counts for precision and recall
  // alone.
  const ManifoldScores got = manifold_scores(x, x);
  EXPECT_EQ(got.precision, 1);
  EXPECT_EQ(got.recall, 1);
  EXPECT_EQ(got.density, 0);
  EXPECT_EQ(got.coverage, 0);
}

}  // namespace
}  // namespace adanat
