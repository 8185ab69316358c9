// The commands on a GPU, skipped where there is none. What they compute is compared with the CPU where both
// are to agree; that batches and commands agree to the bit is promised on one device and tested on the CPU.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "core/base/config.h"
#include "core/io/image.h"
#include "core/nn/tensor_file.h"
#include "e2e/program.h"

namespace adanat {
namespace {

using testing::adanat_run;
using testing::TempDir;
namespace fs = std::filesystem;

class Gpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto tried = adanat_run(dir_, "generate --quiet --device " + device() + " -n 1 -m " +
                                            model("mnist") + " -o " + path("x.png"));
    if (tried.err.find("no CUDA device can be used here") != std::string::npos)
      GTEST_SKIP() << "skipped: no GPU";
    ASSERT_EQ(tried.status, 0) << tried.err;
  }
  static std::string model(const std::string& name) {
    return (testing::source_dir() / "models" / name).string();
  }
  // ADANAT_TEST_DEVICE=cpu tries the tests themselves where there is no GPU.
  static std::string device() {
    const char* given = std::getenv("ADANAT_TEST_DEVICE");
    return given != nullptr ? given : "cuda";
  }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  void expect_ok(const std::string& arguments) {
    const auto outcome = adanat_run(dir_, arguments);
    ASSERT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
  }

  TempDir dir_;
};

TEST_F(Gpu, DrawsTheCpusTokensInFloat32) {
  const std::string base =
      "generate --quiet --dtype float32 --schedule cosine --steps 4 -n 43 -m " + model("signs");
  expect_ok(base + " --device cpu -o " + path("a.png") + " --save-tokens " + path("a.safetensors"));
  expect_ok(base + " --device " + device() + " -o " + path("b.png") + " --save-tokens " +
            path("b.safetensors"));
  const at::Tensor a = read_tensors(path("a.safetensors")).at("tokens"),
                   b = read_tensors(path("b.safetensors")).at("tokens");
  // One draw in a thousand or so lies within rounding of another token, and all that follows it is another
  // image.
  EXPECT_GE(a.eq(b).all(1).sum().item<int64_t>(), 40);
}

TEST_F(Gpu, MakesImagesByAPolicyInEveryPrecision) {
  for (const char* dtype : {"float32", "bfloat16"})
    expect_ok(cat("generate --quiet --device ", device(),
                  " --schedule adaptive --steps 4 -n 65 -b 64 --dtype ", dtype, " -m ", model("signs"),
                  " -o ", path(dtype), "/ --trace ", path("trace.json")));
  EXPECT_TRUE(fs::exists(path("bfloat16/00064.png")));
}

// Batches of one shape are replayed as one launch each; --trace reads every step.
TEST_F(Gpu, ReplayedRunsMakeTheSameImages) {
  for (const char* schedule : {"adaptive", "cosine", "halton"}) {
    const std::string base = cat("generate --quiet --steps 4 -n 40 -b 8 -c 1,2,3,4 --device ", device(),
                                 " --schedule ", schedule, " -m ", model("signs"), " -o ");
    expect_ok(base + path("replayed/"));
    expect_ok(base + path("stepped/") + " --trace " + path("trace.json"));
    for (const char* name : {"00000.png", "00012.png", "00039.png"})
      EXPECT_EQ(read_image(path("replayed/") + name).rgb, read_image(path("stepped/") + name).rgb)
          << schedule << " " << name;
  }
  // Known tokens, and the same in every sample.
  const std::string edit =
      cat("edit --quiet --steps 4 -n 24 -b 8 -c 14 --box 8,8,16,16 --dtype bfloat16 --device ", device(),
          " -m ", model("signs"), " -i ", path("stepped/00000.png"), " -o ");
  expect_ok(edit + path("edits-replayed/"));
  expect_ok(edit + path("edits-stepped/") + " --trace " + path("trace.json"));
  for (const char* name : {"00008.png", "00023.png"})
    EXPECT_EQ(read_image(path("edits-replayed/") + name).rgb, read_image(path("edits-stepped/") + name).rgb)
        << name;
}

TEST_F(Gpu, EditsAndMeasures) {
  expect_ok("generate --quiet --device " + device() + " -n 64 -m " + model("signs") + " -o " + path("made/"));
  expect_ok("edit --quiet --device " + device() + " -c 14 --box 8,8,16,16 -m " + model("signs") + " -i " +
            path("made/00000.png") + " -o " + path("edited.png"));
  expect_ok("eval --quiet --device " + device() + " --cache none --count 64 -m " + model("signs") +
            " --reference " + path("made"));
  expect_ok("eval --quiet --device " + device() + " --tokenizer -m " + model("signs") + " --reference " +
            path("made"));
}

TEST_F(Gpu, IsTimed) {
  expect_ok("bench --quiet --json --device " + device() +
            " --batch-sweep 1,4 --dtype-sweep float32,bfloat16 --repeats 2 -m " + model("mnist") + " -o " +
            path("bench.json"));
  for (const Json& r : read_json_file(path("bench.json")).at("results"))
    EXPECT_GT(double(r.at("seconds").at("median")), 0) << r.dump();
  expect_ok("bench --quiet --device " + device() + " --train --batch-sweep 8 --repeats 2 --shape signs");
}

// A few updates of every stage on pictures that the bundled model made, and more of one after a resume.
TEST_F(Gpu, TrainsEveryStage) {
  expect_ok("generate --quiet --device " + device() + " -n 60 -c 0,1,2 -m " + model("signs") + " -o " +
            path("flat/"));
  for (int i = 0; i < 60; ++i) {
    char name[16];
    std::snprintf(name, sizeof name, "%05d.png", i);
    const fs::path folder = dir_ / "data" / std::to_string(i % 3);
    fs::create_directories(folder);
    fs::rename(dir_ / "flat" / name, folder / name);
  }
  const std::string common =
      " --quiet --device " + device() + " --dtype auto --set loop.steps=4 --set batch_size=16 ";
  expect_ok("train classifier" + common + "--data " + path("data") + " --out " + path("features") +
            " --set model.image_size=32 --set model.widths=[8,16] --set model.blocks=[1,1] --set "
            "model.stem_width=8");
  expect_ok("train tokenizer" + common + "--data " + path("data") + " -m " + path("features/model") +
            " --out " + path("tokenizer") +
            " --set model.image_size=32 --set model.channels=16 --set model.channel_multipliers=[1,2] --set "
            "model.residual_blocks=1 --set model.latent_channels=8 --set model.codes=32 --set "
            "model.unshuffle=2 --set "
            "model.normalize_codes=true --set gan.start=1 --set gan.width=8 --set gan.layers=1 --set "
            "loop.log_every=1");
  expect_ok("tokenize encode --quiet --device " + device() + " -m " + path("tokenizer/model") + " --data " +
            path("data") + " -o " + path("tokens.safetensors"));
  const std::string generator = "train generator" + common + "--data " + path("tokens.safetensors") + " -m " +
                                path("tokenizer/model") + " --out " + path("generator") +
                                " --set model.width=32 --set model.depth=2 --set model.heads=2";
  expect_ok(generator);
  expect_ok("train generator --quiet --device " + device() + " --resume --set loop.steps=6 --out " +
            path("generator"));
  expect_ok(
      "train policy --quiet --device " + device() + " --dtype auto --data " + path("data") + " -m " +
      path("generator/model") + " --out " + path("policy") +
      " --steps 2 --set trajectories=8 --set rollout_batch=4 --set discriminator_batch=8 --set loop.steps=2 "
      "--set "
      "network.hidden=16 --set network.channels=4 --set network.mlp=16 --set 'reward.kinds=[\"conv\"]' --set "
      "reward.conv_width=8");
  expect_ok("search schedule --quiet --device " + device() +
            " --candidates 3 --population 2 --count 8 --final-count 8 --steps 2 -m " + path("policy/model") +
            " --reference " + path("data") + " -o " + path("table.json"));
  expect_ok("generate --quiet --device " + device() + " --schedule adaptive --steps 2 -n 3 -m " +
            path("policy/model") + " -o " + path("y.png"));
}

}  // namespace
}  // namespace adanat
