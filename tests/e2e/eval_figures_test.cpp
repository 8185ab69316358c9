// What stands behind the figures of adanat eval: the library's own, and which settings reach them.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "apps/pipeline/conditions.h"
#include "apps/pipeline/evaluate.h"
#include "apps/pipeline/pipeline.h"
#include "core/base/sha256.h"
#include "core/data/sequential.h"
#include "core/io/npy.h"
#include "core/metrics/image_metrics.h"
#include "e2e/eval_fixture.h"
#include "pipeline/small_model.h"
#include "support/random_inception.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::adanat_run;

class EvalFigures : public testing::EvalFixture {
 protected:
  // (N, 3, 32, 32) u8 of a folder that write_set made.
  at::Tensor images_of(const std::string& name) {
    const auto data = open_dataset(dir_ / name);
    return SequentialReader(*data, {.batch_size = data->size()}).next()->images;
  }
};

// Two runs share features only where all of this is equal.
TEST_F(EvalFigures, TheCacheKeyHoldsAllThatFeaturesDependOn) {
  write_set("b", 8, 99);
  const Json result =
      run("eval --quiet -m " + model() + " --count 4 -b 2 --steps 2 --schedule cosine --seed 5 -t 1" +
          " --device cpu --dtype float32 --guidance 2.5 --labels random --reference " + path("b") +
          " --cache " + path("kept"));
  EXPECT_EQ(result.at("labels"), "random");
  Json key;
  for (const auto& entry : fs::directory_iterator(dir_ / "kept"))
    key = Json::parse(read_file((entry.path() / "key.json").string()));
  const ModelConfig config = read_model_config(model());
  const auto classes = generation_classes("random", 4, 5, config, nullptr);
  const auto hash = [&](const char* file) { return sha256_file(model() + "/" + file); };
  const Json want{{"generator", hash("generator.safetensors")},
                  {"tokenizer", hash("tokenizer.safetensors")},
                  {"weights", hash("measure.safetensors")},
                  {"classes", sha256_hex(classes.data(), classes.size() * sizeof(int64_t))},
                  {"program", ADANAT_VERSION},
                  {"threads", 1},
                  {"schedule_name", "cosine"},
                  {"steps", 2},
                  {"seed", 5},
                  {"count", 4},
                  {"batch", 2},
                  {"network", "classifier"},
                  {"resize", "network"},
                  {"normalise", "network"},
                  {"quantise", "uint8"},
                  {"spatial", false},
                  {"device", "cpu"},
                  {"dtype", "float32"}};
  for (const auto& [name, value] : want.items()) EXPECT_EQ(key.value(name, Json()), value) << name;
  EXPECT_EQ(key.at("table"), result.at("table"));
  EXPECT_EQ(key.at("table").at("guidance"), 2.5);
  EXPECT_TRUE(key.contains("schedule")) << "what an adaptive schedule's policy was";
  EXPECT_TRUE(key.contains("format"));
  // Each process times them, and may find another one faster.
  const std::string library = key.value("float32_library", "");
  EXPECT_TRUE(library == "MKL" || library == "oneDNN") << library;
  EXPECT_EQ(key.size(), want.size() + 4);
}

TEST_F(EvalFigures, AnOrderHasNoTemperature) {
  write_set("b", 8, 99);
  const Json result = run("eval --quiet -m " + model() +
                          " --count 4 --steps 2 --schedule halton --cache none --reference " + path("b"));
  EXPECT_TRUE(result.at("table").contains("guidance"));
  EXPECT_FALSE(result.at("table").contains("temperature"));
}

TEST_F(EvalFigures, RepeatsAreSeedsAndTheFirstIsSaved) {
  write_set("b", 20, 99);
  const std::string command = "eval --quiet -m " + model() +
                              " --count 12 --steps 1 --cache none --reference " + path("b") +
                              " --labels random ";
  const Json both =
      run(command + "--seed 7 --repeats 2 --save-stats " + path("first.npz")).at("metrics").at("fd");
  const double first = both.at("values")[0], second = both.at("values")[1];
  EXPECT_EQ(value(run(command + "--seed 8"), "fd"), second);
  EXPECT_NE(first, second);
  EXPECT_NEAR(both.at("std").get<double>(), std::abs(first - second) / std::sqrt(2.0), 1e-12 * first);
  EXPECT_EQ(value(run(given("first.npz", "b")), "fd"), first);
}

TEST_F(EvalFigures, StatisticsOfAnotherKindAreNamedAndImagesBesideThemUsed) {
  write_set("a", 14, 0);
  write_set("b", 12, 50);
  run("eval --quiet --weights " + model() + "/measure.safetensors --images " + path("b") + " --save-stats " +
      path("b.npz"));
  StatisticsFile statistics = read_statistics(dir_ / "b.npz");
  EXPECT_EQ(statistics.weights_sha256, sha256_file(model() + "/measure.safetensors"));
  statistics.protocol = "adm", statistics.weights_sha256 = "abcdef0123";
  write_statistics(dir_ / "other.npz", statistics);
  const auto warned = adanat_run(dir_, given("a", "other.npz"));
  EXPECT_NE(warned.err.find("was made under protocol adm, not classifier"), std::string::npos) << warned.err;
  EXPECT_NE(warned.err.find("was made with other weights (abcdef01"), std::string::npos) << warned.err;
  // As ADM's reference batches: both in one file.
  const at::Tensor images = images_of("b").permute({0, 2, 3, 1}).contiguous();
  const GaussianStats& s = statistics.features;
  write_npz(dir_ / "batch.npz",
            std::vector<TensorBytes>{
                {"mu", DType::kF64, s.mean.sizes().vec(), s.mean.const_data_ptr(), s.mean.nbytes()},
                {"sigma", DType::kF64, s.covariance.sizes().vec(), s.covariance.contiguous().const_data_ptr(),
                 s.covariance.nbytes()},
                {"arr_0", DType::kU8, images.sizes().vec(), images.const_data_ptr(), images.nbytes()}});
  const Json batch = run(given("a", "batch.npz") + "--metrics fd,pr"),
             folder = run(given("a", "b") + "--metrics fd,pr");
  EXPECT_EQ(batch.at("metrics"), folder.at("metrics"));
}

TEST_F(EvalFigures, SettingsAreInTheResult) {
  write_set("a", 6, 0);
  write_set("a", 12, 40, 36);  // some over the old ones: all of another size
  write_png(dir_ / "a" / "z.png", testing::test_image(40, 32, 3));
  write_set("b", 12, 9);
  const Json j =
      run(given("a", "b") + "--crop 32 --metrics kd,pr --kid-subset-size 5 --kid-subsets 4 --half-distances");
  EXPECT_EQ(j.at("count"), 13);
  EXPECT_EQ(j.at("crop"), 32);
  EXPECT_EQ(j.at("protocol_settings").at("kid_subsets"), 4);
  EXPECT_EQ(j.at("protocol_settings").at("kid_subset_size"), 5);
  EXPECT_EQ(j.at("protocol_settings").at("half_distances"), true);
  EXPECT_EQ(run(given("a", "b") + "--crop 32").at("protocol_settings").at("half_distances"), false);
}

// Both sides count, each image once.
TEST_F(EvalFigures, SkippedImagesOfBothSides) {
  write_set("a", 8, 0);
  write_set("b", 8, 50);
  for (const char* file : {"a/i1002.png", "b/i1000.png", "b/i1003.png"})
    write_file_atomic(dir_ / file, "broken");
  const Json j = run(given("a", "b") + "--skip-broken");
  EXPECT_EQ(j.at("skipped"), 3);
  EXPECT_EQ(j.at("count"), 7);
  EXPECT_EQ(j.at("reference_count"), 6);
  EXPECT_EQ(
      run("eval --quiet --tokenizer --skip-broken -m " + model() + " --reference " + path("b")).at("skipped"),
      2);
}

TEST_F(EvalFigures, AccuracyWhereTheClassesAreTheNetworks) {
  Measurer measurer = Measurer::open(fs::path(model()) / "measure.safetensors",
                                     protocol_by_name("classifier"), false, at::kCPU);
  write_set("images", 43, 0);
  const at::Tensor named = measurer.extract(images_of("images")).logits.argmax(1);
  double right = 1;
  for (int64_t i = 0; i < 43; ++i) {  // an image for each class, and the first once more where it belongs
    fs::create_directories(dir_ / "tree" / measurer.class_names()[size_t(i)]);
    fs::copy(dir_ / "images" / cat("i", 1000 + i, ".png"), dir_ / "tree" / measurer.class_names()[size_t(i)]);
    right += named[i].item<int64_t>() == i;
  }
  fs::copy(dir_ / "images" / "i1000.png",
           dir_ / "tree" / measurer.class_names()[size_t(named[0].item<int64_t>())] / "again.png");
  const Json j =
      run("eval --quiet --weights " + model() + "/measure.safetensors --metrics is --images " + path("tree"));
  EXPECT_DOUBLE_EQ(value(j, "accuracy"), right / 44);
  write_set("plain", 12, 3);
  const Json both = run(given("plain", "tree"));
  EXPECT_DOUBLE_EQ(both.at("reference_accuracy").get<double>(), right / 44);
  EXPECT_FALSE(both.at("metrics").contains("accuracy")) << "a folder without classes has none";
}

TEST_F(EvalFigures, ReconstructionsAreThoseOfTheTokenizer) {
  write_set("a", 13, 0);
  const at::Tensor images = images_of("a").to(at::kFloat) / 255;
  write_file_atomic(dir_ / "a" / "i1999.png", "broken");
  const Json j =
      run("eval --quiet --tokenizer -m " + model() + " --metrics is --skip-broken -b 4 --dtype float32 " +
          "--save-stats " + path("s.npz") + " --images " + path("a"));
  EXPECT_EQ(j.at("skipped"), 1);
  const at::NoGradGuard no_grad;
  const ModelConfig config = read_model_config(model());
  Tokenizer tokenizer = open_tokenizer(model(), config, at::kCPU);
  const at::Tensor ids = tokenizer->encode(images), bytes = decode_to_bytes(*tokenizer, ids);
  CodeHistogram codes(config.tokenizer->codes);
  codes.add(ids);
  // Batches of another size sum in another order, which may move a byte here and there.
  const at::Tensor again = bytes.to(at::kFloat) / 255;
  EXPECT_NEAR(value(j, "psnr"), psnr(again, images).mean().item<double>(), 1e-3);
  EXPECT_NEAR(value(j, "ssim"), ssim(again, images).mean().item<double>(), 1e-4);
  EXPECT_NEAR(value(j, "code_usage"), codes.usage(), 2e-3);
  EXPECT_NEAR(value(j, "code_perplexity"), codes.perplexity(), 1e-2 * codes.perplexity());
}

class EvalInception : public EvalFigures {
 protected:
  void SetUp() override {
    write_tensors(dir_ / "inception.safetensors", testing::random_inception());
    write_set("b", 4, 50, 16);
  }
  Json under(const std::string& protocol, const std::string& arguments) {
    return run("eval --quiet --weights " + path("inception.safetensors") +
               (protocol.empty() ? "" : " --protocol " + protocol) + " " + arguments);
  }
  // A distance that is cheap to compute; those of 2048 dimensions take seconds.
  std::string kernel_against_b() const {
    return " --metrics kid --kid-subset-size 2 --kid-subsets 5 --reference " + path("b");
  }
};

// Protocol adanat measures what the decoder says, the others bytes: seen in the digits, not in the figure.
TEST_F(EvalInception, OnlyProtocolAdanatLeavesImagesUnrounded) {
  testing::write_small_model(dir_ / "m");
  const std::string generate =
      "-m " + path("m") + " --count 3 --steps 1 --cache none --schedule cosine --labels balanced";
  const std::string reconstruct = "--tokenizer -m " + path("m") + " --images " + path("b");
  for (const std::string& images : {generate, reconstruct}) {
    const auto measure = [&](const char* protocol) {
      return value(under(protocol, images + kernel_against_b()), "kid");
    };
    const double rounded = measure("pytorch-fid"), whole = measure("adanat");
    EXPECT_NEAR(whole, rounded, 0.05 * std::abs(rounded)) << images;
    EXPECT_NE(whole, rounded) << images;
  }
}

// With sFID's statistics in the reference; the tokenizer's FID is called rFID.
TEST_F(EvalInception, SpatialStatisticsMakeTheProtocolAdm) {
  under("adm", "--metrics sfid --images " + path("b") + " --save-stats " + path("b.npz"));
  testing::write_small_model(dir_ / "m");
  const Json j = under("", "--metrics fid --tokenizer -m " + path("m") + " --images " + path("b") +
                               " --reference " + path("b.npz"));
  EXPECT_EQ(j.at("protocol"), "adm");
  EXPECT_GT(value(j, "rfid"), 0);
}

TEST_F(EvalInception, SpatialStatisticsThatAreMissingAreMissedBeforeTheWork) {
  under("adm", "--metrics fid --images " + path("b") + " --save-stats " + path("b.npz"));
  testing::write_small_model(dir_ / "m");
  const auto early =
      adanat_run(dir_, "eval --weights " + path("inception.safetensors") +
                           " --protocol adm --metrics sfid --count 4 --steps 1 --cache none -m " + path("m") +
                           " --reference " + path("b.npz"));
  EXPECT_TRUE(testing::is_one_line_error(early, 2, "b.npz has no mu_s and sigma_s"));
  EXPECT_EQ(early.err.find("generate (seed"), std::string::npos) << early.err;
}

TEST_F(EvalInception, CleanResizesEachImage) {
  write_png(dir_ / "b" / "z.png", testing::test_image(20, 24, 1));
  const std::string itself = "--images " + path("b") + kernel_against_b();
  EXPECT_EQ(under("clean", itself).at("count"), 5);
  EXPECT_TRUE(
      testing::is_one_line_error(adanat_run(dir_, "eval --quiet --protocol torch-fidelity --weights " +
                                                      path("inception.safetensors") + " " + itself),
                                 2, "z.png"));
}

}  // namespace
}  // namespace adanat
