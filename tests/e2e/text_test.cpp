// Images from texts through the real binary: captions encoded, a generator trained on them, prompts.
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <fstream>

#include "apps/pipeline/model_folder.h"
#include "core/base/config.h"
#include "core/data/token_file.h"
#include "core/io/image.h"
#include "core/nn/module_state.h"
#include "e2e/program.h"
#include "text/small_encoder.h"
#include "tokenizer/vqgan.h"

namespace adanat {
namespace {

using testing::adanat_run;
using testing::is_one_line_error;
using testing::TempDir;
namespace fs = std::filesystem;

// A folder with a procedural tokenizer (16 pixels, 8x8 tokens) and the small text encoder; a table of 24
// captioned images, one of its rows broken; token file and trained generator (runs/model) made of them by the
// program.
class Texts : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    const fs::path parts = *dir_ / "parts";
    fs::create_directories(parts);
    TokenizerConfig config;
    config.image_size = 16, config.channels = 8, config.channel_multipliers = {1, 1};
    config.residual_blocks = 1, config.latent_channels = 4, config.codes = 16;
    Tokenizer tokenizer(config);
    testing::fill_procedural(*tokenizer);
    save_tokenizer(parts / "tokenizer.safetensors", *tokenizer);
    testing::write_small_encoder(parts / "text_encoder");
    ModelConfig model;
    model.name = "parts", model.image_size = 16;
    write_model_config(parts, model);
    fs::create_directories(*dir_ / "images");
    std::ofstream table(*dir_ / "t.tsv");
    const char* colours[] = {"red", "green", "blue"};
    for (int i = 0; i < 24; ++i) {
      Image image{16, 16, std::vector<uint8_t>(16 * 16 * 3, 20)};
      for (size_t p = 0; p < 256; ++p) image.rgb[p * 3 + size_t(i % 3)] = uint8_t(150 + 4 * i);
      const std::string name = "images/" + std::to_string(i) + ".png";
      write_png(*dir_ / name, image);
      table << "a " << colours[i % 3] << " square\t" << name << "\n";
    }
    table << "a lost square\timages/none.png\n";
    table.close();
    expect_ok("tokenize encode -m " + path("parts") + " --data " + path("t.tsv") + " -o " +
              path("tokens.safetensors") + " --flip -t 1");
    expect_ok(
        "train generator --quiet -t 1 --dtype float32 -m " + path("parts") + " --data " +
        path("tokens.safetensors") + " --out " + path("runs") +
        " --set batch_size=8 --set model.width=16 --set model.depth=2 --set model.heads=2 --set loop.steps=6"
        " --set loop.log_every=2");
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }
  static std::string path(const std::string& name) { return (*dir_ / name).string(); }
  static void expect_ok(const std::string& arguments) {
    const auto outcome = adanat_run(*dir_, arguments);
    ASSERT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
  }
  static std::string model() { return path("runs/model"); }
  static TempDir* dir_;
};
TempDir* Texts::dir_ = nullptr;

TEST_F(Texts, TokenFilesKeepCaptions) {
  const TokenFile file = read_token_file(path("tokens.safetensors"));
  EXPECT_EQ(file.tokens.size(0), 48);  // mirrored ones too; the row without an image is left out
  ASSERT_EQ(file.captions.size(), 48u);
  std::map<std::string, int> counts;
  for (const std::string& caption : file.captions) ++counts[caption];
  EXPECT_EQ(counts, (std::map<std::string, int>{
                        {"a red square", 16}, {"a green square", 16}, {"a blue square", 16}}));
}

TEST_F(Texts, TrainingWritesAWholeFolderAndKeepsEncodedTexts) {
  const ModelConfig config = read_model_config(model());
  EXPECT_TRUE(config.from_texts());
  EXPECT_EQ(config.generator->text_width, 48);
  EXPECT_TRUE(config.class_names.empty());
  EXPECT_TRUE(verify_model(model(), config).empty());
  std::vector<fs::path> kept;
  for (const auto& entry : fs::directory_iterator(dir_->path()))
    if (entry.path().filename().string().starts_with("tokens.text-")) kept.push_back(entry.path());
  ASSERT_EQ(kept.size(), 1u);
  // Another run takes the file as it is.
  const auto before = fs::last_write_time(kept[0]);
  expect_ok(
      "train generator --quiet -t 1 --dtype float32 -m " + path("parts") + " --data " +
      path("tokens.safetensors") + " --out " + path("again") +
      " --set batch_size=8 --set model.width=16 --set model.depth=2 --set model.heads=2 --set loop.steps=6"
      " --set loop.log_every=2");
  EXPECT_EQ(fs::last_write_time(kept[0]), before);
  EXPECT_EQ(read_file(path("again/model/generator.safetensors")),
            read_file(path("runs/model/generator.safetensors")));
}

TEST_F(Texts, PromptsMakeImagesThatSayWhatTheyAre) {
  const std::string generate = "generate -m " + model() + " --steps 3 --guidance 2 -t 1 ";
  const auto run = adanat_run(
      *dir_, generate + "-o " + path("out/") + " -n 3 -p 'a red square' --prompt '[a], \"caf\xc3\xa9\"'" +
                 " --json --trace " + path("trace.json") + " --save-tokens " + path("s.safetensors"));
  ASSERT_EQ(run.status, 0) << run.err;
  const Json summary = Json::parse(run.out);
  EXPECT_EQ(summary["prompts"], (Json{"a red square", "[a], \"caf\xc3\xa9\""}));
  const auto text = read_png_text(path("out/00001.png"));
  ASSERT_EQ(text.size(), 1u);
  EXPECT_EQ(text[0].first, "parameters");
  EXPECT_TRUE(text[0].second.starts_with("[a], \"caf\xc3\xa9\"\nSteps: 3, Sampler: cosine, CFG scale: 2"))
      << text[0].second;
  EXPECT_EQ(Json::parse(text[0].second.substr(text[0].second.find("\n{") + 1))["prompt"],
            "[a], \"caf\xc3\xa9\"");
  const Json trace = Json::parse(read_file(path("trace.json")));
  EXPECT_EQ(trace["samples"][2]["prompt"], "a red square");
  EXPECT_FALSE(trace["samples"][2].contains("class"));
  Metadata metadata;
  const TensorMap saved = read_tensors(path("s.safetensors"), &metadata);
  EXPECT_TRUE(at::equal(saved.at("classes"), at::tensor({0, 1, 0}, at::kLong)));
  EXPECT_EQ(Json::parse(metadata.at("prompts")), summary["prompts"]);
  // The same image alone, by its index; another text makes another.
  expect_ok(generate + "-o " + path("one.png") + " -p '[a], \"caf\xc3\xa9\"' --first-index 1 --save-tokens " +
            path("one.safetensors"));
  EXPECT_TRUE(at::equal(read_tensors(path("one.safetensors")).at("tokens")[0], saved.at("tokens")[1]));
  EXPECT_FALSE(at::equal(saved.at("tokens")[0], saved.at("tokens")[2]));
  const auto grid = adanat_run(*dir_, generate + "-o " + path("grid.png") + " -n 2 -p x -p y");
  ASSERT_EQ(grid.status, 0) << grid.err;
  EXPECT_EQ(Json::parse(read_png_text(path("grid.png"))[0].second.substr(
                read_png_text(path("grid.png"))[0].second.find("\n{") + 1))["prompts"],
            (Json{"x", "y"}));
}

TEST_F(Texts, LongPromptsAreCutWithAWarning) {
  std::string words;
  for (int i = 0; i < 90; ++i) words += "x ";
  const auto run = adanat_run(
      *dir_, "generate -m " + model() + " --steps 2 -t 1 -o " + path("long.png") + " -p '" + words + "end'");
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_NE(run.err.find("warning: the text \"x x"), std::string::npos) << run.err;
  EXPECT_NE(run.err.find("is over 77 tokens long, the rest was cut off: \"x x"), std::string::npos)
      << run.err;
}

TEST_F(Texts, ErrorsNameTheFlag) {
  const std::string o = " --steps 2 -o " + path("x.png");
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "generate -m " + model() + o + " -c 1"), 2,
                                "--class: the model runs makes images from texts"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "generate -m " + model() + o), 2,
                                "--prompt: the model runs makes images from texts; give one"));
  EXPECT_TRUE(is_one_line_error(
      adanat_run(*dir_, "generate -m " + (testing::source_dir() / "models/mnist").string() + o + " -p x"), 2,
      "--prompt: the model mnist makes images from classes; use --class"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "generate -m " + model() + o + " -p"), 2, "--prompt"));
  const fs::path bare = *dir_ / "bare";
  fs::copy(model(), bare, fs::copy_options::recursive);
  fs::remove_all(bare / "text_encoder");
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "generate -m " + bare.string() + o + " -p x"), 2,
                                "holds no text encoder; put the Hugging Face folder"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "train generator -m " + bare.string() + " --data " +
                                                      path("tokens.safetensors") + " --out " + path("no")),
                                2, "holds no text encoder"));
  EXPECT_FALSE(fs::exists(path("x.png")));
}

// What is measured is made from the captions of the reference.
TEST_F(Texts, EvalMeasuresAgainstCaptionedImages) {
  const std::string measure = (testing::source_dir() / "models/signs/measure.safetensors").string();
  const std::string eval =
      "eval -m " + model() + " --steps 2 --count 24 -t 1 --weights " + measure + " --reference ";
  const auto run = [&](const std::string& arguments) {
    const auto outcome = adanat_run(*dir_, eval + arguments);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return outcome.status == 0 ? Json::parse(outcome.out) : Json();
  };
  const Json j = run(path("t.tsv") + "@:24 -b 5 --cache " + path("kept"));
  EXPECT_EQ(j.at("count"), 24);
  EXPECT_EQ(j.at("reference_count"), 24);
  EXPECT_EQ(j.at("labels"), "reference");
  EXPECT_EQ(j.at("text_encoder_sha256").get<std::string>().size(), 64u);
  EXPECT_FALSE(j.at("metrics").contains("accuracy"));
  const double fd = j.at("metrics").at("fd").at("value").get<double>();
  // The images are those of the prompts, as generate makes them.
  expect_ok("generate -m " + model() + " --steps 2 -n 24 -b 5 -t 1 -o " + path("prompted/") +
            " -p 'a red square' -p 'a green square' -p 'a blue square'");
  const auto images = adanat_run(*dir_, "eval -t 1 --images " + path("prompted") + " --weights " + measure +
                                            " --crop 16 --reference " + path("t.tsv") + "@:24");
  ASSERT_EQ(images.status, 0) << images.err;
  EXPECT_NEAR(Json::parse(images.out).at("metrics").at("fd").at("value").get<double>(), fd, 1e-6 * fd);
  // Other captions are other images; the cache knows which.
  std::string table = read_file(path("t.tsv"));
  for (size_t at = 0; (at = table.find("a red", at)) != std::string::npos;) table.replace(at, 5, "a big");
  std::ofstream(path("other.tsv")) << table;
  const std::string kept = "@:24 -b 5 --cache " + path("kept");
  EXPECT_EQ(run(path("t.tsv") + kept).at("metrics"), j.at("metrics"));
  EXPECT_NE(run(path("other.tsv") + kept).at("metrics"), j.at("metrics"));
  const Json random = run(path("t.tsv") + " --labels random --skip-broken --cache none");
  EXPECT_EQ(random.at("labels"), "random");
  EXPECT_EQ(random.at("skipped"), 1);
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, eval + path("t.tsv")), 2, "none.png"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, eval + path("images")), 2, "has no captions"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "eval -m " + model() + " --count 24 --weights " + measure +
                                                      " --save-stats " + path("s.npz")),
                                2, "--reference: the model runs makes images from texts"));
}

TEST_F(Texts, SearchFindsASchedule) {
  const fs::path folder = *dir_ / "searched";
  fs::copy(model(), folder, fs::copy_options::recursive);
  const std::string search = "search schedule --quiet -t 1 -m " + folder.string() + " --reference " +
                             path("t.tsv") + "@:24 --steps 2 --candidates 3 --population 2 --count 24" +
                             " --final-count 24 -b 7 -o " + path("found.json");
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, search), 2, "features.safetensors"));
  fs::copy(testing::source_dir() / "models/signs/features.safetensors", folder / "features.safetensors");
  const auto run = adanat_run(*dir_, search);
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out).at("candidates"), 3);
  EXPECT_EQ(Json::parse(read_file(path("found.history.json")))
                .at("search")
                .at("text_encoder")
                .get<std::string>()
                .size(),
            64u);
  expect_ok("generate -m " + model() + " --schedule " + path("found.json") + " -t 1 -p x -o " +
            path("found.png"));
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "search schedule -m " + folder.string() + " --reference " +
                                                      path("images") + " --steps 2 -o " + path("none.json")),
                                2, "has no captions"));
}

TEST_F(Texts, BenchTimesStates) {
  const auto run = adanat_run(*dir_, "bench -m " + model() + " --steps 2 --warmup 0 --repeats 1 -t 1 --json" +
                                         " --batch-sweep 1,3 --stages transformer,generate");
  ASSERT_EQ(run.status, 0) << run.err;
  const Json report = Json::parse(run.out);
  EXPECT_EQ(report.at("results").size(), 4u);
  EXPECT_EQ(report.at("model").at("generator").at("condition"), "text");
  std::ofstream(path("shape.json")) << report.at("model").dump();
  const auto shape =
      adanat_run(*dir_, "bench --shape " + path("shape.json") + " --steps 2 --warmup 0 " +
                            "--repeats 1 -t 1 --json --classes 2 --batch-sweep 3 --stages generate");
  ASSERT_EQ(shape.status, 0) << shape.err;
  EXPECT_EQ(Json::parse(shape.out).at("results").size(), 1u);
  EXPECT_TRUE(is_one_line_error(adanat_run(*dir_, "bench --train -m " + model()), 2, "encoded captions"));
}

TEST_F(Texts, SavedTokensKnowTheirTokenizer) {
  expect_ok("generate -m " + model() + " --steps 2 -t 1 -p x -o " + path("k.png") + " --save-tokens " +
            path("k.safetensors"));
  const auto decode = [&](const std::string& tokens) {
    return adanat_run(*dir_, "tokenize decode -t 1 -m " + path("other") + " -i " + path(tokens) + " -o " +
                                 path("decoded.png"));
  };
  fs::copy(path("parts"), path("other"), fs::copy_options::recursive);
  for (const char* tokens : {"k.safetensors", "tokens.safetensors"}) {
    const auto same = decode(tokens);
    EXPECT_EQ(same.status, 0) << same.err;
    EXPECT_EQ(same.err.find("warning"), std::string::npos) << same.err;
  }
  TokenizerConfig config = *read_model_config(path("parts")).tokenizer;
  Tokenizer tokenizer(config);
  save_tokenizer(path("other/tokenizer.safetensors"), *tokenizer);
  write_model_config(path("other"), read_model_config(path("other")));
  for (const char* tokens : {"k.safetensors", "tokens.safetensors"}) {
    const auto another = decode(tokens);
    EXPECT_EQ(another.status, 0) << another.err;
    EXPECT_NE(another.err.find("warning: " + path(tokens) + ": was made by the tokenizer"), std::string::npos)
        << another.err;
  }
}

TEST_F(Texts, PoliciesTrainOnCaptions) {
  expect_ok("train policy --quiet -t 1 --dtype float32 -m " + model() + " --data " + path("t.tsv") +
            " --steps 3 --out " + path("policy") +
            " --set trajectories=8 --set rollout_batch=8 --set discriminator_batch=8 --set "
            "discriminator_steps=1 --set loop.steps=2"
            " --set 'reward.kinds=[\"conv\"]' --set reward.conv_width=8 --set network.hidden=16 --set "
            "network.channels=8 --set network.mlp=16");
  const auto run = adanat_run(*dir_, "generate -m " + path("policy/model") + " --steps 3 -t 1 --json -o " +
                                         path("p.png") + " -p 'a red square'");
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["schedule"], "adaptive");
}

}  // namespace
}  // namespace adanat
