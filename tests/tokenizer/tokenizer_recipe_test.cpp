#include "tokenizer/tokenizer_recipe.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <map>

#include "core/nn/module_state.h"
#include "support/recipes.h"
#include "tokenizer/read_back.h"

namespace adanat {
namespace {

using testing::state_of;
using testing::value_of;

// Coloured discs on coloured ground, 16x16; everything follows from the index.
class Discs : public ImageDataset {
 public:
  explicit Discs(int64_t count, int64_t first = 0) : count_(count), first_(first) {}
  int64_t size() const override { return count_; }
  int64_t label(int64_t i) const override { return (first_ + i) % 3; }
  Image image(int64_t i) const override {
    const auto h = uint64_t(first_ + i + 1) * 0x9E3779B97F4A7C15ull;
    Image image{16, 16, std::vector<uint8_t>(16 * 16 * 3)};
    const int cx = 4 + int(h % 8), cy = 4 + int((h >> 8) % 8), r = 2 + int((h >> 16) % 4);
    for (int y = 0; y < 16; ++y)
      for (int x = 0; x < 16; ++x) {
        const bool in = (x - cx) * (x - cx) + (y - cy) * (y - cy) <= r * r;
        for (int c = 0; c < 3; ++c)
          image.rgb[size_t((y * 16 + x) * 3 + c)] = uint8_t(h >> (in ? 24 + 8 * c : 40 - 8 * c));
      }
    return image;
  }
  std::string item_name(int64_t i) const override { return "disc " + std::to_string(first_ + i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override { return "discs"; }

 private:
  int64_t count_, first_;
  std::vector<std::string> names_ = {"a", "b", "c"};
};

// A features network that needs no file: two fixed convolutions.
class TwoConvolutions : public FeatureNet {
 public:
  TwoConvolutions()
      : a_(testing::procedural_weight("a.weight", {6, 3, 3, 3})),
        b_(testing::procedural_weight("b.weight", {8, 6, 3, 3})) {}
  std::string kind() const override { return "test"; }
  std::vector<std::string> taps() const override { return {"a", "b"}; }
  std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps) override {
    const at::Tensor a = at::relu(at::conv2d(images, a_, {}, 1, 1)),
                     b = at::relu(at::conv2d(a, b_, {}, 2, 1));
    std::vector<at::Tensor> out;
    for (const std::string& tap : taps) out.push_back(tap == "a" ? a : b);
    return out;
  }
  void to(at::Device) override {}

 private:
  at::Tensor a_, b_;
};

TokenizerTrainConfig tiny_config() {
  TokenizerTrainConfig config;
  config.batch_size = 4;
  config.store = "float32";
  config.evaluate_images = 10;
  config.model.image_size = 16;
  config.model.channels = 8;
  config.model.channel_multipliers = {1, 2};
  config.model.residual_blocks = 1;
  config.model.latent_channels = 6;
  config.model.codes = 24;
  config.model.unshuffle = 2;
  config.model.normalize_codes = true;
  config.quantizer.revive_after = 3;
  config.gan.start = 3;
  config.gan.width = 4;
  config.gan.layers = 1;
  config.optimizer.learning_rate = 2e-3;
  config.optimizer.warmup = 2;
  config.loop.steps = 10;
  return config;
}

std::unique_ptr<Recipe> make(TokenizerTrainConfig config, const TensorMap* init = nullptr) {
  at::set_num_threads(1);  // nothing here is large enough for two
  RecipeContext context;
  context.seed = 7;
  context.threads = 0;
  return make_tokenizer_recipe(std::move(config), std::make_shared<Discs>(22), std::make_shared<Discs>(12),
                               std::make_shared<TwoConvolutions>(), context, init);
}

// 10 = 5 + save + load + 5: weights, averages, moments, codebook and discriminator, bit for bit.
void expect_resume_is_exact(const TokenizerTrainConfig& config) {
  const auto [middle, end] = testing::expect_resume_is_exact([&] { return make(config); },
                                                             [](Recipe& recipe) {
                                                               recipe.evaluate();
                                                               recipe.samples();
                                                             });
  int64_t changed = 0;
  for (const auto& [name, tensor] : end) changed += !at::equal(middle.at(name), tensor);
  EXPECT_GT(changed, int64_t(end.size()) * 3 / 4);  // the second half did something
}

TEST(TokenizerRecipe, ResumeIsBitExact) {
  expect_resume_is_exact(tiny_config());
}

TEST(TokenizerRecipe, ResumeIsBitExactWithGradientCodebook) {
  TokenizerTrainConfig config = tiny_config();
  config.quantizer.codebook = "gradient";
  config.optimizer.accumulate = 2;
  config.dtype = "bfloat16";
  expect_resume_is_exact(config);
}

TEST(TokenizerRecipe, AccumulationSplitsTheBatch) {
  TokenizerTrainConfig config = tiny_config();
  config.optimizer.accumulate = 2;
  EXPECT_EQ(make(config)->step(0).images, config.batch_size);
  config.gan_optimizer.accumulate = 2;
  EXPECT_THROW(make(config), InputError);
  config.gan_optimizer.accumulate = 1;
  for (const int64_t parts : {0, 3}) {
    config.optimizer.accumulate = parts;
    EXPECT_THROW(make(config), InputError);
  }
}

// Timed in both phases, with and without the discriminator; no trace of it stays.
TEST(TokenizerRecipe, AutomaticPrecisionLeavesNoTrace) {
  TokenizerTrainConfig config = tiny_config();
  config.dtype = "auto";
  const auto chosen = make(config);
  EXPECT_EQ(chosen->phases(), (std::vector<int64_t>{0, 3}));
  const DtypeChoice choice = choose_dtype(*chosen);
  EXPECT_GT(choice.bfloat16_seconds, 0);
  config.dtype = choice.dtype;
  const auto given = make(config);
  chosen->set_dtype(choice.dtype);
  for (const auto& recipe : {chosen.get(), given.get()}) {
    at::manual_seed(1);  // revived codes are drawn
    for (int64_t s = 0; s < 6; ++s) recipe->step(s);
  }
  const TensorMap a = state_of(*chosen), b = state_of(*given);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_CLOSE(b.at(name), tensor, 0) << name;
}

TEST(TokenizerRecipe, SaysWhatItWasTrainedOn) {
  const Json config = make(tiny_config())->config();
  EXPECT_EQ(config["trained_on"]["images"], 22);
  EXPECT_EQ(config["trained_on"]["class_names"], Json({"a", "b", "c"}));
  EXPECT_TRUE(config["trained_on"].contains("features_hash"));
}

TEST(TokenizerRecipe, LearnsASmallSet) {
  TokenizerTrainConfig config = tiny_config();
  config.batch_size = 16;
  config.gan.start = 60;
  config.ema.decay = 0.9;
  config.optimizer.learning_rate = 4e-3;
  config.loop.steps = 120;
  const auto recipe = make(config);
  double early = 0, late = 0;
  const Scalars before = recipe->evaluate();
  for (int64_t s = 0; s < 120; ++s) {
    const StepReport report = recipe->step(s);
    EXPECT_EQ(report.images, 16);
    (s < 10 ? early : late) += s < 10 || s >= 110 ? value_of(report, "l1") : 0;
    EXPECT_EQ(std::isnan(value_of(report, "gan_weight")), s < 60);
    for (const auto& [name, value] : report.values)
      ASSERT_TRUE(std::isfinite(value.item<double>())) << name << " " << s;
  }
  EXPECT_LT(late, 0.6 * early);
  std::map<std::string, double> measured;
  for (const auto& [name, value] : recipe->evaluate()) measured[name] = value;
  EXPECT_GT(measured.at("psnr"), before[0].second + 3);
  EXPECT_GT(measured.at("ssim"), 0.3);
  EXPECT_GT(measured.at("perceptual"), 0);
  EXPECT_GT(measured.at("perplexity"), 2);
  EXPECT_LE(measured.at("usage"), 1);
}

TEST(TokenizerRecipe, SaysThatItDiverged) {
  TokenizerTrainConfig config = tiny_config();
  config.optimizer.learning_rate = 1e30;
  config.optimizer.clip = 0;
  config.optimizer.warmup = 0;
  const auto recipe = make(config);
  EXPECT_THROW(for (int64_t s = 0; s < 10; ++s) recipe->step(s), RunError);
}

TEST(TokenizerRecipe, WritesWhatItMeasures) {
  const testing::TempDir folder;
  TokenizerTrainConfig config = tiny_config();
  config.store = "float16";
  RecipeContext context;
  context.seed = 7;
  std::filesystem::path finished;
  context.finish_model = [&](const std::filesystem::path& path) { finished = path; };
  const auto held_out = std::make_shared<Discs>(9, 100);
  const auto recipe = make_tokenizer_recipe(config, std::make_shared<Discs>(22), held_out,
                                            std::make_shared<TwoConvolutions>(), context);
  for (int64_t s = 0; s < 6; ++s) recipe->step(s);
  recipe->write_model(folder.path());
  EXPECT_EQ(finished, folder.path());
  Tokenizer tokenizer = testing::read_back(folder / "tokenizer.safetensors");
  EXPECT_TRUE(tokenizer->config() == config.model);
  // The file holds the averages, rounded, not the weights of the last update.
  TensorMap state = state_of(*recipe);
  const std::string name = "decoder.conv_in.weight";
  EXPECT_CLOSE(module_state(*tokenizer).at(name), state.at("ema." + name).to(at::kHalf).to(at::kFloat), 0);
  EXPECT_FALSE(at::equal(state.at("ema." + name), state.at("model." + name)));

  const at::NoGradGuard no_grad;
  tokenizer->prepare_for_inference();
  double sum = 0;
  for (int64_t i = 0; i < held_out->size(); ++i) {
    const Image image = held_out->image(i);
    const at::Tensor x =
        at::tensor(at::ArrayRef<uint8_t>(image.rgb)).view({1, 16, 16, 3}).permute({0, 3, 1, 2}) / 255.0;
    const at::Tensor made = tokenizer->decode(tokenizer->encode(x)).clamp(0, 1);
    sum += -10 * std::log10((made - x).square().mean().item<double>());
  }
  EXPECT_NEAR(recipe->evaluate()[0].second, sum / 9, 1e-3);

  const auto grids = recipe->samples();
  ASSERT_EQ(grids.size(), 1u);
  EXPECT_EQ(grids[0].name, "reconstructions");
  EXPECT_EQ(grids[0].image.width, 9 * 17 - 1);
  EXPECT_EQ(grids[0].image.height, 2 * 17 - 1);
  EXPECT_EQ(recipe->samples()[0].image.rgb, grids[0].image.rgb);
}

TEST(TokenizerRecipe, StartsFromGivenWeights) {
  Tokenizer other(tiny_config().model);
  const TensorMap weights = module_state(*other);
  const auto recipe = make(tiny_config(), &weights);
  TensorMap state = state_of(*recipe);
  for (const auto& [name, tensor] : weights) EXPECT_CLOSE(state.at("model." + name), tensor, 0) << name;
  recipe->step(0);  // learning rate 0; the codebook moves by its averages, but is not replaced
  state = state_of(*recipe);
  EXPECT_CLOSE(state.at("model.encoder.conv_in.weight"), weights.at("encoder.conv_in.weight"), 0);
  // Codes that the first batch did not use keep their direction.
  const auto unit = [](const at::Tensor& x) { return x / x.norm(2, 1, true); };
  const at::Tensor moved =
      (unit(state.at("model.quantize.embedding.weight")) - unit(weights.at("quantize.embedding.weight")))
          .abs()
          .amax(1);
  EXPECT_LT(moved.min().item<double>(), 1e-5);
  TensorMap bad = weights;
  bad.erase("quantize.embedding.weight");
  EXPECT_THROW(make(tiny_config(), &bad), InputError);
}

TEST(TokenizerRecipe, ConfigIsChecked) {
  const auto refused = [](auto change) {
    TokenizerTrainConfig config = tiny_config();
    change(config);
    EXPECT_THROW(make(config), InputError);
  };
  refused([](TokenizerTrainConfig& c) { c.batch_size = 0; });
  refused([](TokenizerTrainConfig& c) { c.dtype = "float8"; });
  refused([](TokenizerTrainConfig& c) { c.store = "int8"; });
  refused([](TokenizerTrainConfig& c) { c.loss.l1 = c.loss.perceptual = 0; });
  refused([](TokenizerTrainConfig& c) { c.gan.layers = 4; });
  refused([](TokenizerTrainConfig& c) { c.model.image_size = 18; });
  RecipeContext context;
  EXPECT_THROW(make_tokenizer_recipe(tiny_config(), std::make_shared<Discs>(22), nullptr, nullptr, context),
               InputError);
}

// Every shipped config is read, valid, and written back to the same.
TEST(TokenizerRecipe, ShippedConfigs) {
  for (const char* name : {"mnist", "signs", "cifar10"}) {
    const std::string path = testing::source_dir().string() + "/configs/" + name + "/tokenizer.json";
    const auto config = config_from_json<TokenizerTrainConfig>(read_json_file(path), path);
    EXPECT_TRUE(config_from_json<TokenizerTrainConfig>(config_to_json(config), "echo") == config);
    EXPECT_EQ(config.model.factor(), 4);
    EXPECT_EQ(config.flip,
              std::string(name) == "cifar10");  // mirrored digits and signs are other digits and signs
    Tokenizer tokenizer(config.model);
    EXPECT_LE(parameter_count(*tokenizer), 4'000'000) << name;
  }
}

}  // namespace
}  // namespace adanat
