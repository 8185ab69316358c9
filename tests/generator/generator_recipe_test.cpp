// Training of the generator: it learns, resumes to the same bits, and refuses what cannot work.
#include "core/generator/generator_recipe.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/generator/generator_init.h"
#include "core/train/trainer.h"
#include "support/message_of.h"
#include "support/recipes.h"

namespace adanat {
namespace {

using testing::message_of;
using testing::state_of;

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
  const std::string text = message_of<RunError>([&] { run_training(*recipe, dir / "out", false); });
  EXPECT_NE(text.find("not finite in float16"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(dir / "out/model"));
}

TEST(GeneratorRecipe, AWidthIsRefusedForItsOwnReason) {
  GeneratorConfig config;
  config.heads = 2, config.width = 1 << 20;
  EXPECT_NE(message_of([&] { config.validate(); }).find("1..65536"), std::string::npos);
  config.width = 33;
  EXPECT_NE(message_of([&] { config.validate(); }).find("a multiple of heads (2)"), std::string::npos);
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

TEST(GeneratorRecipe, AccumulationChangesNothing) {
  // The loss is the mean over all that the batch hides, though its parts hide more and less.
  std::vector<TensorMap> after;
  std::vector<double> losses;
  for (const int64_t parts : {1, 8}) {
    GeneratorTrainConfig config = small_config(1);
    config.model.dropout = 0;  // drawn part by part
    config.mask_law = "cosine";
    config.optimizer.accumulate = parts;
    const auto recipe = make_generator_recipe(config, class_patterns(), nullptr, {}, {});
    losses.push_back(recipe->step(0).values[0].second.item<double>());
    after.push_back(state_of(*recipe));
  }
  // Sums of float32 in another order differ by some 1e-7.
  EXPECT_NEAR(losses[0], losses[1], 1e-6);
  int64_t compared = 0;
  for (const auto& [name, tensor] : after[0]) {
    if (!name.ends_with(".exp_avg")) continue;  // the gradient, times 1 - beta1
    EXPECT_LE((tensor - after[1].at(name)).abs().max().item<double>(), 1e-6) << name;
    ++compared;
  }
  EXPECT_GT(compared, 10);
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

TEST(GeneratorRecipe, HeldOutLossIsTheMeanOverAllThatIsHidden) {
  const testing::TempDir dir;
  write_token_file(dir / "held.safetensors", class_patterns());
  std::vector<double> losses;
  for (const int64_t batch_size : {16, 3}) {
    GeneratorTrainConfig config = small_config(1);
    config.batch_size = batch_size;
    config.held_out = (dir / "held.safetensors").string();
    losses.push_back(make_generator_recipe(config, class_patterns(), nullptr, {}, {})->evaluate()[0].second);
  }
  // Sums of float32 in another order differ by some 1e-7.
  EXPECT_NEAR(losses[0], losses[1], 1e-6);
}

TEST(GeneratorRecipe, HeldOutClassesAreFoundByTheirNames) {
  const testing::TempDir dir;
  const auto loss = [&](const TokenFile& held) {
    write_token_file(dir / "held.safetensors", held);
    GeneratorTrainConfig config = small_config(1);
    config.held_out = (dir / "held.safetensors").string();
    return make_generator_recipe(config, class_patterns(), nullptr, {}, {})->evaluate()[0].second;
  };
  TokenFile held = class_patterns();
  held.classes = at::arange(64) % 2 * 2 + 1;  // b and d
  const double wanted = loss(held);
  held.class_names = {"d", "b"};
  held.classes = 1 - at::arange(64) % 2;
  EXPECT_EQ(loss(held), wanted);
  held.class_names = {"d", "x"};
  EXPECT_NE(message_of([&] { loss(held); }).find("has the class \"x\""), std::string::npos);
}

TEST(GeneratorRecipe, ResumesOnTheSameClassesOnly) {
  const testing::TempDir dir;
  run_training(*make_generator_recipe(small_config(1), class_patterns(), nullptr, {}, {}), dir / "out",
               false);
  TokenFile other = class_patterns();
  other.class_names = {"a", "b", "d", "c"};
  const auto recipe = make_generator_recipe(small_config(2), other, nullptr, {}, {});
  const std::string text = message_of([&] { run_training(*recipe, dir / "out", true); });
  EXPECT_NE(text.find("trained_on.class_names"), std::string::npos) << text;
}

// What a run of three steps came to, as another run may take it over.
GeneratorInit trained_init() {
  const auto recipe = make_generator_recipe(small_config(3), class_patterns(), nullptr, {}, {});
  for (int64_t s = 0; s < 3; ++s) recipe->step(s);
  GeneratorInit init;
  init.where = "--init before";
  init.config = small_config(3).model;
  init.config.codes = 8, init.config.grid_height = init.config.grid_width = 3, init.config.classes = 4;
  init.class_names = {"a", "b", "c", "d"};
  for (const auto& [name, tensor] : state_of(*recipe))
    if (name.rfind("model.", 0) == 0) init.weights[name.substr(6)] = tensor;
  return init;
}

TEST(GeneratorRecipe, StartsFromGivenWeights) {
  const GeneratorInit init = trained_init();
  const auto second = make_generator_recipe(small_config(3), class_patterns(), &init, {}, {});
  const TensorMap b = state_of(*second);
  for (const auto& [name, tensor] : init.weights)
    EXPECT_TRUE(at::equal(tensor, b.at("model." + name))) << name;
}

// Classes are known by their names: c and a keep their rows wherever they stand, the rest is as it was.
TEST(GeneratorRecipe, StartsFromWeightsOfOtherClasses) {
  const GeneratorInit init = trained_init();
  TokenFile data = class_patterns();
  data.class_names = {"new", "c", "other", "a", "more"};
  data.classes = at::arange(64) % 5;
  const auto recipe = make_generator_recipe(small_config(3), data, &init, {}, {});
  const TensorMap b = state_of(*recipe);
  const std::string key = "context_embed.word_embeddings.weight";
  const at::Tensor old = init.weights.at(key), rows = b.at("model." + key);
  ASSERT_EQ(rows.sizes(), (std::vector<int64_t>{6, 32}));
  EXPECT_TRUE(at::equal(rows[1], old[2]));
  EXPECT_TRUE(at::equal(rows[3], old[0]));
  EXPECT_TRUE(at::equal(rows[5], old[4]));  // the empty condition
  for (const int64_t fresh : {0, 2, 4}) EXPECT_CLOSE(rows[fresh], old.narrow(0, 0, 4).mean(0), 1e-6);
  for (const auto& [name, tensor] : init.weights)
    EXPECT_TRUE(name == key || at::equal(tensor, b.at("model." + name))) << name;
  recipe->step(0);  // and it trains
  EXPECT_EQ(init.weights.at(key).size(0), 5);
}

TEST(GeneratorRecipe, SaysWhatItCannotStartFrom) {
  const GeneratorInit good = trained_init();
  const auto error = [&](auto change) {
    GeneratorInit init = good;
    TokenFile data = class_patterns();
    data.tokenizer_hash = init.tokenizer_hash = "0123456789abcdef";
    change(init, data);
    return message_of([&] { make_generator_recipe(small_config(3), data, &init, {}, {}); });
  };
  EXPECT_EQ(error([](auto&, auto&) {}), "no error");
  EXPECT_EQ(
      error([](auto& init, auto&) { init.config.width = 64; }),
      "--init before: its generator has width 64, this run wants 32; leave it out of the config, --init "
      "brings it");
  const auto says = [&](auto change, const std::string& part) {
    const std::string what = error(change);
    EXPECT_NE(what.find(part), std::string::npos) << what;
    EXPECT_EQ(what.find("--init before: "), 0u) << what;
  };
  says([](auto& init, auto&) { init.config.depth = 4; }, "depth 4, this run wants 2");
  // Weights of other heads have the same shapes: only the config tells.
  says([](auto& init, auto&) { init.config.heads = 4; }, "heads 4, this run wants 2");
  says([](auto& init, auto&) { init.config.condition = "text"; }, "condition text, this run wants class");
  says([](auto& init, auto&) { init.config.codes = 16; }, "codes 16, this run wants 8");
  says([](auto& init, auto&) { init.config.grid_height = 4; }, "grid_height 4, this run wants 3");
  says([](auto& init, auto&) { init.tokenizer_hash = "fedcba9876543210"; },
       "of the tokenizer fedcba987654, the token file is of 0123456789ab");
  says([](auto& init, auto&) { init.tokenizer_hash = ""; }, "(none in that folder)");
  says([](auto& init, auto&) { init.weights.erase("norm.bias"); }, "lacks norm.bias");
}

TEST(GeneratorRecipe, RefusesMoreBatchThanData) {
  GeneratorTrainConfig config = small_config(1);
  config.batch_size = 65;
  EXPECT_THROW(make_generator_recipe(config, class_patterns(), nullptr, {}, {}), InputError);
}

}  // namespace
}  // namespace adanat
