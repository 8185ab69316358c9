// Every metric against tests/golden/data/metrics.json: values of numpy, scipy and torch-fidelity on inputs
// that a linear congruential generator makes (README beside it; x = 1664525 x + 1013904223 mod 2^32, feature
// = (x >> 8) / 2^24).
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "core/base/config.h"
#include "core/io/atomic_file.h"
#include "core/metrics/frechet.h"
#include "core/metrics/inception_score.h"
#include "core/metrics/manifold.h"
#include "core/metrics/random_state.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::golden;

at::Tensor lcg(int64_t n, int64_t d, uint32_t x) {
  at::Tensor out = at::empty({n, d});
  for (int64_t i = 0; i < n * d; ++i) {
    x = 1664525 * x + 1013904223;
    out.mutable_data_ptr<float>()[i] = float(x >> 8) * 0x1p-24f;
  }
  return out;
}
at::Tensor set_a(int64_t n, int64_t d) {
  return lcg(n, d, 1);
}
at::Tensor set_b(int64_t n, int64_t d) {
  return lcg(n, d, 2) * 0.75 + 0.125;
}

Json metrics() {
  return parse_json(read_file((testing::golden_dir() / "metrics.json").string()), "metrics.json");
}

GaussianStats stats_of(const at::Tensor& features, bool float32_mean = false) {
  GaussianAccumulator accumulator(features.size(1), float32_mean);
  accumulator.add(features);
  return accumulator.stats();
}

std::vector<double> doubles(const Json& j) {
  return j.get<std::vector<double>>();
}

TEST(GoldenMetricsFile, FrechetDistances) {
  const Json all = metrics()["fid"];
  EXPECT_EQ(all.size(), 3u);
  for (const auto& [name, want] : all.items()) {
    const int64_t d = want["d"];
    const at::Tensor a = set_a(want["nA"], d), b = set_b(want["nB"], d);
    const GaussianStats sa = stats_of(a), sb = stats_of(b);
    const double got = frechet_distance(sa, sb);
    // Where N < D half of the eigenvalues are rounding noise, whose roots are not small: 1e-8; the general
    // square root of the tools has more of it (6e-8 here): 1e-6 absolute against that.
    EXPECT_NEAR(got, want["fid_symmetric"].get<double>(), d == 128 ? 1e-8 : 1e-12) << name;
    EXPECT_NEAR(got, want["fid_sqrtm"].get<double>(), 1e-6) << name;
    EXPECT_NEAR(sa.covariance.trace().item<double>(), want["trace_A"].get<double>(), 1e-11) << name;
    EXPECT_NEAR(sb.covariance.trace().item<double>(), want["trace_B"].get<double>(), 1e-11) << name;
    EXPECT_NEAR(sa.mean[0].item<double>(), want["muA0"].get<double>(), 1e-14) << name;
    EXPECT_NEAR(sa.covariance[0][0].item<double>(), want["sigmaA00"].get<double>(), 1e-14) << name;
    EXPECT_NEAR(sa.covariance[0][1].item<double>(), want["sigmaA01"].get<double>(), 1e-14) << name;
    // Means in float32 row by row, as numpy adds them. The tool subtracts them in float32 as well: 3e-9 of
    // the mean term.
    EXPECT_NEAR(frechet_distance(stats_of(a, true), stats_of(b, true)),
                want["fid_float32_means"].get<double>(), d == 128 ? 1e-6 : 5e-9)
        << name;
  }
}

TEST(GoldenMetricsFile, KernelDistanceOfTheSameSubsets) {
  const at::Tensor a = set_a(500, 64), b = set_b(450, 64);
  const SubsetPair rows = numpy_subsets(500, 450, 10, 100, 2020);
  const MeanAndDeviation got = kernel_distance(a, b, rows.a, rows.b);
  const std::vector<double> f64 = doubles(metrics()["kid_float64"]), f32 = doubles(metrics()["kid_float32"]);
  EXPECT_NEAR(got.mean, f64[0], 1e-13);
  EXPECT_NEAR(got.deviation, f64[1], 1e-13);
  EXPECT_NEAR(kernel_distance(a.index_select(0, rows.a[0]), b.index_select(0, rows.b[0])), f64[2], 1e-13);
  // The tool computes in float32: half a thousandth of the deviation apart.
  EXPECT_NEAR(got.mean, f32[0], 2e-6);
  EXPECT_NEAR(got.deviation, f32[1], 2e-6);
  const at::Tensor all = at::arange(450).unsqueeze(0);
  EXPECT_NEAR(kernel_distance(a.narrow(0, 0, 450), b, all, all).mean, -2.8020424e-04, 1e-10);
}

MeanAndDeviation score(const at::Tensor& logits, std::vector<int32_t> splits, int64_t count,
                       bool narrow = false) {
  InceptionScore score(std::move(splits), count, narrow);
  for (int64_t i = 0; i < logits.size(0); i += 77)
    score.add(logits.slice(0, i, std::min(i + 77, logits.size(0))));
  return score.result();
}

TEST(GoldenMetricsFile, InceptionScores) {
  const at::Tensor logits = (lcg(1000, 10, 3) - 0.5) * 16;
  const Json want = metrics()["is"];
  const auto expect = [](const MeanAndDeviation& got, const std::vector<double>& wanted, double tolerance) {
    EXPECT_NEAR(got.mean, wanted[0], tolerance);
    EXPECT_NEAR(got.deviation, wanted[1], tolerance);
  };
  expect(score(logits, even_splits(1000, 10, true, 2020), 10), doubles(want["shuffle_seed2020_splits10"]),
         1e-12);
  expect(score(logits, even_splits(1000, 10, false, 0), 10), doubles(want["noshuffle_splits10"]), 1e-12);
  expect(score(logits, even_splits(1000, 1, true, 2020), 1), doubles(want["splits1"]), 1e-12);
  // ADM's chunks are the same as unshuffled splits where they divide evenly, but for float32 probabilities.
  expect(score(logits, chunk_splits(1000, 100), 10, true), doubles(want["noshuffle_splits10"]), 1e-6);
}

TEST(GoldenMetricsFile, RandomStream) {
  const Json want = metrics()["rng"];
  EXPECT_EQ(RandomState(2020).permutation(10),
            want["RandomState(2020).permutation(10)"].get<std::vector<int64_t>>());
  const std::vector<int64_t> all = RandomState(2020).permutation(50000);
  EXPECT_EQ(std::vector(all.begin(), all.begin() + 8),
            want["permutation(50000)_first8"].get<std::vector<int64_t>>());
  EXPECT_EQ(crc32(0, reinterpret_cast<const Bytef*>(all.data()), uInt(all.size() * 8)),
            want["permutation(50000)_crc32_of_int64le"].get<uint32_t>());
  const auto valid = RandomState(2020).choice(10000, 5000);
  EXPECT_EQ(std::vector(valid.begin(), valid.begin() + 6),
            want["torch_fidelity_cifar_valid_subset5000_first6"].get<std::vector<int64_t>>());
  RandomState random(2020);
  const auto first = random.choice(5000, 1000), second = random.choice(5000, 1000);
  EXPECT_EQ(std::vector(first.begin(), first.begin() + 6),
            (std::vector<int64_t>{2398, 2360, 3232, 27, 1246, 2217}));
  EXPECT_EQ(std::vector(second.begin(), second.begin() + 6),
            (std::vector<int64_t>{1923, 889, 1619, 2571, 4880, 4345}));
  EXPECT_TRUE(RandomState(1).permutation(0).empty());
  EXPECT_EQ(RandomState(1).permutation(1), std::vector<int64_t>{0});
  EXPECT_THROW(RandomState(1).choice(3, 4), RunError);
}

TEST(GoldenMetricsFile, PrecisionAndRecall) {
  const at::Tensor real = lcg(400, 4, 5), real6 = lcg(400, 6, 5);
  struct Row {
    at::Tensor generated, real;
    int precision, recall;
  };
  for (const Row& row :
       {Row{lcg(300, 4, 4) + 0.25, real, 178, 215}, Row{1.5 * lcg(300, 4, 4) - 0.25, real, 136, 394},
        Row{0.75 * lcg(300, 6, 4) + 0.125, real6, 297, 251}}) {
    for (const int64_t block : {2048, 97, 3}) {  // 3: blocks smaller than the number of neighbours
      if (block == 3 && row.precision != 178) continue;
      const ManifoldScores got = manifold_scores(row.generated, row.real, {.block = block});
      EXPECT_DOUBLE_EQ(got.precision, row.precision / 300.0) << block;
      EXPECT_DOUBLE_EQ(got.recall, row.recall / 400.0) << block;
    }
  }
}

TEST(GoldenMetrics, PrecisionAndRecallOfTorchFidelity) {
  const Json want = parse_json(golden("inception.safetensors").metadata.at("metrics"), "golden");
  for (const int64_t d : {16, 2048}) {
    const at::Tensor a = 1.5 * testing::input_float(cat("metric.a", d), {64, d}, 1).clamp_min(0);
    const at::Tensor b = 1.5 * (testing::input_float(cat("metric.b", d), {64, d}, 1, 0.1) +
                                0.3 * testing::input_float(cat("metric.b2", d), {64, 1}, 1))
                                   .clamp_min(0);
    for (const int64_t k : {3, 5}) {
      const ManifoldScores got = manifold_scores(a, b, {.neighbours = k});
      const Json& values = want[std::to_string(d)];
      EXPECT_NEAR(got.precision, values[cat("precision_k", k)].get<double>(), 1e-12) << d << " " << k;
      EXPECT_NEAR(got.recall, values[cat("recall_k", k)].get<double>(), 1e-12) << d << " " << k;
      EXPECT_NEAR(got.f_score, values[cat("f_score_k", k)].get<double>(), 1e-12) << d << " " << k;
      // Half precision moves a few of 64 memberships at most.
      const ManifoldScores half = manifold_scores(a, b, {.neighbours = k, .half = true});
      EXPECT_NEAR(half.precision, got.precision, 4.0 / 64);
      EXPECT_NEAR(half.recall, got.recall, 4.0 / 64);
      // Squared norms beyond 65504 do not fit float16: those blocks are float32, as the evaluator does it.
      const ManifoldScores large = manifold_scores(a * 512, b * 512, {.neighbours = k, .half = true});
      EXPECT_NEAR(large.precision, got.precision, 4.0 / 64);
      EXPECT_NEAR(large.recall, got.recall, 4.0 / 64);
    }
  }
}

TEST(GoldenMetrics, InceptionScoresOfTorchFidelity) {
  const Json want =
      parse_json(golden("inception.safetensors").metadata.at("metrics"), "golden")["inception_score"];
  const at::Tensor logits = testing::input_float("metric.logits", {64, 1008}, 4);
  for (const int64_t splits : {1, 7, 10}) {
    for (const bool shuffle : {false, true}) {
      const Json& values = want[cat("is_splits", splits, shuffle ? "_shuffle2020" : "_noshuffle")];
      const MeanAndDeviation got = score(logits, even_splits(64, splits, shuffle, 2020), splits);
      EXPECT_NEAR(got.mean, values["inception_score_mean"].get<double>(), 1e-7)
          << splits << shuffle;  // inputs: float32
      EXPECT_NEAR(got.deviation, values["inception_score_std"].get<double>(), 1e-7) << splits << shuffle;
    }
  }
}

}  // namespace
}  // namespace adanat
