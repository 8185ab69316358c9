#include "core/metrics/frechet.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/diag_embed.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_eigvals.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/real.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <set>

#include "core/base/config.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::golden;
using testing::input_float;

GaussianStats stats_of(const at::Tensor& features) {
  GaussianAccumulator accumulator(features.size(1));
  accumulator.add(features);
  return accumulator.stats();
}

// The sets of the golden metrics, width d: README, "inception".
std::pair<at::Tensor, at::Tensor> golden_sets(int64_t d) {
  const at::Tensor a = 1.5 * input_float(cat("metric.a", d), {64, d}, 1).clamp_min(0);
  const at::Tensor b = 1.5 * (input_float(cat("metric.b", d), {64, d}, 1, 0.1) +
                              0.3 * input_float(cat("metric.b2", d), {64, 1}, 1))
                                 .clamp_min(0);
  return {a, b};
}

Json golden_metrics(int64_t d) {
  return parse_json(golden("inception.safetensors").metadata.at("metrics"), "golden").at(std::to_string(d));
}

TEST(GoldenMetrics, TheInputsAreTheStoredOnes) {
  const auto [a, b] = golden_sets(16);
  EXPECT_CLOSE(a, golden("inception.safetensors")["metric.16.a"], 1e-6);
  EXPECT_CLOSE(b, golden("inception.safetensors")["metric.16.b"], 1e-6);
}

TEST(GoldenMetrics, FrechetDistance) {
  const auto [a, b] = golden_sets(16);
  const Json want = golden_metrics(16);
  const GaussianStats sa = stats_of(a), sb = stats_of(b);
  EXPECT_NEAR(frechet_distance(sa, sb), want["fid_exact_f64"].get<double>(), 1e-8);
  EXPECT_NEAR(sa.covariance.diagonal().sum().item<double>(), want["trace_a"].get<double>(), 1e-6);
  EXPECT_NEAR(sb.covariance.diagonal().sum().item<double>(), want["trace_b"].get<double>(), 1e-6);
  EXPECT_NEAR((sa.mean - sb.mean).square().sum().item<double>(), want["mean_term"].get<double>(), 1e-7);
}

TEST(GoldenMetrics, FrechetDistanceWithFewerVectorsThanDimensions) {
  const auto [a, b] = golden_sets(2048);
  EXPECT_NEAR(frechet_distance(stats_of(a), stats_of(b)), golden_metrics(2048)["fid_exact_f64"].get<double>(),
              1e-3);
}

TEST(GoldenMetrics, KernelDistance) {
  for (const int64_t d : {16, 2048}) {
    const auto [a, b] = golden_sets(d);
    const Json want = golden_metrics(d);
    const testing::Golden& file = golden("inception.safetensors");
    EXPECT_NEAR(kernel_distance(a, b), want["kid_full_unbiased_f64"].get<double>(), 1e-9) << d;
    const MeanAndDeviation subsets = kernel_distance(a, b, file[cat("metric.", d, ".kid_subset_a")],
                                                     file[cat("metric.", d, ".kid_subset_b")]);
    EXPECT_NEAR(subsets.mean, want["kid_subsets_mean_f64"].get<double>(), 1e-8) << d;
    EXPECT_NEAR(subsets.deviation, want["kid_subsets_std_f64"].get<double>(), 1e-8) << d;
  }
}

TEST(Frechet, ClosedFormForDiagonalCovariances) {
  const at::Tensor a = at::tensor({4.0, 1.0, 0.25}, at::kDouble),
                   b = at::tensor({1.0, 9.0, 0.0}, at::kDouble);
  const GaussianStats sa{10, at::tensor({1.0, 2.0, 3.0}, at::kDouble), at::diag_embed(a)};
  const GaussianStats sb{10, at::tensor({1.0, 0.0, 2.0}, at::kDouble), at::diag_embed(b)};
  // |(0, 2, 1)|^2 + (2-1)^2 + (1-3)^2 + (0.5-0)^2
  EXPECT_NEAR(frechet_distance(sa, sb), 5 + 1 + 4 + 0.25, 1e-12);
}

TEST(Frechet, CorrelatedAgainstTheUnsymmetricFormula) {
  at::manual_seed(1);
  const at::Tensor a = at::matmul(at::randn({200, 7}, at::kDouble), at::randn({7, 7}, at::kDouble));
  const at::Tensor b = at::matmul(at::randn({150, 7}, at::kDouble), at::randn({7, 7}, at::kDouble)) + 0.5;
  const GaussianStats sa = stats_of(a), sb = stats_of(b);
  // tr sqrt(AB) by the eigenvalues of the product itself.
  const double cross = at::real(at::linalg_eigvals(at::matmul(sa.covariance, sb.covariance)))
                           .clamp_min(0)
                           .sqrt()
                           .sum()
                           .item<double>();
  const double want = (sa.mean - sb.mean).square().sum().item<double>() +
                      sa.covariance.trace().item<double>() + sb.covariance.trace().item<double>() - 2 * cross;
  EXPECT_NEAR(frechet_distance(sa, sb), want, 1e-8 * want);
  EXPECT_NEAR(frechet_distance(sb, sa), want, 1e-8 * want) << "symmetric";
}

TEST(Frechet, OfASetWithItselfIsNothing) {
  at::manual_seed(2);
  const at::Tensor a = at::randn({500, 32}), order = at::randperm(500);
  // Computed twice, in another order: no short cut for equal inputs can help.
  const double distance = frechet_distance(stats_of(a), stats_of(a.index_select(0, order)));
  EXPECT_GE(distance, 0);
  EXPECT_LT(distance, 1e-10);
  EXPECT_GT(frechet_distance(stats_of(a), stats_of(a + 0.1)), 0.3) << "32 * 0.01";
}

TEST(GaussianAccumulator, BatchesEqualOnePass) {
  at::manual_seed(3);
  const at::Tensor x = at::randn({301, 9}) * 3 + 100;  // far from 0: naive sums of squares would lose digits
  const GaussianStats whole = stats_of(x);
  GaussianAccumulator parts(9);
  parts.add(x.narrow(0, 0, 1));
  parts.add(x.narrow(0, 1, 0));
  parts.add(x.narrow(0, 1, 99));
  parts.add(x.narrow(0, 100, 201));
  const GaussianStats got = parts.stats();
  EXPECT_EQ(got.count, 301);
  EXPECT_TRUE(got.mean.equal(whole.mean)) << "batching changes no digit";
  EXPECT_TRUE(got.covariance.equal(whole.covariance));
  const at::Tensor d = x.to(at::kDouble) - x.to(at::kDouble).mean(0);
  EXPECT_CLOSE(whole.covariance, at::matmul(d.t(), d) / 300, 1e-10);
}

TEST(GaussianAccumulator, Errors) {
  GaussianAccumulator accumulator(3);
  EXPECT_THROW(accumulator.stats(), RunError);
  EXPECT_THROW(accumulator.add(at::zeros({2, 4})), RunError);
  EXPECT_THROW(accumulator.add(at::full({1, 3}, NAN)), RunError);
  accumulator.add(at::zeros({1, 3}));
  EXPECT_THROW(accumulator.stats(), RunError) << "one vector has no covariance";
}

TEST(KernelDistance, BySumsOverPairs) {
  at::manual_seed(4);
  const at::Tensor a = at::randn({6, 5}, at::kDouble), b = at::randn({4, 5}, at::kDouble) + 0.5;
  const auto k = [](const at::Tensor& x, const at::Tensor& y) {
    return std::pow((x * y).sum().item<double>() / 5 + 1, 3);
  };
  double aa = 0, bb = 0, ab = 0;
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j) aa += i != j ? k(a[i], a[j]) / 30 : 0;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) bb += i != j ? k(b[i], b[j]) / 12 : 0;
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 4; ++j) ab += k(a[i], b[j]) / 24;
  EXPECT_NEAR(kernel_distance(a, b), aa + bb - 2 * ab, 1e-10);
  EXPECT_THROW(kernel_distance(a, b.narrow(0, 0, 1)), RunError);
}

TEST(RandomSubsets, DifferentRowsThatDependOnSeedSetAndSubset) {
  const at::Tensor rows = random_subsets(50, 4, 20, 9, 0);
  for (int64_t s = 0; s < 4; ++s) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 20; ++i) seen.insert(rows[s][i].item<int64_t>());
    EXPECT_EQ(seen.size(), 20u);
    EXPECT_GE(*seen.begin(), 0);
    EXPECT_LT(*seen.rbegin(), 50);
  }
  EXPECT_TRUE(rows.equal(random_subsets(50, 4, 20, 9, 0)));
  EXPECT_TRUE(rows.narrow(0, 0, 2).equal(random_subsets(50, 2, 20, 9, 0)))
      << "more subsets leave the first ones";
  EXPECT_FALSE(rows.equal(random_subsets(50, 4, 20, 9, 1)));
  EXPECT_FALSE(rows.equal(random_subsets(50, 4, 20, 10, 0)));
  EXPECT_FALSE(rows[0].equal(rows[1]));
  EXPECT_THROW(random_subsets(5, 1, 6, 0, 0), RunError);
}

// The larger of 0 and a value that is no number is 0: a perfect score.
TEST(Frechet, StatisticsBeyondFloat64AreNoPerfectScore) {
  const GaussianStats a{10, at::zeros({2}, at::kDouble), at::eye(2, at::kDouble)};
  const GaussianStats huge{10, at::zeros({2}, at::kDouble), at::eye(2, at::kDouble) * 1e308};
  const GaussianStats far{10, at::full({2}, 1e200, at::kDouble), at::eye(2, at::kDouble)};
  EXPECT_THROW(frechet_distance(huge, huge), RunError);
  EXPECT_THROW(frechet_distance(a, far), RunError);
  EXPECT_NEAR(frechet_distance(a, a), 0, 1e-12);
}

}  // namespace
}  // namespace adanat
