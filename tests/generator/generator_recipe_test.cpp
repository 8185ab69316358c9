// Training of the generator: it learns, resumes to the same bits, and refuses what cannot work.
#include "core/generator/generator_recipe.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/train/trainer.h"
#include "support/support.h"

namespace adanat {
namespace {

// 64 rows whose tokens are fixed by their class: easy to learn.
TokenFile class_patterns() {
  TokenFile file;
  file.classes = at::arange(64) % 4;
  file.tokens = ((file.classes.unsqueeze(1) * 3 + at::arange(9)) % 8).to(at::kInt);
  file.flipped = at::zeros({64}, at::kByte);
  file.grid_height = file.grid_width = 3;
  file.vocab = 8;
  file.class_names = {"a", "b", "c", "d"};
  return file;
}

GeneratorTrainConfig small_config(int64_t steps) {
  GeneratorTrainConfig config;
  config.model.width = 32, config.model.depth = 2, config.model.heads = 2;
  config.batch_size = 16;
  config.optimizer.learning_rate = 3e-3, config.optimizer.warmup = 4;
  config.loop.steps = steps, config.loop.log_every = 5;
  config.dtype = "float32";
  return config;
}

TensorMap state_of(const Recipe& recipe) {
  TensorMap out;
  recipe.save(out);
  TensorMap copies;
  for (const auto& [name, tensor] : out) copies[name] = tensor.clone();
  return copies;
}

TEST(GeneratorRecipe, LearnsTheClassesAndDropsTheLoss) {
  const auto recipe = make_generator_recipe(small_config(160), class_patterns(), nullptr, {}, {});
  const double first = recipe->step(0).values[0].second.item<double>();
  double last = 0;
  for (int64_t s = 1; s < 160; ++s) last = recipe->step(s).values[0].second.item<double>();
  EXPECT_LT(last, 0.6 * first);
}

TEST(GeneratorRecipe, TenStepsAreFiveSavedLoadedAndFive) {
  const testing::TempDir dir;
  const auto whole = make_generator_recipe(small_config(10), class_patterns(), nullptr, {}, {});
  run_training(*whole, dir / "whole", false);
  const auto first = make_generator_recipe(small_config(5), class_patterns(), nullptr, {}, {});
  run_training(*first, dir / "parts", false);
  const auto second = make_generator_recipe(small_config(10), class_patterns(), nullptr, {}, {});
  run_training(*second, dir / "parts", true);
  const TensorMap a = state_of(*whole), b = state_of(*second);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
}

// The same patterns told apart by captions, whose encodings the test makes up.
TokenFile captioned_patterns() {
  TokenFile file = class_patterns();
  const char* words[] = {"one", "two", "three", "four"};
  for (int64_t i = 0; i < 64; ++i) file.captions.emplace_back(words[file.classes[i].item<int64_t>()]);
  file.classes = at::zeros({64}, at::kLong);
  file.class_names = {"all"};
  return file;
}

TextFeatures encoded_words(const std::filesystem::path& path) {
  const std::string texts = "onetwothreefour";
  const std::vector<int64_t> ends = {0, 3, 6, 11, 15};
  const at::Tensor features = testing::input_float("encoded", {5, 3 * 8 + 2}, 1).to(at::kHalf);
  write_safetensors(
      path,
      {{"features", DType::kF16, {5, 26}, features.const_data_ptr(), features.nbytes()},
       {"text_ends", DType::kI64, {5}, ends.data(), 40},
       {"texts", DType::kU8, {15}, texts.data(), texts.size()}},
      {{"format", "adanat-text-1"}, {"encoder", "h"}, {"tokens", "3"}, {"width", "8"}, {"pooled", "2"}});
  return TextFeatures::open(path);
}

TEST(GeneratorRecipe, LearnsFromCaptions) {
  const testing::TempDir dir;
  const TextFeatures words = encoded_words(dir / "words");
  const auto recipe = make_generator_recipe(small_config(160), captioned_patterns(), nullptr, {}, {}, words);
  const double first = recipe->step(0).values[0].second.item<double>();
  double last = 0;
  for (int64_t s = 1; s < 160; ++s) last = recipe->step(s).values[0].second.item<double>();
  EXPECT_LT(last, 0.6 * first);
  EXPECT_EQ(recipe->config()["model"]["condition"], "text");
  EXPECT_EQ(recipe->config()["model"]["text_tokens"], 3);
  EXPECT_EQ(recipe->config()["model"]["text_width"], 8);
  EXPECT_EQ(recipe->config()["trained_on"]["text_encoder"], "h");
  // Nothing learns without the captions: what was dropped is the empty text for all, whatever the captions
  // are.
  GeneratorTrainConfig dropped = small_config(4);
  dropped.condition_dropout = 1;
  TokenFile mixed = captioned_patterns();
  std::rotate(mixed.captions.begin(), mixed.captions.begin() + 1, mixed.captions.end());
  // Made and stepped one after the other: the random draws are the process's.
  const auto first_loss = [&](const GeneratorTrainConfig& config, const TokenFile& file) {
    return make_generator_recipe(config, file, nullptr, {}, {}, words)
        ->step(0)
        .values[0]
        .second.item<double>();
  };
  EXPECT_EQ(first_loss(dropped, captioned_patterns()), first_loss(dropped, mixed));
  EXPECT_NE(first_loss(small_config(4), captioned_patterns()), first_loss(small_config(4), mixed));
}

TEST(GeneratorRecipe, ResumesCaptionsToTheSameBits) {
  const testing::TempDir dir;
  const TextFeatures words = encoded_words(dir / "words");
  const auto whole = make_generator_recipe(small_config(10), captioned_patterns(), nullptr, {}, {}, words);
  run_training(*whole, dir / "whole", false);
  const auto first = make_generator_recipe(small_config(5), captioned_patterns(), nullptr, {}, {}, words);
  run_training(*first, dir / "parts", false);
  const auto second = make_generator_recipe(small_config(10), captioned_patterns(), nullptr, {}, {}, words);
  run_training(*second, dir / "parts", true);
  const TensorMap a = state_of(*whole), b = state_of(*second);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
}

TEST(GeneratorRecipe, RefusesCaptionsThatAreMissing) {
  const testing::TempDir dir;
  const TextFeatures words = encoded_words(dir / "words");
  EXPECT_THROW(make_generator_recipe(small_config(4), class_patterns(), nullptr, {}, {}, words), InputError);
  TokenFile unknown = captioned_patterns();
  unknown.captions[7] = "five";
  EXPECT_THROW(make_generator_recipe(small_config(4), unknown, nullptr, {}, {}, words), InputError);
}

// Timing both precisions leaves no trace: the run is the one that begins with the chosen precision.
TEST(GeneratorRecipe, AutomaticPrecisionChoosesAndLeavesNoTrace) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    GeneratorTrainConfig config = small_config(4);
    config.model.dropout = 0.2;
    config.dtype = dtype;
    const auto given = make_generator_recipe(config, class_patterns(), nullptr, {}, {});
    for (int64_t s = 0; s < 4; ++s) given->step(s);
    config.dtype = "auto";
    const auto chosen = make_generator_recipe(config, class_patterns(), nullptr, {}, {});
    const DtypeChoice choice = choose_dtype(*chosen);
    EXPECT_EQ(chosen->dtype(), choice.dtype);
    EXPECT_GT(choice.float32_seconds, 0);
    EXPECT_GT(choice.bfloat16_seconds, 0);
    chosen->set_dtype(dtype);
    for (int64_t s = 0; s < 4; ++s) chosen->step(s);
    const TensorMap a = state_of(*given), b = state_of(*chosen);
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << dtype << ": " << name;
  }
}

TEST(GeneratorRecipe, WeightsThatDoNotFitTheirTypeAreNotWritten) {
  const testing::TempDir dir;
  GeneratorTrainConfig config = small_config(1);
  config.optimizer.learning_rate = 1e9, config.optimizer.warmup = 0;
  config.ema.decay = 0;
  const auto recipe = make_generator_recipe(config, class_patterns(), nullptr, {}, {});
  try {
    run_training(*recipe, dir / "out", false);
    FAIL() << "weights near 1e9 became infinite float16 ones";
  } catch (const RunError& e) {
    EXPECT_NE(std::string(e.what()).find("not finite in float16"), std::string::npos) << e.what();
  }
  EXPECT_FALSE(std::filesystem::exists(dir / "out/model"));
}

TEST(GeneratorRecipe, MaskLawsHaveBounds) {
  for (double GeneratorTrainConfig::*key :
       {&GeneratorTrainConfig::mask_alpha, &GeneratorTrainConfig::mask_beta})
    for (const double value : {0.0, 1001.0, 1e30}) {
      GeneratorTrainConfig config = small_config(1);
      config.*key = value;
      EXPECT_THROW(config.validate(), InputError) << value;
      config.*key = 1000;
      EXPECT_NO_THROW(config.validate());
    }
}

TEST(GeneratorRecipe, AccumulationSplitsTheBatch) {
  // Four parts of four rows count as one update of sixteen; a batch that the parts do not divide is refused.
  GeneratorTrainConfig config = small_config(2);
  config.optimizer.accumulate = 4;
  const auto recipe = make_generator_recipe(config, class_patterns(), nullptr, {}, {});
  EXPECT_EQ(recipe->step(0).images, 16);
  config.optimizer.accumulate = 3;
  EXPECT_THROW(make_generator_recipe(config, class_patterns(), nullptr, {}, {}), InputError);
}

TEST(GeneratorRecipe, EvaluationLeavesTrainingUntouched) {
  const testing::TempDir dir;
  write_token_file(dir / "held.safetensors", class_patterns());
  GeneratorTrainConfig config = small_config(4);
  config.held_out = (dir / "held.safetensors").string();
  const auto plain = make_generator_recipe(small_config(4), class_patterns(), nullptr, {}, {});
  for (int64_t s = 0; s < 4; ++s) plain->step(s);
  const auto measured = make_generator_recipe(config, class_patterns(), nullptr, {}, {});
  double before = 0;
  for (int64_t s = 0; s < 4; ++s) {
    before = measured->evaluate()[0].second;
    EXPECT_EQ(before, measured->evaluate()[0].second);  // the same masks each time
    measured->step(s);
  }
  const TensorMap a = state_of(*plain), b = state_of(*measured);
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
}

TEST(GeneratorRecipe, StartsFromGivenWeights) {
  const auto first = make_generator_recipe(small_config(3), class_patterns(), nullptr, {}, {});
  for (int64_t s = 0; s < 3; ++s) first->step(s);
  TensorMap weights;
  for (const auto& [name, tensor] : state_of(*first))
    if (name.rfind("model.", 0) == 0) weights[name.substr(6)] = tensor;
  const auto second = make_generator_recipe(small_config(3), class_patterns(), &weights, {}, {});
  const TensorMap b = state_of(*second);
  for (const auto& [name, tensor] : weights) EXPECT_TRUE(at::equal(tensor, b.at("model." + name))) << name;
}

TEST(GeneratorRecipe, RefusesMoreBatchThanData) {
  GeneratorTrainConfig config = small_config(1);
  config.batch_size = 65;
  EXPECT_THROW(make_generator_recipe(config, class_patterns(), nullptr, {}, {}), InputError);
}

}  // namespace
}  // namespace adanat
