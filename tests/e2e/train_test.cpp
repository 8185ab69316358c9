// The whole chain through the real binary: classifier, tokenizer, tokens, generator, images. Once on a
// procedural image set that the test makes (needs no data), once on real digits.
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "core/base/config.h"
#include "core/io/image.h"
#include "core/nn/tensor_file.h"
#include "e2e/program.h"
#include "kernels/philox.h"

namespace adanat {
namespace {

using testing::adanat_run;
using testing::is_one_line_error;
using testing::TempDir;
namespace fs = std::filesystem;

// 3 classes of 16x16 pictures: a disc, a square, stripes, at random places in random colours.
void make_shapes(const fs::path& folder, int per_class) {
  const char* names[] = {"disc", "square", "stripes"};
  for (uint32_t c = 0; c < 3; ++c) {
    fs::create_directories(folder / names[c]);
    for (uint32_t i = 0; i < uint32_t(per_class); ++i) {
      const auto r = kernels::philox4x32_10({c, i, 0, 0}, 7);
      const int x0 = 4 + int(r.x % 8), y0 = 4 + int(r.y % 8);
      Image image{16, 16, std::vector<uint8_t>(16 * 16 * 3)};
      for (int y = 0; y < 16; ++y) {
        for (int x = 0; x < 16; ++x) {
          const int dx = x - x0, dy = y - y0;
          const bool in = c == 0   ? dx * dx + dy * dy < 16
                          : c == 1 ? std::abs(dx) < 4 && std::abs(dy) < 4
                                   : (x + x0) % 4 < 2;
          for (int k = 0; k < 3; ++k)
            image.rgb[size_t((y * 16 + x) * 3 + k)] =
                in ? uint8_t(128 + (r.z >> (8 * k)) % 128) : uint8_t(20);
        }
      }
      char name[32];
      std::snprintf(name, sizeof name, "%04u.png", i);
      write_png(folder / names[c] / name, image);
    }
  }
}

double first_and_last_loss(const fs::path& log, const char* key, double* last) {
  std::ifstream in(log);
  double first = NAN;
  for (std::string line; std::getline(in, line);) {
    const Json j = Json::parse(line);
    if (j.at("kind") != "train" || !j.contains(key)) continue;
    *last = j.at(key).get<double>();
    if (std::isnan(first)) first = *last;
  }
  return first;
}

const char* const kSmallGenerator =
    " --set batch_size=16 --set model.width=32 --set model.depth=2 --set model.heads=2 --set mask_law=mixed"
    " --set optimizer.learning_rate=0.003 --set optimizer.warmup=5 --set loop.log_every=10";

class Shapes : public ::testing::Test {
 protected:
  // Trained once for all tests of the fixture.
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    make_shapes(*dir_ / "shapes", 40);
    const std::string d = dir_->path().string();
    const std::string classifier =
        "train classifier --quiet --dtype float32 --data " + d +
        "/shapes --set model.image_size=16 --set model.widths=[8,16]"
        " --set model.blocks=[1,1] --set model.stem_width=8 --set batch_size=16 --set loop.steps=30 ";
    expect_ok(classifier + "--out " + d + "/features");
    expect_ok(classifier + "--set role=measure --seed 5 -m " + d + "/features/model --out " + d + "/measure");
    expect_ok("train tokenizer --quiet --data " + d + "/shapes -m " + d + "/measure/model --out " + d +
              "/tokenizer" +
              " --set model.image_size=16 --set model.channels=16 --set model.channel_multipliers=[1,2]"
              " --set model.residual_blocks=1 --set model.latent_channels=8 --set model.codes=32 --set "
              "model.unshuffle=2"
              " --set model.normalize_codes=true --set batch_size=16 --set gan.start=20 --set gan.width=8 "
              "--set gan.layers=1"
              " --set optimizer.learning_rate=0.003 --set optimizer.warmup=5 --set loop.steps=40 --set "
              "loop.log_every=10");
    expect_ok("tokenize encode --quiet -m " + d + "/tokenizer/model --data " + d + "/shapes -o " + d +
              "/tokens.safetensors");
    expect_ok("train generator --quiet --data " + d + "/tokens.safetensors -m " + d +
              "/tokenizer/model --out " + d + "/generator --set loop.steps=120" + kSmallGenerator);
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }
  static void expect_ok(const std::string& arguments) {
    const auto outcome = adanat_run(*dir_, arguments);
    ASSERT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
  }
  static std::string path(const std::string& name) { return (*dir_ / name).string(); }
  static std::string model() { return path("generator/model"); }

  static TempDir* dir_;
};
TempDir* Shapes::dir_ = nullptr;

TEST_F(Shapes, LossesFall) {
  double last = 0;
  const double tokenizer = first_and_last_loss(path("tokenizer/log.jsonl"), "l1", &last);
  EXPECT_LT(last, 0.8 * tokenizer);
  const double generator = first_and_last_loss(path("generator/log.jsonl"), "loss", &last);
  EXPECT_LT(last, 0.9 * generator);
}

TEST_F(Shapes, RunFoldersHoldWhatTheyPromise) {
  for (const char* name :
       {"config.json", "log.jsonl", "samples", "checkpoints/step-120", "model/config.json"})
    EXPECT_TRUE(fs::exists(path(std::string("generator/") + name))) << name;
  for (const char* name : {"tokenizer", "generator", "features", "measure"})
    EXPECT_TRUE(fs::exists(model() + "/" + name + ".safetensors")) << name;
  EXPECT_EQ(adanat_run(*dir_, "info --verify " + model()).status, 0);
  // The precision was settled when the run began, and says by what.
  const Json config = read_json_file(path("generator/config.json"));
  EXPECT_TRUE(config["dtype"] == "float32" || config["dtype"] == "bfloat16") << config["dtype"];
  EXPECT_GT(config["run"]["dtype_timings"]["bfloat16_seconds"].get<double>(), 0);
}

TEST_F(Shapes, GeneratesEveryKindOfOutput) {
  expect_ok("generate -m " + model() + " -o " + path("grid.png") + " -n 6 --steps 4 --json");
  const Image grid = read_image(path("grid.png"));
  EXPECT_EQ(grid.width, 3 * 16 + 2 * 2);
  EXPECT_EQ(grid.height, 2 * 16 + 2);
  expect_ok("generate -m " + model() + " -o " + path("many/") +
            " -n 5 -c stripes,0 --steps 3 --schedule halton -b 2" + " --save-tokens " +
            path("many/t.safetensors") + " --trace " + path("t.json") + " --preview " + path("preview"));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(fs::exists(path("many/0000" + std::to_string(i) + ".png"))) << i;
  EXPECT_TRUE(fs::exists(path("preview/00004-step03.png")));
  const Json trace = read_json_file(path("t.json"));
  EXPECT_EQ(trace.at("steps"), 3);
  ASSERT_EQ(trace.at("samples").size(), 5u);
  EXPECT_EQ(trace["samples"][0]["class"], 2);
  EXPECT_EQ(trace["samples"][1]["class"], 0);
  EXPECT_EQ(trace["samples"][4]["revealed"][2], 16);
  EXPECT_EQ(trace["samples"][4]["actions"].size(), 3u);
  const TensorMap saved = read_tensors(path("many/t.safetensors"));
  EXPECT_EQ(saved.at("tokens").sizes(), (std::vector<int64_t>{5, 16}));
  EXPECT_EQ(saved.at("steps").sizes(), (std::vector<int64_t>{3, 5, 16}));
  expect_ok("tokenize decode -m " + model() + " -i " + path("many/t.safetensors") + " -o " + path("decoded"));
  EXPECT_EQ(read_image(path("decoded/00003.png")).rgb, read_image(path("many/00003.png")).rgb);
  expect_ok("tokenize decode -m " + model() + " -i " + path("many/t.safetensors") + " -o " +
            path("named/%03d.png"));
  EXPECT_EQ(read_file(path("named/003.png")), read_file(path("decoded/00003.png")));
}

TEST_F(Shapes, ASeedIsAnImageAcrossCommands) {
  const std::string common = "generate --quiet -m " + model() + " --steps 4 -s 9 -c 1 ";
  expect_ok(common + "-o " + path("a/") + " -n 6 -b 6");
  expect_ok(common + "-o " + path("b/") + " -n 1 --first-index 4 -b 1");
  EXPECT_EQ(read_image(path("a/00004.png")).rgb, read_image(path("b/00004.png")).rgb);
  const auto text = read_png_text(path("a/00004.png"));
  ASSERT_EQ(text.size(), 1u);
  EXPECT_EQ(text[0].first, "parameters");
  const std::string& value = text[0].second;
  EXPECT_NE(value.find("square\nSteps: 4, Sampler: cosine"), std::string::npos) << value;
  const Json j = Json::parse(value.substr(value.rfind('\n') + 1));
  EXPECT_EQ(j.at("seed"), 9);
  EXPECT_EQ(j.at("index"), 4);
}

TEST_F(Shapes, MeasuresWithItsOwnNetwork) {
  const auto outcome =
      adanat_run(*dir_, "eval --quiet -m " + model() + " --count 60 --steps 2 --repeats 2 --reference " +
                            path("shapes"));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const Json j = Json::parse(outcome.out);
  EXPECT_EQ(j.at("protocol"), "classifier");
  EXPECT_EQ(j.at("count"), 60);
  EXPECT_EQ(j.at("metrics").at("fd").at("values").size(), 2u);
  EXPECT_FALSE(j.at("metrics").contains("fid"));
  // A set against itself.
  const auto self = adanat_run(
      *dir_, "eval --quiet -m " + model() + " --images " + path("shapes") + " --reference " + path("shapes"));
  EXPECT_NEAR(Json::parse(self.out)["metrics"]["fd"]["value"].get<double>(), 0, 1e-4);
  const auto tokenizer =
      adanat_run(*dir_, "eval --quiet --tokenizer -m " + model() + " --reference " + path("shapes"));
  EXPECT_GT(Json::parse(tokenizer.out)["metrics"]["psnr"]["value"].get<double>(), 5);
}

TEST_F(Shapes, StopsOnSigtermAndResumesToTheSameBits) {
  const std::string base = "train generator --quiet -t 1 --dtype float32 --data " +
                           path("tokens.safetensors") + " -m " + path("tokenizer/model") + kSmallGenerator +
                           " --set loop.checkpoint_every=20 --set loop.steps=";
  expect_ok(base + "40 --out " + path("whole"));
  // Goes on from the middle of that very run: another one might time its libraries otherwise, and round
  // otherwise.
  fs::copy(path("whole"), path("parts"), fs::copy_options::recursive);
  fs::remove_all(path("parts/checkpoints/step-40"));
  expect_ok(base + "40 --resume --out " + path("parts"));
  const TensorMap a = read_tensors(path("whole/checkpoints/step-40/state.safetensors"));
  const TensorMap b = read_tensors(path("parts/checkpoints/step-40/state.safetensors"));
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
  // A signal: status 143, a checkpoint, a usable model.
  const auto stopped = adanat_run(*dir_, "--version && timeout -s TERM 6 " + testing::binary() + " " + base +
                                             "100000 --out " + path("stopped"));
  EXPECT_EQ(stopped.status, 124) << stopped.err;  // timeout's own status once its child has gone
  EXPECT_TRUE(fs::exists(path("stopped/model/generator.safetensors")));
  EXPECT_NE(stopped.err.find("stopped by signal 15"), std::string::npos) << stopped.err;
}

// Other classes from a trained model: one is known by its name, one is new. The first update has a learning
// rate of 0, so the model written after it is what training starts from.
TEST_F(Shapes, FineTunesWithOtherClasses) {
  fs::create_directories(path("fewer"));
  fs::copy(path("shapes/square"), path("fewer/square"), fs::copy_options::recursive);
  fs::copy(path("shapes/disc"), path("fewer/coin"), fs::copy_options::recursive);
  expect_ok("tokenize encode --quiet -m " + model() + " --data " + path("fewer") + " -o " +
            path("fewer.safetensors"));
  const std::string train = "train generator --data " + path("fewer.safetensors") + " -m " + model() +
                            " --init " + model() + " --dtype float32 --set batch_size=16 --set loop.steps=1 ";
  const auto tuned = adanat_run(*dir_, train + "--out " + path("tuned"));
  ASSERT_EQ(tuned.status, 0) << tuned.err;
  EXPECT_NE(tuned.err.find("1 of 2 classes keep what it knows of them, 1 are new: coin"), std::string::npos)
      << tuned.err;
  const Json config = read_json_file(path("tuned/model/config.json"));
  EXPECT_EQ(config["class_names"], Json::parse(R"(["coin","square"])"));
  EXPECT_EQ(config["generator"]["width"], 32);  // no --set model.width: it comes from --init
  EXPECT_EQ(config["generator"]["heads"], 2);
  const TensorMap before = read_tensors(model() + "/generator.safetensors"),
                  after = read_tensors(path("tuned/model/generator.safetensors"));
  const std::string key = "context_embed.word_embeddings.weight";
  ASSERT_EQ(after.at(key).size(0), 3);
  EXPECT_TRUE(at::equal(after.at(key)[1], before.at(key)[1]));  // square
  EXPECT_TRUE(at::equal(after.at(key)[2], before.at(key)[3]));  // the empty condition
  for (const auto& [name, tensor] : before)
    EXPECT_TRUE(name == key || at::equal(tensor, after.at(name))) << name;
  expect_ok("generate --quiet --steps 2 -m " + path("tuned/model") + " -c coin,square -n 2 -o " +
            path("tuned.png"));

  const auto expect = [&](const std::string& arguments, const std::string& part) {
    EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, arguments), 2, part)) << arguments;
  };
  expect(train + "--set model.width=64 --out " + path("no"),
         "--init " + model() + ": its generator has width 32, this run wants 64");
  expect(train + "--set model.heads=4 --out " + path("no"), "heads 2, this run wants 4");
  expect("train generator --data " + path("tokens.safetensors") + " -m " + model() + " --init " +
             path("tokenizer/model") + " --out " + path("no"),
         "holds no generator");
  expect("train generator --data " + path("tokens.safetensors") + " -m " + model() + " --init " +
             (testing::source_dir() / "models/mnist").string() + " --set batch_size=16 --out " + path("no"),
         "models/mnist: its generator has codes ");
  EXPECT_FALSE(fs::exists(path("no")));
}

TEST_F(Shapes, WrongUseIsOneLineAndStatusTwo) {
  const std::string g = "generate -m " + model() + " -o " + path("x.png") + " ";
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, arguments), 2, part)) << arguments;
  };
  expect(g + "--steps 0", "--steps");
  expect(g + "-c square_", "close ones: square");
  expect(g + "-c 3", "ids are 0 to 2");
  expect(g + "--count 0", "--count");
  expect(g + "--schedule adaptive", "no policy");
  expect(g + "--schedule nonsense", "--schedule");
  expect(g + "--schedule /nonexistent.json", "cannot be read");
  expect(g + "--grid 1x1 -n 2", "cells");
  expect(g + "--guidance -1", "guidance");
  expect(g + "--device tpu", "--device");
  expect(g + "--nonsense", "nonsense");
  expect("generate -o x.png", "--model");
  expect("generate -m " + path("nosuch") + " -o x.png", "no such folder");
  expect("generate -m " + model() + " -o /proc/nothing/x.png", "--output");
  expect("generate -m " + model() + " -o " + path("shapes") + "/disc/0000.png/x.png", "--output");
  expect("nonsense", "nonsense");
  expect("", "a command is missing; see adanat --help");
  expect("tokenize encodes", "encodes: no such command; see adanat tokenize --help");
  expect("tokenize encode -m " + model(), "see adanat tokenize encode --help");
  expect(g + "--step 4", "--step: is nothing that this command takes; do you mean --steps?");
  expect(g + "--seed 1 --seed 2", "--seed: is given more than once");
  expect(g + "-c -1", "ids are 0 to 2");
  expect(g + "-c 99999999999999999999", "ids are 0 to 2");
  expect(
      "train generator --data " + path("shapes") + " -m " + path("tokenizer/model") + " --out " + path("new"),
      "adanat tokenize encode");
  expect("train generator --data " + path("tokens.safetensors") + " -m " + path("tokenizer/model") +
             " --out " + path("generator"),
         "--resume");
  expect("train generator --data " + path("tokens.safetensors") + " -m " + path("tokenizer/model") +
             " --out " + path("new") + " --set model.widht=3",
         "unknown key \"model.widht\"");
  expect("train generator --data " + path("tokens.safetensors") + " -m " + path("tokenizer/model") +
             " --out " + path("new") + " --set batch_size=1.5",
         "batch_size must be an integer");
  expect("train generator --data " + path("tokens.safetensors") + " -m " + path("tokenizer/model") +
             " --out " + path("new") + " --dtype float8",
         "dtype must be auto, float32 or bfloat16");
  expect("train tokenizer --data " + path("shapes") + " --out " + path("new") +
             " --set features=" + path("none.safetensors"),
         "none.safetensors");
  expect("train tokenizer --data " + path("shapes") + " --out " + path("new") +
             " --set features=" + (testing::source_dir() / "models/mnist/measure.safetensors").string(),
         "has the role measure");
  expect("train classifier --data " + path("shapes") + " --set model.image_size=28 --out " + path("new") +
             " -m " + (testing::source_dir() / "models/mnist").string(),
         "knows other classes");
  expect(
      "train tokenizer --data " + path("shapes") + " --out " + path("new") + " --set optimizer.accumulate=0",
      "optimizer.accumulate must be >= 1");
  EXPECT_FALSE(fs::exists(path("new")));
  EXPECT_FALSE(fs::exists(path("x.png")));
  for (const char* help : {"--help", "generate --help", "train --help", "train generator -h", "eval -h",
                           "tokenize encode -h", "info -h", "--version"})
    EXPECT_EQ(adanat_run(*dir_, help).status, 0) << help;
}

// A run goes on by its own folder alone: data, sizes and the folder of the other parts are in its
// config.json.
TEST_F(Shapes, GoesOnWithoutBeingToldAgain) {
  const std::string begin = "train generator --quiet -t 1 --data " + path("tokens.safetensors") + " -m " +
                            path("tokenizer/model") + " --out " + path("again") + kSmallGenerator +
                            " --set loop.steps=6 --set loop.checkpoint_every=3";
  expect_ok(begin);
  fs::remove_all(path("again/checkpoints/step-6"));
  expect_ok("train generator --quiet --resume --out " + path("again"));
  EXPECT_TRUE(fs::exists(path("again/checkpoints/step-6")));
  EXPECT_EQ(read_json_file(path("again/config.json"))["run"]["threads"], 1);
  // A start that came to nothing does not block its folder.
  const std::string bad =
      "train generator --quiet --data " + path("tokens.safetensors") + " -m " + path("tokenizer/model") +
      " --out " + path("failed") + kSmallGenerator +
      " --set loop.steps=6 --set loop.log_every=1 --set optimizer.clip=0 --set optimizer.learning_rate=";
  const auto outcome = adanat_run(*dir_, bad + "1e30");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("start again with a lower learning rate"), std::string::npos) << outcome.err;
  expect_ok(bad + "0.001");
}

TEST_F(Shapes, ATokenFileWithoutRowsIsExplained) {
  TensorMap none;
  none["tokens"] = at::zeros({0, 16}, at::kLong), none["classes"] = at::zeros({0}, at::kLong);
  write_tensors(path("none.safetensors"), none);
  for (const char* output : {"none.png", "none/"})
    EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "tokenize decode -m " + path("tokenizer/model") + " -i " +
                                                        path("none.safetensors") + " -o " + path(output)),
                                  2, "holds no rows of tokens"));
}

// The rows of mirrored images come after all others, so that the order of the data is the same whatever the
// batch.
TEST_F(Shapes, EncodesTheSameRowsWhateverTheBatch) {
  const std::string encode =
      "tokenize encode --quiet --flip -m " + path("tokenizer/model") + " --data " + path("shapes") + " -o ";
  expect_ok(encode + path("t7.safetensors") + " -b 7");
  expect_ok(encode + path("t64.safetensors") + " -b 64");
  const TensorMap a = read_tensors(path("t7.safetensors")), b = read_tensors(path("t64.safetensors"));
  for (const char* name : {"tokens", "classes", "flipped"})
    EXPECT_TRUE(at::equal(a.at(name), b.at(name))) << name;
  EXPECT_EQ(a.at("flipped").sum().item<int64_t>(), 120);
  EXPECT_EQ(a.at("flipped").narrow(0, 0, 120).sum().item<int64_t>(), 0);
}

TEST_F(Shapes, DamagedModelsAreExplained) {
  const auto damaged = [&](const std::string& name, auto change) {
    const std::string copy = path("damaged-" + name);
    fs::copy(model(), copy);
    change(fs::path(copy));
    return adanat_run(*dir_, "generate -m " + copy + " -o " + path("y.png"));
  };
  EXPECT_TRUE(is_one_line_error(damaged("format",
                                        [](fs::path p) {
                                          Json j = read_json_file(p / "config.json");
                                          j["format"] = 2;
                                          std::ofstream(p / "config.json") << j;
                                        }),
                                2, "format 2, this program reads up to 1"));
  EXPECT_TRUE(is_one_line_error(damaged("key",
                                        [](fs::path p) {
                                          Json j = read_json_file(p / "config.json");
                                          j["colour"] = 2;
                                          std::ofstream(p / "config.json") << j;
                                        }),
                                2, "unknown key \"colour\""));
  EXPECT_TRUE(is_one_line_error(damaged("cut",
                                        [](fs::path p) {
                                          fs::resize_file(p / "generator.safetensors",
                                                          fs::file_size(p / "generator.safetensors") - 10);
                                        }),
                                2, "generator.safetensors"));
  EXPECT_TRUE(is_one_line_error(damaged("none", [](fs::path p) { fs::remove(p / "tokenizer.safetensors"); }),
                                2, "tokenizer.safetensors"));
  EXPECT_FALSE(fs::exists(path("y.png")));
}

TEST_F(Shapes, BrokenImagesAreSkippedAndCounted) {
  fs::copy(path("shapes"), path("mixed"), fs::copy_options::recursive);
  std::ofstream(path("mixed/disc/zz.png")) << "no image";
  std::ofstream(path("mixed/disc/zzz")) << "no image either";
  std::ofstream(path("mixed/disc/zzz.txt")) << "notes";
  const auto encoded = adanat_run(
      *dir_, "tokenize encode -m " + model() + " --data " + path("mixed") + " -o " + path("m.safetensors"));
  EXPECT_EQ(encoded.status, 0);
  EXPECT_NE(encoded.err.find("2 images of"), std::string::npos) << encoded.err;
  EXPECT_NE(encoded.err.find("1 file that is no image"), std::string::npos) << encoded.err;
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "eval -m " + model() + " --images " + path("mixed") +
                                                      " --reference " + path("shapes")),
                                2, "zz.png"));
  fs::create_directories(path("bad/a"));
  std::ofstream(path("bad/a/x.png")) << "no image";
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "tokenize encode -m " + model() + " --data " + path("bad") +
                                                      " -o " + path("n.safetensors")),
                                2, "none of its images"));
  EXPECT_FALSE(fs::exists(path("n.safetensors")));
}

// A policy of two updates: what it writes is what generate takes by itself, and only for its own number of
// steps.
TEST_F(Shapes, TrainsAPolicyThatGenerateUses) {
  const std::string train =
      "train policy --quiet -t 1 --data " + path("shapes") + " -m " + model() +
      " --set steps=3"
      " --set base=cosine --set network.hidden=16 --set network.channels=4 --set network.mlp=16"
      " --set trajectories=24 --set rollout_batch=12 --set discriminator_batch=8"
      " --set discriminator_steps=2 --set evaluate_images=40 --set loop.checkpoint_every=2"
      " --set loop.log_every=1 --set loop.steps=";
  expect_ok(train + "4 --out " + path("policy"));
  for (const char* name :
       {"model/policy-T3.safetensors", "model/generator.safetensors", "model/measure.safetensors",
        "samples/samples-00000004.png", "samples/samples-before-00000004.png",
        "samples/schedule-guidance-00000004.png", "checkpoints/step-4/state.safetensors"})
    EXPECT_TRUE(fs::exists(path(std::string("policy/") + name))) << name;
  EXPECT_EQ(adanat_run(*dir_, "info --verify " + path("policy/model")).status, 0);
  const Json config = read_json_file(path("policy/config.json"));
  EXPECT_NE(config["dtype"], "auto") << "what it stands for is stored";
  EXPECT_EQ(config["run"]["threads"], 1) << "a resumed run sums as before";
  // Resumed after two updates, it is the same to the last bit.
  expect_ok(train + "2 --out " + path("policy-parts"));
  expect_ok(train + "4 --resume --out " + path("policy-parts"));
  const TensorMap a = read_tensors(path("policy/checkpoints/step-4/state.safetensors"));
  const TensorMap b = read_tensors(path("policy-parts/checkpoints/step-4/state.safetensors"));
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;

  const std::string g = "generate -m " + path("policy/model") + " -n 4 -o " + path("p/");
  expect_ok(g + " --quiet --steps 3 --trace " + path("p.json"));
  const Json trace = read_json_file(path("p.json"));
  EXPECT_NE(trace["samples"][0]["actions"][1], trace["samples"][1]["actions"][1]);  // samples of two classes
  const Image last = read_image(path("p/00003.png"));
  const auto text = read_png_text(path("p/00000.png"));
  EXPECT_NE(text.at(0).second.find("Sampler: adaptive"), std::string::npos);
  EXPECT_NE(text.at(0).second.find("policy_sha256"), std::string::npos);
  const auto other = adanat_run(*dir_, g + " --steps 5");
  EXPECT_NE(other.err.find("no policy for 5 steps"), std::string::npos) << other.err;
  const std::string file = " --policy " + path("policy/model/policy-T3.safetensors");
  EXPECT_TRUE(
      is_one_line_error(adanat_run(*dir_, g + " --steps 5" + file), 2, "is a policy for 3 steps, but 5"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, g + " --schedule cosine" + file), 2, "--policy"));
  expect_ok("generate --quiet -m " + model() + " -n 4 -o " + path("q/") + file);
  EXPECT_EQ(read_image(path("q/00003.png")).rgb, last.rgb);
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, train + "4 --out " + path("new-policy") + " --steps none"),
                                2, "--steps none"));
}

TEST_F(Shapes, SearchesATable) {
  const auto search = [&](const std::string& to, const std::string& rest) {
    return adanat_run(*dir_, "search schedule --quiet -t 1 -m " + model() + " --reference " + path("shapes") +
                                 " --count 20 --final-count 30 --population 2 -o " + path(to) + " --steps " +
                                 rest);
  };
  const auto outcome = search("found.json", "3 --candidates 3");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(is_one_line_error(search("found.json", "3 --candidates 5"), 2, "--resume"));
  const auto longer = search("found.json", "3 --candidates 5 --resume");
  ASSERT_EQ(longer.status, 0) << longer.err;
  EXPECT_EQ(Json::parse(longer.out)["candidates"], 5);
  expect_ok("generate --quiet -m " + model() + " --schedule " + path("found.json") + " -n 2 -o " +
            path("found.png"));
  EXPECT_TRUE(is_one_line_error(search("found.json", "4 --candidates 5 --resume"), 2, "another search"));

  // Scores belong to the table that a search starts from, not to the name of its file.
  fs::copy_file(path("found.json"), path("start.json"));
  const std::string from = "3 --candidates 2 --start " + path("start.json");
  EXPECT_TRUE(is_one_line_error(search("start.json", from), 2, "starts from"));
  ASSERT_EQ(search("again.json", from).status, 0);
  Json table = read_json_file(path("start.json"));
  table["guidance"][0] = 9;
  std::ofstream(path("start.json")) << table;
  EXPECT_TRUE(is_one_line_error(search("again.json", from + " --resume"), 2, "another search"));
}

// A minute on real digits: what a user's first run looks like.
TEST(Digits, TrainsForAMinuteAndDraws) {
  ADANAT_NEEDS_DATA();
  const TempDir dir;
  const std::string d = dir.path().string(), mnist = testing::shared_data().string() + "/mnist";
  const std::string configs = testing::source_dir().string() + "/configs/mnist/";
  const auto ok = [&](const std::string& arguments) {
    const auto outcome = adanat_run(dir, arguments);
    ASSERT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
  };
  ok("train classifier --quiet --config " + configs + "features.json --data " + mnist +
     "@:9000 --set loop.steps=60 --out " + d + "/features");
  ok("train tokenizer --quiet --config " + configs + "tokenizer.json --data " + mnist + "@:9000 -m " + d +
     "/features/model --out " + d +
     "/tokenizer --set loop.steps=120 --set gan.start=100 --set evaluate_images=100 --set loop.log_every=20");
  ok("tokenize encode --quiet -m " + d + "/tokenizer/model --data " + mnist + "@:9000 -o " + d +
     "/tokens.safetensors");
  ok("train generator --quiet --config " + configs + "generator.json --data " + d +
     "/tokens.safetensors -m " + d + "/tokenizer/model --out " + d +
     "/generator --set loop.steps=120 --set loop.log_every=20 --set optimizer.warmup=20");
  double last = 0;
  EXPECT_LT(0, first_and_last_loss(dir / "tokenizer/log.jsonl", "l1", &last));
  EXPECT_LT(last, 0.7 * first_and_last_loss(dir / "tokenizer/log.jsonl", "l1", &last));
  EXPECT_LT(last, first_and_last_loss(dir / "generator/log.jsonl", "loss", &last));
  ok("generate --quiet -m " + d + "/generator/model -o " + d + "/digits.png -n 20");
  EXPECT_EQ(read_image(dir / "digits.png").width, 5 * 28 + 4 * 2);
}

}  // namespace
}  // namespace adanat
