// Measuring without a network: sets of given features, statistics files, the feature cache, comparisons.
#include "apps/pipeline/evaluate.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <fstream>

#include "apps/pipeline/comparison.h"
#include "core/io/npy.h"
#include "core/metrics/manifold.h"
#include "io/bytes.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::expect_input_error;
using testing::message_of;

Protocol small_protocol(const std::string& name) {
  Protocol p = protocol_by_name(name);
  p.kid_subsets = 3;
  p.kid_subset_size = 20;
  return p;
}

MeasuredSet measured(const Protocol& p, const MetricSet& metrics, const at::Tensor& pool,
                     const at::Tensor& logits, int64_t batch, bool known_count = true) {
  MeasuredSet set(p, metrics, known_count ? pool.size(0) : -1);
  for (int64_t i = 0; i < pool.size(0); i += batch) {
    const int64_t end = std::min(pool.size(0), i + batch);
    set.add({pool.slice(0, i, end), logits.slice(0, i, end), {}}, {});
  }
  return set;
}

double value(const std::vector<Figure>& figures, const std::string& name) {
  for (const Figure& f : figures)
    if (f.name == name) return f.value;
  ADD_FAILURE() << "no " << name;
  return NAN;
}

TEST(Protocols, AreSixDistinctValuesThatSurviveJson) {
  const auto names = protocol_names();
  EXPECT_EQ(names, (std::vector<std::string>{"adm", "torch-fidelity", "pytorch-fid", "clean", "adanat",
                                             "classifier"}));
  for (const auto& name : names) {
    const Protocol p = protocol_by_name(name);
    EXPECT_NO_THROW(p.validate());
    EXPECT_EQ(config_from_json<Protocol>(config_to_json(p), "test"), p);
    for (const auto& other : names)
      if (other != name) {
        Protocol q = protocol_by_name(other);
        q.name = name;
        EXPECT_FALSE(p == q) << name << " and " << other << " differ in their names alone";
      }
  }
  expect_input_error([] { protocol_by_name("fid"); }, {"fid", "pytorch-fid", "classifier"});
}

TEST(Metrics, NamesByProtocol) {
  const Protocol classifier = protocol_by_name("classifier"), adm = protocol_by_name("adm");
  const MetricSet all = parse_metrics("fid,kid,is,pr,sfid", adm);
  EXPECT_TRUE(all.frechet && all.kernel && all.score && all.manifold && all.spatial);
  EXPECT_TRUE(parse_metrics("fid,kd,pr", classifier).frechet);
  expect_input_error([&] { parse_metrics("fid,,kid", adm); }, {"--metrics", "adm"});
  expect_input_error([&] { parse_metrics("fd", adm); }, {"fd", "adm"});
  expect_input_error([&] { parse_metrics("sfid", classifier); }, {"sfid", "classifier"});
  expect_input_error([&] { parse_metrics("fd,fid", classifier); }, {"twice"});
}

TEST(MeasuredSet, BatchesAndUnknownCountsChangeNoDigit) {
  at::manual_seed(1);
  const at::Tensor pool = at::randn({90, 6}), logits = at::randn({90, 5}) * 2,
                   other = at::randn({70, 6}) + 0.3;
  for (const char* name : {"adm", "torch-fidelity", "classifier"}) {
    const Protocol p = small_protocol(name);
    const bool classifier = p.network == "classifier";
    const MetricSet metrics{.frechet = true, .kernel = true, .score = true, .manifold = true};
    const MeasuredSet reference = measured(p, metrics, other, logits.narrow(0, 0, 70), 70);
    const auto a = compare_sets(measured(p, metrics, pool, logits, 90), "a", reference, "b", p, metrics);
    const auto b = compare_sets(measured(p, metrics, pool, logits, 7, /*known_count=*/false), "a", reference,
                                "b", p, metrics);
    ASSERT_EQ(a.size(), 8u);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].name, b[i].name);
      EXPECT_EQ(a[i].value, b[i].value) << a[i].name;
    }
    EXPECT_EQ(a[0].name, classifier ? "fd" : "fid");
    EXPECT_EQ(a[1].name, classifier ? "kd" : "kid");
    EXPECT_EQ(a[2].name, "is");
    // pool is what is measured, other the reference: precision asks for the measured ones.
    EXPECT_EQ(value(a, "precision"), manifold_scores(pool, other).precision);
  }
}

TEST(MeasuredSet, TooFewImagesAreErrorsThatSayHowMany) {
  const Protocol p = protocol_by_name("torch-fidelity");
  const auto compare = [&](int64_t n, const MetricSet& metrics) {
    const MeasuredSet a = measured(p, metrics, at::randn({n, 4}), at::zeros({n, 3}), 64);
    compare_sets(a, "mine", a, "theirs", p, metrics);
  };
  expect_input_error([&] { compare(1, {.frechet = true}); }, {"fid", "2 images", "mine has 1"});
  expect_input_error([&] { compare(999, {.kernel = true}); }, {"kid", "1000", "999", "--kid-subset-size"});
  expect_input_error([&] { compare(9, {.score = true}); }, {"10 splits", "9"});
  expect_input_error([&] { compare(5, {.manifold = true}); }, {"pr", "at least 6", "5"});
  Protocol clean = protocol_by_name("clean");  // its subsets shrink instead
  clean.kid_subsets = 2;
  const MeasuredSet few = measured(clean, {.kernel = true}, at::randn({30, 4}), at::zeros({30, 3}), 64);
  EXPECT_NO_THROW(compare_sets(few, "a", few, "b", clean, {.kernel = true}));
}

TEST(MeasuredSet, NotANumberNamesTheImage) {
  MeasuredSet set(protocol_by_name("adm"), {.frechet = true}, 4);
  at::Tensor pool = at::zeros({4, 3});
  pool[2][1] = NAN;
  const std::string text = message_of<RunError>([&] { set.add({pool, at::zeros({4, 2}), {}}, {}); });
  EXPECT_NE(text.find("image 2"), std::string::npos) << text;
}

TEST(MeasuredSet, AccuracyCountsOnlyLabelledImages) {
  MeasuredSet set(protocol_by_name("classifier"), {.frechet = true}, 3);
  at::Tensor logits = at::zeros({3, 2});
  logits.select(1, 1).fill_(1);
  set.add({at::zeros({3, 2}), logits, {}}, {});
  EXPECT_FALSE(set.accuracy());
  set.add({at::zeros({3, 2}), logits, {}}, at::arange(3).clamp_max(1));
  EXPECT_DOUBLE_EQ(*set.accuracy(), 2.0 / 3);
}

TEST(StatisticsFiles, RoundTripAndServeAsReference) {
  const testing::TempDir dir;
  at::manual_seed(2);
  const Protocol p = small_protocol("pytorch-fid");
  const at::Tensor pool = at::randn({50, 6});
  const MeasuredSet a = measured(p, {.frechet = true}, pool, at::zeros({50, 2}), 50);
  const MeasuredSet spatial = measured(p, {.frechet = true}, at::randn({50, 4}), at::zeros({50, 2}), 50);
  write_statistics(dir / "a.npz", {a.stats(), spatial.stats(), "pytorch-fid", "abc"});
  ASSERT_TRUE(is_statistics_file(dir / "a.npz"));
  const StatisticsFile back = read_statistics(dir / "a.npz");
  EXPECT_TRUE(back.features.mean.equal(a.stats().mean));
  EXPECT_TRUE(back.features.covariance.equal(a.stats().covariance));
  EXPECT_EQ(back.features.count, 50);
  ASSERT_TRUE(back.spatial.has_value());
  EXPECT_TRUE(back.spatial->mean.equal(spatial.stats().mean));
  EXPECT_TRUE(back.spatial->covariance.equal(spatial.stats().covariance));
  EXPECT_EQ(back.protocol, "pytorch-fid");
  EXPECT_EQ(back.weights_sha256, "abc");
  EXPECT_FALSE(back.has_images);
  const MeasuredSet reference(p, {.frechet = true}, back, 0);
  EXPECT_EQ(reference.reported_count(), 50);
  const at::Tensor other = at::randn({40, 6}) + 1;
  const MeasuredSet b = measured(p, {.frechet = true}, other, at::zeros({40, 2}), 40);
  EXPECT_EQ(value(compare_sets(b, "b", reference, "a.npz", p, {.frechet = true}), "fid"),
            value(compare_sets(b, "b", a, "a", p, {.frechet = true}), "fid"));
  expect_input_error([&] { compare_sets(b, "b", reference, "a.npz", p, {.manifold = true}); },
                     {"pr", "a.npz", "statistics only"});
  const MeasuredSet narrow =
      measured(p, {.frechet = true}, other.narrow(1, 0, 5).contiguous(), at::zeros({40, 2}), 40);
  expect_input_error([&] { compare_sets(narrow, "b", reference, "a.npz", p, {.frechet = true}); },
                     {"a.npz", "6 dimensions", "5"});
}

// The arrays that the field's tools write: pytorch-fid's two; ADM's reference batches hold images as well.
TEST(StatisticsFiles, OfOtherTools) {
  const testing::TempDir dir;
  const float mu[2] = {1, 2}, sigma[4] = {2, 0.5, 0.5, 1}, mu_s[1] = {3}, sigma_s[1] = {4};
  const uint8_t images[3] = {1, 2, 3};
  std::vector<TensorBytes> arrays{{"mu", DType::kF32, {2}, mu, sizeof mu},
                                  {"sigma", DType::kF32, {2, 2}, sigma, sizeof sigma}};
  write_npz(dir / "pytorch.npz", arrays);
  const StatisticsFile two = read_statistics(dir / "pytorch.npz");
  EXPECT_EQ(two.features.covariance[1][0].item<double>(), 0.5);
  EXPECT_EQ(two.features.count, 0) << "not said";
  EXPECT_FALSE(two.spatial || two.has_images);
  arrays.insert(arrays.end(), {{"mu_s", DType::kF32, {1}, mu_s, sizeof mu_s},
                               {"sigma_s", DType::kF32, {1, 1}, sigma_s, sizeof sigma_s},
                               {"arr_0", DType::kU8, {1, 1, 1, 3}, images, sizeof images}});
  write_npz(dir / "adm.npz", arrays);
  const StatisticsFile adm = read_statistics(dir / "adm.npz");
  EXPECT_EQ(adm.spatial->mean[0].item<double>(), 3);
  EXPECT_EQ(adm.spatial->covariance[0][0].item<double>(), 4);
  EXPECT_TRUE(adm.has_images);
  write_npz(dir / "images.npz", std::vector<TensorBytes>{{"arr_0", DType::kU8, {1, 1, 1, 3}, images, 3}});
  EXPECT_FALSE(is_statistics_file(dir / "images.npz"));
}

TEST(StatisticsFiles, Errors) {
  const testing::TempDir dir;
  const double mu[2] = {1, 2}, bad[4] = {1, 2, -2, 1}, sigma[4] = {1, 0, 0, 1}, nan[2] = {1, NAN};
  const auto write = [&](const char* name, std::vector<TensorBytes> arrays) {
    write_npz(dir / name, arrays);
  };
  write("lone.npz", {{"mu", DType::kF64, {2}, mu, 16}});
  expect_input_error([&] { read_statistics(dir / "lone.npz"); }, {"lone.npz", "sigma"});
  write("skew.npz", {{"mu", DType::kF64, {2}, mu, 16}, {"sigma", DType::kF64, {2, 2}, bad, 32}});
  expect_input_error([&] { read_statistics(dir / "skew.npz"); }, {"skew.npz", "sigma", "not symmetric"});
  write("nan.npz", {{"mu", DType::kF64, {2}, nan, 16}, {"sigma", DType::kF64, {2, 2}, sigma, 32}});
  expect_input_error([&] { read_statistics(dir / "nan.npz"); }, {"nan.npz", "mu", "finite"});
  write("size.npz", {{"mu", DType::kF64, {1}, mu, 8}, {"sigma", DType::kF64, {2, 2}, sigma, 32}});
  expect_input_error([&] { read_statistics(dir / "size.npz"); }, {"size.npz", "1 dimensions", "2"});
  write("rank.npz", {{"mu", DType::kF64, {2}, mu, 16}, {"sigma", DType::kF64, {4}, sigma, 32}});
  expect_input_error([&] { read_statistics(dir / "rank.npz"); }, {"rank.npz", "sigma", "(D, D)"});
  const double negative[4] = {-1, 0, 0, 1};
  write("neg.npz", {{"mu", DType::kF64, {2}, mu, 16}, {"sigma", DType::kF64, {2, 2}, negative, 32}});
  expect_input_error([&] { read_statistics(dir / "neg.npz"); }, {"neg.npz", "sigma", "negative"});
}

// Every row another.
FeatureRows rows(int64_t n, double seed) {
  const at::Tensor row = at::arange(n, at::kFloat).unsqueeze(1) / 64 + seed;
  return {row.expand({n, 3}).contiguous(), -row.expand({n, 2}), {}};
}

std::vector<FeatureRows> loaded(FeatureCache cache) {
  std::vector<FeatureRows> out;
  const int64_t count = cache.load([&](const FeatureRows& r) { out.push_back(r); });
  int64_t sum = 0;
  for (const FeatureRows& r : out) sum += r.size();
  EXPECT_EQ(count, sum);
  return out;
}

TEST(FeatureCache, GivesBackWhatWasAddedAndStopsAtDamage) {
  const testing::TempDir dir;
  const Json key{{"model", "a"}};
  {
    FeatureCache cache(dir.path(), key);
    EXPECT_TRUE(loaded(cache).empty());
    cache.add(rows(4, 1)), cache.add(rows(2, 2));
    cache.flush();
    // Removed by another run's limit: what comes later is found again by its key.
    for (const auto& file : fs::recursive_directory_iterator(dir.path()))
      if (file.path().filename() == "key.json") fs::remove(file.path());
    cache.add(rows(4, 3));
    cache.flush();
    cache.add(rows(4, 4));  // never flushed: lost
  }
  size_t keys = 0;
  for (const auto& file : fs::recursive_directory_iterator(dir.path()))
    keys += file.path().filename() == "key.json";
  EXPECT_EQ(keys, 1u);
  FeatureCache again(dir.path(), key);
  std::vector<FeatureRows> got;
  again.load([&](const FeatureRows& r) { got.push_back(r); });
  ASSERT_EQ(got.size(), 3u);
  EXPECT_EQ(got[1].size(), 2);
  EXPECT_TRUE(got[2].pool.equal(rows(4, 3).pool));
  EXPECT_TRUE(got[2].logits.equal(rows(4, 3).logits));
  EXPECT_TRUE(got[1].pool.equal(rows(2, 2).pool)) << "the second batch of a file";
  EXPECT_TRUE(got[1].logits.equal(rows(2, 2).logits));
  again.add(rows(1, 5));
  again.flush();
  EXPECT_EQ(loaded(FeatureCache(dir.path(), key)).size(), 4u) << "a second run goes on where the first was";
  EXPECT_TRUE(loaded(FeatureCache(dir.path(), Json{{"model", "b"}})).empty()) << "another key";
  EXPECT_TRUE(loaded(FeatureCache({}, key)).empty()) << "no cache";
  for (const auto& file : fs::recursive_directory_iterator(dir.path()))
    if (file.path().filename() == "rows-0000000006.safetensors")
      std::ofstream(file.path(), std::ios::trunc) << "torn";
  EXPECT_EQ(loaded(FeatureCache(dir.path(), key)).size(), 2u);
}

TEST(FeatureCache, KeepsSpatialFeatures) {
  const testing::TempDir dir;
  std::vector<FeatureRows> given{rows(3, 1), rows(2, 2)};
  FeatureCache cache(dir.path(), Json{{"a", 1}});
  for (FeatureRows& r : given) {
    r.spatial = r.pool.narrow(1, 0, 1) * 3;
    cache.add(r);
  }
  cache.flush();
  const auto got = loaded(FeatureCache(dir.path(), Json{{"a", 1}}));
  ASSERT_EQ(got.size(), 2u);
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(got[i].spatial.equal(given[i].spatial)) << i;
}

TEST(FeatureCache, TheLeastRecentlyUsedEntryGoesFirst) {
  const testing::TempDir dir;
  const auto fill = [&](int run) {
    FeatureCache cache(dir.path(), Json{{"run", run}}, 2400);
    cache.add(rows(40, run));  // more than 800 bytes: two fit beside a third
    cache.flush();
  };
  const auto age = [&](const fs::path& except) {  // what is there was used an hour before what follows
    for (const auto& entry : fs::directory_iterator(dir.path()))
      if (entry.path() != except)
        fs::last_write_time(entry.path() / "key.json",
                            fs::last_write_time(entry.path() / "key.json") - std::chrono::hours(1));
  };
  const auto has = [&](int run) {  // looks without using
    for (const auto& entry : fs::directory_iterator(dir.path()))
      if (read_file((entry.path() / "key.json").string()) == Json{{"run", run}}.dump() + "\n") return true;
    return false;
  };
  fill(0), age({}), fill(1), age({});
  EXPECT_TRUE(has(0) && has(1));
  { FeatureCache used(dir.path(), Json{{"run", 0}}, 2400); }
  age({}), fill(2), age({}), fill(3);
  EXPECT_FALSE(has(1)) << "used longest ago";
  EXPECT_TRUE(has(0) && has(2) && has(3));
}

TEST(FeatureCache, IsBoundedAndNeverFails) {
  const testing::TempDir dir;
  for (int i = 0; i < 4; ++i) {
    FeatureCache cache(dir.path(), Json{{"run", i}}, 1200);
    cache.add(rows(40, i));  // 800 bytes
    cache.flush();
  }
  size_t entries = 0;
  for (const auto& entry : fs::directory_iterator(dir.path())) entries += entry.is_directory();
  EXPECT_LE(entries, 2u) << "the oldest are gone";
  FeatureCache own(dir.path(), Json{{"run", "own"}}, 1000);
  own.add(rows(40, 1)), own.flush();
  own.add(rows(40, 2)), own.flush();  // would be over the limit: left out with a warning
  EXPECT_EQ(loaded(FeatureCache(dir.path(), Json{{"run", "own"}})).size(), 1u);
  write_file_atomic(dir / "file", "x");
  FeatureCache nowhere(dir / "file", Json{{"run", 1}});
  nowhere.add(rows(1, 1));
  nowhere.flush();
  EXPECT_TRUE(loaded(nowhere).empty());
}

Json result(const std::string& protocol, int64_t count, int steps, double fid, double deviation = 0) {
  Json j{{"protocol", protocol},
         {"count", count},
         {"reference_count", 100},
         {"weights_sha256", "0123456789"},
         {"seed", 42}};
  j["metrics"]["fid"]["value"] = fid;
  if (deviation > 0) j["metrics"]["fid"]["std"] = deviation, j["metrics"]["fid"]["values"] = {fid};
  j["schedule"] = "cosine", j["steps"] = steps, j["model"] = "m", j["reference"] = "r";
  return j;
}

TEST(Comparison, MarksWhatMayNotBeCompared) {
  const Json a = result("adm", 1000, 8, 5), b = result("adm", 1000, 4, 6);
  EXPECT_TRUE(differences(a, b).empty());
  EXPECT_EQ(differences(a, result("clean", 1000, 8, 5)), std::vector<std::string>{"other protocol"});
  EXPECT_EQ(differences(a, result("adm", 999, 8, 5)), std::vector<std::string>{"other count"});
  Json c = a;
  c["weights_sha256"] = "f", c["reference"] = "s";
  EXPECT_EQ(differences(a, c), (std::vector<std::string>{"other reference", "other weights"}));
  Json d = a, e = a;
  d["reference_sha256"] = e["reference_sha256"] = "1";
  e["reference"] = "elsewhere/r.npz";
  EXPECT_TRUE(differences(d, e).empty()) << "one file in two places";
  d["crop"] = 16, e["crop"] = 32;
  EXPECT_EQ(differences(d, e), std::vector<std::string>{"other crop"});
  d["crop"] = 32, d["tokenizer"] = true;
  EXPECT_EQ(differences(d, e), std::vector<std::string>{"reconstructions against others"});
  d.erase("tokenizer");
  d["protocol_settings"] = {{"kid_subset_size", 10}};
  EXPECT_EQ(differences(a, d), (std::vector<std::string>{"other settings"}));
  Json f = a, g = a;
  f["reference_count"] = 99;
  EXPECT_EQ(differences(a, f), std::vector<std::string>{"other reference"}) << "as many images of it";
  f = a, f["reference_sha256"] = "1";
  EXPECT_TRUE(differences(a, f).empty()) << "a hash on one side only tells nothing";
  f["labels"] = "random", g["labels"] = "balanced";
  EXPECT_EQ(differences(f, g), std::vector<std::string>{"other labels"});
  f = g = a;
  f["protocol_settings"] = {{"labels", "random"}}, g["protocol_settings"] = {{"labels", "balanced"}};
  EXPECT_TRUE(differences(f, g).empty()) << "labels that nothing was generated for";
  const std::string table = comparison_table({{"a.json", a}, {"b.json", b}, {"c.json", c}});
  EXPECT_NE(table.find("NO: other reference, other weights"), std::string::npos) << table;
  EXPECT_NE(table.find("(first)"), std::string::npos);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 4);
  // Metrics of any file have a column; the spread is shown where it is known.
  f = result("adm", 1000, 4, 6, 0.25);
  f["metrics"]["kid"]["value"] = 0.125;
  const std::string wide = comparison_table({{"a.json", a}, {"f.json", f}});
  EXPECT_NE(wide.find("6 +- 0.25"), std::string::npos) << wide;
  EXPECT_NE(wide.find("kid"), std::string::npos) << wide;
  EXPECT_NE(wide.find("0.125"), std::string::npos) << wide;
}

TEST(Comparison, CurvesOverSteps) {
  const std::vector<EvalResult> results{
      {"a", result("adm", 10, 8, 5)}, {"b", result("adm", 10, 4, 6, 0.5)}, {"c", result("clean", 10, 2, 7)}};
  const StepCurves curves = step_curves(results, "");
  EXPECT_EQ(curves.metric, "fid");
  ASSERT_EQ(curves.series.size(), 1u);
  EXPECT_EQ(curves.series[0].name, "m cosine");
  EXPECT_EQ(curves.series[0].x, (std::vector<double>{4, 8}));
  EXPECT_EQ(curves.series[0].y, (std::vector<double>{6, 5}));
  EXPECT_EQ(curves.series[0].low, (std::vector<double>{5.5, 5}));
  EXPECT_EQ(curves.left_out, std::vector<std::string>{"c: other protocol"});
  expect_input_error([&] { step_curves(results, "kid"); }, {"--plot", "kid"});
  // The deviation over subsets is no band of seeds; a curve has one value for a number of steps; what a
  // picture has no room for is named.
  Json subsets = result("adm", 10, 4, 6, 0.5);
  subsets["metrics"]["fid"].erase("values");
  const StepCurves plain = step_curves({{"a", result("adm", 10, 8, 5)},
                                        {"b", subsets},
                                        {"c", result("adm", 10, 8, 7)},
                                        {"d", result("adm", 10, 2, 1.5e308)}},
                                       "");
  EXPECT_TRUE(plain.series[0].low.empty());
  EXPECT_EQ(plain.series[0].y, (std::vector<double>{6, 5}));
  EXPECT_EQ(plain.left_out, (std::vector<std::string>{"c: the same steps as another file of its curve",
                                                      "d: a value too large to draw"}));
}

TEST(Comparison, ForeignFilesAreRefused) {
  const testing::TempDir dir;
  write_file_atomic(dir / "x.json", "{\"a\": 1}");
  expect_input_error([&] { read_eval_result((dir / "x.json").string()); }, {"x.json", "adanat eval"});
  write_file_atomic(dir / "y.json", R"({"protocol": "adm", "count": 1, "metrics": {"fid": 3}})");
  expect_input_error([&] { read_eval_result((dir / "y.json").string()); }, {"y.json", "metrics.fid"});
}

}  // namespace
}  // namespace adanat
