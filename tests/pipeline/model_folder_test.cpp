#include "apps/pipeline/model_folder.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>

#include "apps/pipeline/pipeline.h"
#include "core/io/atomic_file.h"
#include "core/nn/module_state.h"
#include "pipeline/small_model.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::message_of;
using testing::write_small_model;
using testing::write_small_text_model;

TEST(ModelFolder, HoldsATextEncoder) {
  const testing::TempDir dir;
  write_small_text_model(dir / "m");
  ModelConfig config = read_model_config(dir / "m");
  EXPECT_TRUE(config.from_texts());
  EXPECT_EQ(config.files.count("text_encoder/model.safetensors"), 1u);
  EXPECT_EQ(config.files.count("text_encoder/vocab.json"), 1u);
  EXPECT_TRUE(verify_model(dir / "m", config).empty());
  // The padding token is kept.
  config.text_encoder.pad_token = "!";
  write_model_config(dir / "m", config);
  EXPECT_EQ(read_model_config(dir / "m").text_encoder.pad_token, "!");
  // The encoder goes along with the other parts, and both folders stay whole.
  fs::create_directories(dir / "n");
  copy_missing_parts(dir / "m", dir / "n");
  write_model_config(dir / "n", config);
  EXPECT_TRUE(verify_model(dir / "n", read_model_config(dir / "n")).empty());
  EXPECT_EQ(read_model_config(dir / "n").files, read_model_config(dir / "m").files);
  fs::remove_all(dir / "m");
  EXPECT_TRUE(verify_model(dir / "n", read_model_config(dir / "n")).empty());
}

TEST(Pipeline, GeneratesFromTexts) {
  const testing::TempDir dir;
  write_small_text_model(dir / "m");
  Pipeline pipeline = Pipeline::open(dir / "m", at::kCPU, at::kFloat);
  const auto schedule = pipeline.schedule("cosine", 3, {.guidance = 2});
  EXPECT_THROW(pipeline.generate({{0}, 5, 10}, *schedule), InputError);  // no texts yet
  pipeline.set_prompts({"a cat", "a dog", "a cat"});
  const BatchResult all = pipeline.generate({{0, 1, 2}, 5, 10}, *schedule);
  EXPECT_EQ(all.images.sizes(), (std::vector<int64_t>{3, 3, 16, 16}));
  // A text, a seed and an index are an image: whatever stands beside it in the list and in the batch.
  pipeline.set_prompts({"something else", "a dog"});
  EXPECT_TRUE(at::equal(pipeline.generate({{1}, 5, 11}, *schedule).tokens[0], all.tokens[1]));
  pipeline.set_prompts({"something else", "a cat"});
  EXPECT_TRUE(at::equal(pipeline.generate({{1}, 5, 12}, *schedule).tokens[0], all.tokens[2]));
  EXPECT_FALSE(at::equal(pipeline.generate({{0}, 5, 12}, *schedule).tokens[0], all.tokens[2]));
  // The sampler is given the encoder's states of the texts and of the empty one.
  const ClipTextEncoder encoder = ClipTextEncoder::open(dir / "m/text_encoder", at::kCPU);
  const ClipTextOutput states = encoder.encode({"", "a cat", "a dog"});
  const at::Tensor expected =
      sample(pipeline.generator(),
             plain_start(pipeline.generator(), {states.states.narrow(0, 1, 2), states.states.narrow(0, 0, 1)},
                         at::tensor({0, 1, 0}), 5, at::arange(10, 13)),
             *schedule);
  EXPECT_TRUE(at::equal(expected, all.tokens));
}

TEST(Pipeline, NamesWhatATextModelLacks) {
  const testing::TempDir dir;
  write_small_text_model(dir / "m");
  const auto message = [&] {
    Pipeline pipeline = Pipeline::open(dir / "m", at::kCPU, at::kFloat);
    return message_of([&] { pipeline.set_prompts({"a cat"}); });
  };
  EXPECT_EQ(message(), "no error");
  GeneratorConfig config = *read_model_config(dir / "m").generator;
  config.text_width = 1280;
  write_generator(dir / "m/generator.safetensors", config, module_state(*Generator(config)));
  write_model_config(dir / "m", read_model_config(dir / "m"));
  EXPECT_NE(message().find("gives 77 states of width 48, the generator wants 77 of width 1280"),
            std::string::npos)
      << message();
  fs::remove_all(dir / "m/text_encoder");
  EXPECT_NE(message().find("holds no text encoder"), std::string::npos) << message();
  write_small_model(dir / "classes");
  EXPECT_THROW(Pipeline::open(dir / "classes", at::kCPU, at::kFloat).set_prompts({"a cat"}), InputError);
}

TEST(ModelFolder, RoundTripsAndVerifies) {
  const testing::TempDir dir;
  write_small_model(dir / "m");
  const ModelConfig config = read_model_config(dir / "m");
  EXPECT_EQ(config.name, "small");
  EXPECT_EQ(config.generator->width, 32);
  EXPECT_EQ(config.tokenizer->codes, 32);
  EXPECT_TRUE(verify_model(dir / "m", config).empty());
  std::ofstream(dir / "m/generator.safetensors", std::ios::app) << "x";
  ASSERT_EQ(verify_model(dir / "m", config).size(), 1u);
  EXPECT_NE(verify_model(dir / "m", config)[0].find("generator.safetensors"), std::string::npos);
}

TEST(ModelFolder, ClassesByNameOrNumber) {
  ModelConfig config;
  config.class_names = {"cat", "dog", "7"};
  EXPECT_EQ(class_id(config, "dog"), 1);
  EXPECT_EQ(class_id(config, "0"), 0);
  EXPECT_THROW(class_id(config, "7"), InputError);  // an integer is always an id
  const std::string text = message_of([&] { class_id(config, "dig"); });
  EXPECT_NE(text.find("close ones: dog"), std::string::npos) << text;
}

TEST(Pipeline, GeneratesTheSameInAnyBatch) {
  const testing::TempDir dir;
  write_small_model(dir / "m");
  Pipeline pipeline = Pipeline::open(dir / "m", at::kCPU, at::kFloat);
  const auto schedule = pipeline.schedule("cosine", 3, {});
  const BatchResult both = pipeline.generate({{0, 1}, 5, 10}, *schedule);
  const BatchResult second = pipeline.generate({{1}, 5, 11}, *schedule);
  EXPECT_TRUE(at::equal(both.tokens[1], second.tokens[0]));
  EXPECT_EQ(both.images.sizes(), (std::vector<int64_t>{2, 3, 16, 16}));
  EXPECT_THROW(pipeline.schedule("adaptive", 3, {}), InputError);
  EXPECT_EQ(pipeline.schedule("", 0, {})->steps(), pipeline.config().sampling.steps);
}

std::string opening_error(const fs::path& folder) {
  return message_of([&] { Pipeline::open(folder, at::kCPU, at::kFloat); });
}

// Rewrites a part of the model with one weight changed; config.json gets the new hash if `rehash`.
void change_weight(const fs::path& folder, const char* part, const char* name, double value, bool rehash) {
  Metadata metadata;
  TensorMap tensors;
  for (const auto& [key, tensor] : read_tensors(folder / part, &metadata)) tensors[key] = tensor.clone();
  tensors.at(name).view({-1})[1] = value;
  write_tensors(folder / part, tensors, metadata);
  if (rehash) write_model_config(folder, read_model_config(folder));
}

TEST(ModelFolder, APartThatIsNotTheListedOneIsNamed) {
  const testing::TempDir dir;
  write_small_model(dir / "m");
  const fs::path file = dir / "m" / "tokenizer.safetensors";
  ModelConfig config = read_model_config(dir / "m");
  check_part_hash(config, file);
  config.files["tokenizer.safetensors"] = std::string(64, '0');
  EXPECT_NE(message_of([&] { check_part_hash(config, file); }).find(file.string() + ": has hash"),
            std::string::npos);
  config.files.erase("tokenizer.safetensors");
  check_part_hash(config, file);
}

TEST(ModelFolder, NoGeneratorComesAlongToAnotherTokenizer) {
  const testing::TempDir dir;
  write_small_model(dir / "m");
  write_file_atomic(dir / "m" / "policy-T4.safetensors", "p"),
      write_file_atomic(dir / "m" / "features.safetensors", "f");
  fs::create_directories(dir / "n");
  write_file_atomic(dir / "n" / "tokenizer.safetensors", "new");
  copy_missing_parts(dir / "m", dir / "n");
  EXPECT_EQ(read_file(dir / "n" / "tokenizer.safetensors"), "new");
  EXPECT_TRUE(fs::exists(dir / "n" / "features.safetensors"));
  EXPECT_FALSE(fs::exists(dir / "n" / "generator.safetensors"));
  EXPECT_FALSE(fs::exists(dir / "n" / "policy-T4.safetensors"));
}

TEST(Pipeline, NamesAFlippedBit) {
  for (const char* part : {"generator.safetensors", "tokenizer.safetensors"}) {
    const testing::TempDir dir;
    write_small_model(dir / "m");
    EXPECT_EQ(opening_error(dir / "m"), "no error");
    const fs::path file = dir / "m" / part;
    std::string bytes = read_file(file);
    bytes[bytes.size() - 100] ^= 4;
    write_file_atomic(file, bytes);
    EXPECT_NE(opening_error(dir / "m").find(file.string() + ": has hash "), std::string::npos)
        << opening_error(dir / "m");
  }
}

TEST(Pipeline, ReadsNoNewerFormat) {
  for (const char* part : {"generator.safetensors", "tokenizer.safetensors"}) {
    const testing::TempDir dir;
    write_small_model(dir / "m");
    Metadata metadata;
    const TensorMap tensors = read_tensors(dir / "m" / part, &metadata);
    metadata["format"] = "2";
    write_tensors(dir / "m" / part, tensors, metadata);
    write_model_config(dir / "m", read_model_config(dir / "m"));
    EXPECT_NE(opening_error(dir / "m").find(cat(part, ": has the format \"2\", this program reads \"")),
              std::string::npos)
        << opening_error(dir / "m");
  }
}

TEST(Pipeline, NamesAWeightThatIsNoNumber) {
  for (const double bad : {double(NAN), double(INFINITY)}) {
    const testing::TempDir dir;
    write_small_model(dir / "m");
    change_weight(dir / "m", "generator.safetensors", "mid_block.mlp.fc1.weight", bad, true);
    EXPECT_NE(opening_error(dir / "m").find("generator.safetensors: mid_block.mlp.fc1.weight holds NaN"),
              std::string::npos)
        << opening_error(dir / "m");
  }
}

TEST(Pipeline, NamesTheFolderWhoseLogitsAreNoNumbers) {
  const testing::TempDir dir;
  write_small_model(dir / "m");
  change_weight(dir / "m", "generator.safetensors", "mid_block.mlp.fc1.weight", 3e38, true);
  change_weight(dir / "m", "generator.safetensors", "mid_block.mlp.fc2.weight", 3e38, true);
  change_weight(dir / "m", "generator.safetensors", "mid_block.norm2.bias", 3e38, true);
  Pipeline pipeline = Pipeline::open(dir / "m", at::kCPU, at::kFloat);
  const auto schedule = pipeline.schedule("cosine", 2, {});
  const std::string text = message_of<RunError>([&] { pipeline.generate({{0}, 1, 0}, *schedule); });
  EXPECT_EQ(text.find((dir / "m").string() + ": a logit is not a number"), 0u) << text;
}

// Terabytes by the config, kilobytes in the files: refused from the files' headers. (Were the module built
// first, this test would end in std::bad_alloc or take minutes.)
TEST(Pipeline, RefusesAHugeConfigAtOnce) {
  for (const char* part : {"generator", "tokenizer"}) {
    const testing::TempDir dir;
    write_small_model(dir / "m");
    const std::string config = (dir / "m/config.json").string();
    Json j = read_json_file(config);
    if (part == std::string("generator"))
      j[part]["width"] = 65536, j[part]["depth"] = 1024;
    else
      j[part]["channels"] = 4096, j[part]["residual_blocks"] = 64;
    write_file_atomic(config, j.dump());
    const std::string error = opening_error(dir / "m");
    EXPECT_NE(error.find(std::string(part) + ".safetensors: lacks "), std::string::npos) << error;
    j = read_json_file(config);
    if (part == std::string("generator"))
      j[part]["depth"] = 2;
    else
      j[part]["residual_blocks"] = 1;
    write_file_atomic(config, j.dump());
    EXPECT_NE(opening_error(dir / "m").find(" has shape ["), std::string::npos) << opening_error(dir / "m");
  }
}

TEST(Grid, PlacesImagesInReadingOrder) {
  at::Tensor images = at::zeros({3, 3, 2, 2}, at::kByte);
  for (int64_t i = 0; i < 3; ++i) images[i].fill_(10 * (i + 1));
  const Image grid = make_grid(images, 2, 2, 1);
  EXPECT_EQ(grid.width, 5);
  EXPECT_EQ(grid.height, 5);
  const auto at_pixel = [&](int x, int y) { return int(grid.rgb[size_t((y * 5 + x) * 3)]); };
  EXPECT_EQ(at_pixel(0, 0), 10);
  EXPECT_EQ(at_pixel(3, 0), 20);
  EXPECT_EQ(at_pixel(0, 3), 30);
  EXPECT_EQ(at_pixel(2, 2), 255);  // the gap
  EXPECT_EQ(at_pixel(4, 4), 255);  // the unused cell
  EXPECT_EQ(grid_shape(43), (std::pair<int64_t, int64_t>{7, 7}));
  EXPECT_EQ(grid_shape(6), (std::pair<int64_t, int64_t>{2, 3}));
}

}  // namespace
}  // namespace adanat
