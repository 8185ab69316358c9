// What a protocol fixes: its settings, what becomes of pixels, which features, types and draws make a figure.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "apps/pipeline/evaluate.h"
#include "core/data/sequential.h"
#include "core/metrics/manifold.h"
#include "io/bytes.h"
#include "support/random_inception.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::expect_input_error;

// The table of docs/evaluation.md, as the program prints it.
TEST(Protocols, AreThoseOfTheManual) {
  const std::string types = "float32 features, float32 mean, float64 covariance; ",
                    wide = "float32 features, float64 mean, float64 covariance; ",
                    draws = "kernel distance of 100 subsets of 1000", fixed = draws + " (numpy-2020); ",
                    splits = "10 shuffled splits of the score in float64; 3 and 5 neighbours; ";
  const std::map<std::string, std::string> want{
      {"adm", "TF1 bilinear resize, (x-128)/128, from bytes, " + types + fixed +
                  "chunks of 5000 of the score in float32; 3 and 5 neighbours; random classes"},
      {"torch-fidelity",
       "TF1 bilinear resize, (x-128)/128, from bytes, " + types + fixed + splits + "random classes"},
      {"pytorch-fid",
       "half-pixel bilinear resize, 2x/255-1, from bytes, " + wide + fixed + splits + "balanced classes"},
      {"clean", "Pillow bicubic resize, clipped, (x-128)/128, from bytes, " + types + draws +
                    " or fewer (numpy-2020); " + splits + "balanced classes"},
      {"adanat", "half-pixel bilinear resize, 2x/255-1, generated images not rounded, " + wide + fixed +
                     splits + "random classes"},
      {"classifier", "the network's own preprocessing, from bytes, " + wide + draws + " (philox-2020); " +
                         splits + "reference classes"}};
  for (const auto& [name, text] : want)
    EXPECT_EQ(describe(protocol_by_name(name)), "protocol " + name + ": " + text);
}

TEST(Protocols, ValuesThatNothingActsOnAreRefused) {
  const auto refused = [](auto change, const char* key) {
    Protocol p = protocol_by_name("adanat");
    change(p);
    expect_input_error([&] { p.validate(); }, {key});
  };
  refused([](Protocol& p) { p.normalise = "(x-128)/128"; }, "normalise");
  refused([](Protocol& p) { p.resize = "tf1-bilinear"; }, "normalise");
  refused([](Protocol& p) { p.features_dtype = "float64"; }, "features_dtype");
  refused([](Protocol& p) { p.covariance_dtype = "float32"; }, "covariance_dtype");
}

// (1, 3, H, W) u8 whose value depends on the column alone.
template <class Value>
at::Tensor columns(int64_t height, int64_t width, Value value) {
  at::Tensor out = at::zeros({1, 3, height, width}, at::kByte);
  for (int64_t x = 0; x < width; ++x) out.select(3, x).fill_(int64_t(value(x)));
  return out;
}

at::Tensor prepared(const char* protocol, const at::Tensor& images) {
  return prepare_images(protocol_by_name(protocol), images, at::kCPU);
}

TEST(PreparedImages, ResizeAndNormaliseByTheProtocol) {
  const at::Tensor ramp = columns(6, 8, [](int64_t x) { return 30 * x; });
  const at::Tensor position = at::arange(299, at::kDouble) * (8.0 / 299);
  const at::Tensor corner = 30 * position.clamp_max(7),
                   centre = 30 * (position + 4.0 / 299 - 0.5).clamp(0, 7);
  const auto row = [](const at::Tensor& x) { return x[0][1][150].to(at::kDouble); };
  for (const char* name : {"adm", "torch-fidelity"})
    EXPECT_CLOSE(row(prepared(name, ramp)), (corner - 128) / 128, 1e-5) << name;
  for (const char* name : {"pytorch-fid", "adanat"})
    EXPECT_CLOSE(row(prepared(name, ramp)), 2 * centre / 255 - 1, 1e-5) << name;
  // A cubic filter keeps a ramp as it is where all of it lies inside.
  EXPECT_CLOSE(row(prepared("clean", ramp)).narrow(0, 100, 100), ((centre - 128) / 128).narrow(0, 100, 100),
               1e-5);
  EXPECT_CLOSE(prepared("classifier", ramp), ramp.to(at::kFloat) / 255, 1e-7);
  // Shrinking: the bilinear rules pick pixels, Pillow's filter sees them all.
  const at::Tensor comb = columns(4, 598, [](int64_t x) { return x % 2 * 200; });
  EXPECT_CLOSE(row(prepared("adm", comb)), at::full({299}, -1.0, at::kDouble), 1e-6);
  EXPECT_CLOSE(row(prepared("clean", comb)).narrow(0, 5, 289),
               at::full({289}, (100 - 128) / 128.0, at::kDouble), 1e-5);
}

TEST(PreparedImages, CleanIsClippedAndNotRounded) {
  const at::Tensor edge = columns(6, 8, [](int64_t x) { return x < 4 ? 0 : 255; });
  const at::Tensor pixels = prepared("clean", edge)[0][0][150] * 128 + 128;
  EXPECT_EQ(pixels.min().item<float>(), 0) << "the filter undershoots beside an edge";
  EXPECT_EQ(pixels.max().item<float>(), 255);
  EXPECT_GT((pixels - pixels.round()).abs().max().item<float>(), 0.1);
  // A folder's images are resized while they are read, to the same numbers.
  const testing::TempDir dir;
  Image image{8, 6, {}};
  for (int64_t i = 0; i < 6 * 8 * 3; ++i) image.rgb.push_back(i / 3 % 8 < 4 ? 0 : 255);
  write_png(dir / "edge.png", image);
  const auto data = open_dataset(dir.path());
  SequentialReader reader(*data, {.pillow_299 = true});
  EXPECT_CLOSE(prepared("clean", reader.next()->images)[0][0][150] * 128 + 128, pixels, 0);
}

TEST(PreparedImages, ABatchIsItsImages) {
  const at::Tensor images = at::randint(256, {19, 3, 10, 12}).to(at::kByte);
  for (const char* name : {"adm", "pytorch-fid", "clean"}) {
    const at::Tensor all = prepared(name, images);
    ASSERT_EQ(all.sizes(), (at::IntArrayRef{19, 3, 299, 299}));
    for (const int64_t i : {0, 7, 8, 18})
      EXPECT_TRUE(all.narrow(0, i, 1).equal(prepared(name, images.narrow(0, i, 1)))) << name << " " << i;
  }
}

TEST(PreparedImages, UnroundedImagesStayUnrounded) {
  const at::Tensor unit = at::full({1, 3, 4, 4}, 0.3, at::kFloat);  // 76.5 of 255
  EXPECT_CLOSE(prepared("adanat", unit), at::full({1, 3, 299, 299}, -0.4, at::kFloat), 1e-6);
}

TEST(Measurer, TakesTheLayersOfTheFidTools) {
  const at::NoGradGuard no_grad;
  const testing::TempDir dir;
  const TensorMap weights = testing::random_inception();
  write_tensors(dir / "inception.safetensors", weights);
  const Protocol p = protocol_by_name("adm");
  Measurer measurer = Measurer::open(dir / "inception.safetensors", p, /*spatial=*/true, at::kCPU);
  const at::Tensor images = at::randint(256, {2, 3, 16, 16}).to(at::kByte);
  const FeatureRows rows = measurer.extract(images);
  InceptionNet net(weights, "test");
  const auto taps = net.forward_prepared(prepare_images(p, images, at::kCPU),
                                         {"2048", "logits_unbiased", "spatial", "logits"});
  EXPECT_CLOSE(rows.pool, taps[0], 1e-5);
  EXPECT_CLOSE(rows.logits, taps[1], 1e-5);
  EXPECT_CLOSE(rows.spatial, taps[2], 1e-5);
  EXPECT_FALSE(testing::close(rows.logits, taps[3], 1e-2)) << "the bias is seen";
  EXPECT_EQ(rows.pool.scalar_type(), at::kFloat) << p.features_dtype;
  expect_input_error(
      [&] { Measurer::open(dir / "inception.safetensors", protocol_by_name("classifier"), false, at::kCPU); },
      {"inception", "classifier"});
}

// Two sets with all features, measured under a protocol, and what the metrics say of these by themselves.
struct Sets {
  at::Tensor pool_a = at::randn({60, 6}) * 4 + 60, pool_b = at::randn({45, 6}) * 3 + 59;
  at::Tensor spatial_a = at::randn({60, 4}), spatial_b = at::randn({45, 4}) + 1;
  at::Tensor logits = at::randn({60, 5}) * 3;
};

MeasuredSet measured(const Protocol& p, const MetricSet& metrics, const at::Tensor& pool,
                     const at::Tensor& logits, const at::Tensor& spatial) {
  MeasuredSet set(p, metrics, pool.size(0));
  set.add({pool, logits.narrow(0, 0, pool.size(0)), spatial}, {});
  return set;
}

GaussianStats stats_of(const at::Tensor& features, bool float32_mean) {
  GaussianAccumulator accumulator(features.size(1), float32_mean);
  accumulator.add(features);
  return accumulator.stats();
}

TEST(MeasuredSet, EveryFigureIsTheMetricsUnderTheProtocolsSettings) {
  at::manual_seed(21);
  const Sets s;
  for (const std::string& name : protocol_names()) {
    SCOPED_TRACE(name);
    Protocol p = protocol_by_name(name);
    p.kid_subsets = 3, p.kid_subset_size = name == "clean" ? 1000 : 20;
    p.neighbours = 4, p.density_neighbours = 7, p.is_chunk = p.is_chunk > 0 ? 25 : 0;
    p.half_distances = name == "adm";
    const MetricSet metrics{
        .frechet = true, .kernel = true, .score = true, .manifold = true, .spatial = true};
    const MeasuredSet a = measured(p, metrics, s.pool_a, s.logits, s.spatial_a),
                      b = measured(p, metrics, s.pool_b, s.logits, s.spatial_b);
    const auto got = compare_sets(a, "a", b, "b", p, metrics);

    const bool narrow = name == "adm" || name == "torch-fidelity" || name == "clean";  // float32 means
    const GaussianStats sa = stats_of(s.pool_a, narrow), sb = stats_of(s.pool_b, narrow);
    EXPECT_TRUE(a.stats().mean.equal(sa.mean));
    EXPECT_FALSE(a.stats().mean.equal(stats_of(s.pool_a, !narrow).mean)) << "the type of the mean is seen";
    EXPECT_EQ(a.stats().covariance.scalar_type(), at::kDouble) << p.covariance_dtype;
    SubsetPair rows = numpy_subsets(60, 45, 3, name == "clean" ? 45 : 20, 2020);
    if (name == "classifier") rows = {random_subsets(60, 3, 20, 2020, 0), random_subsets(45, 3, 20, 2020, 1)};
    const MeanAndDeviation kernel = kernel_distance(s.pool_a, s.pool_b, rows.a, rows.b);
    InceptionScore score = name == "adm" ? InceptionScore(chunk_splits(60, 25), 3, true)
                                         : InceptionScore(even_splits(60, 10, true, 2020), 10, false);
    score.add(s.logits);
    ManifoldOptions options{.neighbours = 4, .density_neighbours = 7};
    const ManifoldScores exact = manifold_scores(s.pool_a, s.pool_b, options);
    options.half = name == "adm";
    const ManifoldScores places = manifold_scores(s.pool_a, s.pool_b, options);
    EXPECT_EQ(places.density != exact.density, options.half) << "so far from 0 float16 is seen";
    const std::vector<double> want{
        frechet_distance(sa, sb),
        frechet_distance(stats_of(s.spatial_a, narrow), stats_of(s.spatial_b, narrow)),
        kernel.mean,
        score.result().mean,
        places.precision,
        places.recall,
        places.f_score,
        places.density,
        places.coverage};
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].value, want[i]) << got[i].name;
    EXPECT_EQ(*got[2].deviation, kernel.deviation);
    EXPECT_EQ(*got[3].deviation, score.result().deviation);
  }
}

TEST(MeasuredSet, WarnsOfSingularCovariances) {
  const Protocol p = protocol_by_name("torch-fidelity");
  const auto said = [&](int64_t n) {
    const at::Tensor pool = at::randn({n, 6});
    const MeasuredSet set = measured(p, {.frechet = true}, pool, at::zeros({n, 2}), {});
    ::testing::internal::CaptureStderr();
    compare_sets(set, "mine", set, "theirs", p, {.frechet = true});
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_NE(said(5).find("only 5 images for 6 feature dimensions in mine"), std::string::npos);
  EXPECT_EQ(said(6), "");
}

}  // namespace
}  // namespace adanat
