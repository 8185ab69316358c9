// Training of a policy on models small enough for milliseconds: resume, learning, errors, files.
#include "policy/policy_recipe.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <fstream>
#include <set>

#include "core/nn/module_state.h"
#include "core/sampling/observers.h"
#include "policy/rollout.h"
#include "support/message_of.h"
#include "support/recipes.h"
#include "support/small_generator.h"

namespace adanat {
namespace {

using testing::message_of;
using testing::state_of;
using testing::TempDir;
using testing::value_of;

// Plain colours, 8x8, of 3 classes.
class Colours : public ImageDataset {
 public:
  int64_t size() const override { return 24; }
  int64_t label(int64_t i) const override { return i % 3 == 2 ? 1 : 0; }
  Image image(int64_t i) const override {
    Image image{8, 8, std::vector<uint8_t>(8 * 8 * 3)};
    for (size_t k = 0; k < image.rgb.size(); ++k) image.rgb[k] = uint8_t(i * 37 + int64_t(k % 3) * 61);
    return image;
  }
  std::string item_name(int64_t i) const override { return "colour " + std::to_string(i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override { return "colours"; }

 private:
  std::vector<std::string> names_ = {"a", "b", "c"};
};

// Brighter is better (or nearer to the target of the class, where there are some); it has a weight of its own
// that its training moves.
class Brightness : public Reward {
 public:
  explicit Brightness(double fails_at = -1) : fails_at_(fails_at) {}
  std::string name() const override { return "brightness"; }
  at::Tensor score(const at::Tensor& images, const at::Tensor& conditions, DeferredChecks&) override {
    EXPECT_EQ(images.size(0), conditions.size(0));
    EXPECT_TRUE((images >= 0).all().item<bool>() && (images <= 1).all().item<bool>());
    last_conditions = conditions.clone();
    at::Tensor out = images.mean({1, 2, 3}) + weight_ * 0.001;
    if (target.defined())
      out = -(images - target.index_select(0, conditions)).square().mean({1, 2, 3}).sqrt();
    if (weight_.item<double>() == fails_at_) out = out / 0.0 * 0.0;
    return out;
  }
  bool trains() const override { return true; }
  RewardReport train_step(const at::Tensor& real, const at::Tensor& labels, const at::Tensor& fake,
                          const at::Tensor& conditions, DeferredChecks& checks) override {
    EXPECT_EQ(real.size(0), 4);
    EXPECT_EQ(labels.size(0), 4);
    EXPECT_EQ(fake.size(0), conditions.size(0));
    TORCH_CHECK(!breaks, "eigh: did not converge");
    weight_ += 1 - checks.failed_with(at::ones({}, at::kBool));
    fakes.push_back(fake.sum().item<double>());
    RewardReport out{
        real.mean() - fake.mean(), at::scalar_tensor(0.5), at::scalar_tensor(0.5), {{"margin", real.mean()}}};
    if (saturated) {
      out.values.emplace_back("conv.accuracy_real", at::scalar_tensor(1.0));
      out.values.emplace_back("conv.accuracy_fake", at::scalar_tensor(1.0));
      out.values.emplace_back("features.accuracy_real", at::scalar_tensor(1.0));
      out.values.emplace_back("features.accuracy_fake", at::scalar_tensor(0.0));
    }
    return out;
  }
  int64_t wants_real() const override { return seen_real == 0 ? wanted_real : 0; }
  void observe_real(const at::Tensor& images) override { seen_real += images.size(0); }
  void save(TensorMap& out, const std::string& prefix) const override { out[prefix + "weight"] = weight_; }
  void load(const TensorMap& in, const std::string& prefix, const std::string&) override {
    weight_ = in.at(prefix + "weight").clone();
  }

  at::Tensor target;  // (classes, 3, S, S)
  at::Tensor last_conditions;
  std::vector<double> fakes;
  bool saturated = false;  // report a part that is, beside one that is not
  bool breaks = false;     // training throws
  int64_t wanted_real = 0, seen_real = 0;

 private:
  at::Tensor weight_ = at::zeros({}, at::kDouble);
  double fails_at_;
};

// The same with captions, one of them broken.
class CaptionedColours : public Colours {
 public:
  bool has_captions() const override { return true; }
  std::string caption(int64_t i) const override {
    if (i == 1) throw InputError("colour 1: has no caption");
    return i % 2 == 0 ? "red" : "blue";
  }
};

// Encodings of "", "blue" and "red": 3 states of width 6 and a pooled state of width 2, which is the text's
// number.
TextFeatures encoded_colours(const std::filesystem::path& path) {
  const std::string texts = "bluered";
  const std::vector<int64_t> ends = {0, 4, 7};
  at::Tensor features = testing::input_float("encoded", {3, 3 * 6 + 2}, 1);
  for (int64_t i = 0; i < 3; ++i) features[i].narrow(0, 18, 2).fill_(double(i));
  features = features.to(at::kHalf);
  write_safetensors(
      path,
      {{"features", DType::kF16, {3, 20}, features.const_data_ptr(), features.nbytes()},
       {"text_ends", DType::kI64, {3}, ends.data(), 24},
       {"texts", DType::kU8, {7}, texts.data(), texts.size()}},
      {{"format", "adanat-text-1"}, {"encoder", "h"}, {"tokens", "3"}, {"width", "6"}, {"pooled", "2"}});
  return TextFeatures::open(path);
}

PolicyTrainConfig tiny_config() {
  PolicyTrainConfig config;
  config.steps = 3;
  config.network.hidden = 8, config.network.channels = 4, config.network.mlp = 12;
  config.base = "cosine";
  config.cosine.guidance = 1;
  config.ppo.learning_rate = 1e-3;
  config.exploration = {.std = 0.5, .decrease = 0.2, .after = 4, .floor = 0.1};
  config.trajectories = 12;
  config.rollout_batch = 6;
  config.decode_batch = 5;
  config.discriminator_steps = 2;
  config.discriminator_batch = 4;
  config.loop.steps = 10;
  return config;
}

PolicyParts tiny_parts(Brightness** reward = nullptr, double fails_at = -1) {
  at::set_num_threads(1);
  at::manual_seed(1);
  PolicyParts parts;
  parts.generator =
      testing::procedural_generator(testing::tiny_generator_config(/*grid_width=*/4, /*classes=*/3));
  TokenizerConfig tokenizer;
  tokenizer.image_size = 8, tokenizer.channels = 8, tokenizer.channel_multipliers = {1};
  tokenizer.residual_blocks = 1, tokenizer.latent_channels = 4, tokenizer.codes = 24, tokenizer.unshuffle = 2;
  parts.tokenizer = Tokenizer(tokenizer);
  parts.tokenizer->prepare_for_inference();
  for (auto& p : parts.generator->parameters()) p.set_requires_grad(false);
  parts.generator->eval();
  parts.generator_hash = "0123";
  parts.make_reward = [reward, fails_at] {
    auto made = std::make_unique<Brightness>(fails_at);
    if (reward != nullptr) *reward = made.get();
    return made;
  };
  return parts;
}

PolicyParts tiny_text_parts(const std::filesystem::path& words, Brightness** reward) {
  PolicyParts parts = tiny_parts(reward);
  GeneratorConfig config = parts.generator->config();
  config.condition = "text", config.text_width = 6, config.text_tokens = 3;
  parts.generator = Generator(config);
  testing::fill_procedural(*parts.generator);
  for (auto& p : parts.generator->parameters()) p.set_requires_grad(false);
  parts.generator->eval();
  parts.texts = encoded_colours(words);
  return parts;
}

std::unique_ptr<Recipe> make(PolicyTrainConfig config, PolicyParts parts = tiny_parts(),
                             const PolicyFile* init = nullptr) {
  RecipeContext context;
  context.threads = 0;
  return make_policy_recipe(std::move(config), std::move(parts), std::make_shared<Colours>(), init, context);
}

void expect_resume_is_exact(const PolicyTrainConfig& config) {
  const auto [middle, end] = testing::expect_resume_is_exact([&] { return make(config); }, [](Recipe&) {});
  EXPECT_EQ(end.at("exploration.std").item<double>(), 0.3);  // lowered after update 4: part of the state
  EXPECT_FALSE(at::equal(middle.at("model.actor.linear3.weight"), end.at("model.actor.linear3.weight")));
}

TEST(PolicyRecipe, ResumesBitExactly) {
  expect_resume_is_exact(tiny_config());
}

TEST(PolicyRecipe, ResumesBitExactlyWithDrawnStepsAndRecomputedFeatures) {
  PolicyTrainConfig config = tiny_config();
  config.steps = 0, config.min_steps = 2, config.max_steps = 4;
  config.memory = "recompute";
  config.fakes = "rollout";
  config.classes = "data";
  expect_resume_is_exact(config);
}

TEST(PolicyRecipe, ResumesBitExactlyFromWithinTheWarmUp) {
  PolicyTrainConfig config = tiny_config();
  config.discriminator_warmup = 6;
  config.exploration.after = 1;
  config.fakes = "rollout";
  expect_resume_is_exact(config);
}

TEST(PolicyRecipe, OnlyTheRewardLearnsDuringTheWarmUp) {
  PolicyTrainConfig config = tiny_config();
  config.discriminator_warmup = 3;
  config.exploration.after = 1;
  const auto recipe = make(config);
  const TensorMap start = state_of(*recipe);
  const auto names = [](const StepReport& report) {
    std::set<std::string> out;
    for (const auto& [name, value] : report.values) out.insert(name);
    return out;
  };
  for (int64_t s = 0; s < 3; ++s) {
    const auto reported = names(recipe->step(s));
    for (const char* name : {"reward", "code_perplexity", "discriminator_loss", "actions/spread"})
      EXPECT_TRUE(reported.contains(name)) << name;
    EXPECT_FALSE(reported.contains("clip_share"));
  }
  const TensorMap warm = state_of(*recipe);
  for (const auto& [name, tensor] : start) {
    if (name.starts_with("model.") || name.starts_with("optimizer.") || name == "exploration.std") {
      EXPECT_TRUE(at::equal(tensor, warm.at(name))) << name;
    }
  }
  EXPECT_EQ(warm.at("reward.weight").item<double>(), 6);  // two steps per update
  EXPECT_TRUE(names(recipe->step(3)).contains("clip_share"));
  EXPECT_EQ(state_of(*recipe).at("exploration.std").item<double>(), 0.5);
  recipe->step(4);  // the policy's update 1
  const TensorMap after = state_of(*recipe);
  EXPECT_EQ(after.at("exploration.std").item<double>(), 0.3);
  EXPECT_FALSE(at::equal(start.at("model.actor.linear3.weight"), after.at("model.actor.linear3.weight")));

  // Where no reward trains there is nothing to wait for.
  config.discriminator_steps = 0;
  EXPECT_TRUE(names(make(config)->step(0)).contains("clip_share"));
}

// Whether it is heard of at once or, as from a GPU, at the end of the update.
class NotFinite : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(PolicyRecipe, NotFinite, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "AtOnce" : "Later"; });

TEST_P(NotFinite, ALossStopsTheRunBeforeTheWeightsChange) {
  const TempDir folder;
  PolicyParts parts = tiny_parts();
  parts.checks_at_once = GetParam();
  parts.diagnostics = folder / "diagnostics";
  const auto recipe = make(tiny_config(), std::move(parts));
  TensorMap state = state_of(*recipe);
  state.at("model.critic.linear3.bias").fill_(1e30);  // its square is no float
  recipe->load(state, "planted");
  const std::string text = message_of<RunError>([&] { recipe->step(1); });
  EXPECT_NE(text.find("value_error is not finite before step 1"), std::string::npos) << text;
  EXPECT_NE(text.find("update 1"), std::string::npos) << text;
  EXPECT_NE(text.find("state saved in"), std::string::npos) << text;
  const TensorMap kept = read_tensors(folder / "diagnostics/update-1.safetensors");
  for (const auto& [name, tensor] : state) EXPECT_TRUE(at::equal(kept.at(name), tensor)) << name;
}

TEST(PolicyRecipe, WarnsOfEachPartThatIsSaturated) {
  Brightness* reward = nullptr;
  const auto recipe = make(tiny_config(), tiny_parts(&reward));
  reward->saturated = true;
  ::testing::internal::CaptureStderr();
  recipe->step(0);
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("discriminator conv tells"), std::string::npos) << text;
  EXPECT_EQ(text.find("discriminator features tells"), std::string::npos) << text;
}

// The reward is the nearness to what the generator makes without any noise in its draws: whoever raises it
// has to lower the sampling temperature.
TEST(PolicyRecipe, RaisesTheReward) {
  for (const bool shared : {false, true}) {
    SCOPED_TRACE(shared);
    PolicyTrainConfig config = tiny_config();
    config.shared = shared;
    config.trajectories = 96, config.rollout_batch = 96, config.decode_batch = 96;
    config.exploration = {.std = 0.6, .decrease = 0, .after = -1, .floor = 0.1};
    config.ppo.learning_rate = shared ? 1e-2 : 3e-3;
    config.discriminator_steps = 0;
    Brightness* reward = nullptr;
    PolicyParts parts = tiny_parts(&reward);
    ScheduleTable sharp = cosine_table(3, config.cosine);
    sharp.sampling_temperature = {0, 0, 0};
    sharp.remask_temperature = {0, 0, 0};
    const at::Tensor ids =
        sample(*parts.generator, plain_start(*parts.generator, at::arange(3), 1, at::arange(3)),
               *make_table_schedule("sharp", sharp));
    const at::Tensor target = parts.tokenizer->decode(ids).detach().clamp(0, 1);
    const auto recipe = make(config, std::move(parts));
    reward->target = target;
    double first = 0, last = 0, temperature = 0;
    for (int64_t s = 0; s < 50; ++s) {
      const StepReport report = recipe->step(s);
      if (s < 8) first += value_of(report, "reward") / 8;
      if (s >= 42) last += value_of(report, "reward") / 8;
      temperature = value_of(report, "actions/sampling_temperature_mean_t2");
    }
    EXPECT_GT(last, first);
    EXPECT_LT(temperature, 0.8);
  }
}

TEST(PolicyRecipe, Reports) {
  Brightness* reward = nullptr;
  const auto recipe = make(tiny_config(), tiny_parts(&reward));
  const StepReport report = recipe->step(0);
  EXPECT_EQ(report.images, 12);
  // The network is new: no sample differs from another, and the first epoch's ratios are those of the
  // rollout.
  EXPECT_EQ(value_of(report, "first_ratio_error"), 0);
  EXPECT_LT(value_of(report, "actions/spread"), 1e-6);
  EXPECT_NEAR(value_of(report, "actions/mask_ratio_mean_t0"), std::cos(std::acos(-1.0) / 6), 1e-6);
  EXPECT_NEAR(value_of(report, "actions/guidance_mean_t1"), 2.0 / 3, 1e-6);
  EXPECT_NEAR(value_of(report, "entropy"), gaussian_entropy(0.5), 1e-9);
  for (const char* name :
       {"reward", "reward_spread", "advantage_spread", "clip_share", "approx_kl", "value_error",
        "discriminator_loss", "accuracy_real", "accuracy_fake", "discriminator/margin", "code_perplexity",
        "actions/sampling_temperature_spread_t2"})
    EXPECT_TRUE(std::isfinite(value_of(report, name))) << name;
  ASSERT_EQ(reward->fakes.size(), 2u);
  EXPECT_NE(reward->fakes[0], reward->fakes[1]);  // fresh images for each of its steps
}

TEST(PolicyRecipe, TheRewardLearnsFromTheWidthThatComesNext) {
  std::vector<std::vector<double>> fakes;
  for (const int64_t after : {-1, 0}) {
    PolicyTrainConfig config = tiny_config();
    config.exploration = {.std = 0.5, .decrease = 0.4, .after = after, .floor = 0.1};
    Brightness* reward = nullptr;
    const auto recipe = make(config, tiny_parts(&reward));
    EXPECT_NEAR(value_of(recipe->step(0), "exploration"), 0.5, 1e-9);  // that of the rollout
    fakes.push_back(reward->fakes);
  }
  EXPECT_NE(fakes[0], fakes[1]);
}

TEST(PolicyRecipe, ShowsTheSameSeedsBeforeAndAfterAndTheSchedule) {
  PolicyParts parts = tiny_parts();
  std::vector<at::Tensor> seen;
  parts.grid = [&](const at::Tensor& images) {
    seen.push_back(images);
    return Image{1, 1, {0, 0, 0}};
  };
  const auto recipe = make(tiny_config(), std::move(parts));
  for (int64_t s = 0; s < 5; ++s) recipe->step(s);
  const TensorMap state = state_of(*recipe);
  std::vector<std::string> names;
  for (const NamedImage& image : recipe->samples()) names.push_back(image.name);
  EXPECT_EQ(names, (std::vector<std::string>{"samples", "samples-before", "schedule-mask-ratio",
                                             "schedule-remask-temperature", "schedule-sampling-temperature",
                                             "schedule-guidance"}));
  EXPECT_FALSE(at::equal(seen[0], seen[1]));
  recipe->samples();
  EXPECT_TRUE(at::equal(seen[0], seen[2]) && at::equal(seen[1], seen[3]));
  const TensorMap after = state_of(*recipe);  // looking changes nothing
  for (const auto& [name, tensor] : state) EXPECT_TRUE(at::equal(tensor, after.at(name))) << name;
}

TEST(PolicyRecipe, ClassesAsOftenAsInTheData) {
  PolicyTrainConfig config = tiny_config();
  config.classes = "data";
  config.trajectories = 60;
  Brightness* reward = nullptr;
  const auto recipe = make(config, tiny_parts(&reward));
  recipe->step(0);
  const at::Tensor counts = at::bincount(reward->last_conditions, {}, 3);
  EXPECT_EQ(counts[2].item<int64_t>(), 0);
  EXPECT_NEAR(counts[0].item<double>(), 40, 15);  // two in three; 4 standard deviations
}

TEST_P(NotFinite, ARewardStopsTheRunAndIsKept) {
  const TempDir folder;
  PolicyParts parts = tiny_parts(nullptr, /*fails_at=*/4);
  parts.checks_at_once = GetParam();
  parts.diagnostics = folder / "diagnostics";
  const auto recipe = make(tiny_config(), std::move(parts));
  recipe->step(0), recipe->step(1);
  TensorMap before;
  for (const auto& [name, tensor] : state_of(*recipe)) before[name] = tensor.clone();
  const std::string text = message_of<RunError>([&] { recipe->step(2); });
  EXPECT_NE(text.find("reward brightness is not finite"), std::string::npos) << text;
  EXPECT_NE(text.find("update 2"), std::string::npos) << text;
  EXPECT_NE(text.find("state saved in"), std::string::npos) << text;
  const TensorMap kept = read_tensors(folder / "diagnostics/update-2.safetensors");
  EXPECT_TRUE(kept.contains("exploration.std"));
  EXPECT_EQ(kept.at("reward.weight").item<double>(), 4);
  for (const auto& [name, tensor] : before) {
    if (name != "watch") {
      EXPECT_TRUE(at::equal(kept.at(name), tensor)) << name;
    }
  }
}

// What was noted before something else broke is told first.
TEST(PolicyRecipe, TheFirstFailureIsTheOneThatIsTold) {
  Brightness* reward = nullptr;
  PolicyParts parts = tiny_parts(&reward, /*fails_at=*/0);
  parts.checks_at_once = false;
  const auto recipe = make(tiny_config(), std::move(parts));
  reward->breaks = true;
  const std::string text = message_of<RunError>([&] { recipe->step(0); });
  EXPECT_NE(text.find("reward brightness is not finite"), std::string::npos) << text;
}

TEST(PolicyRecipe, WritesAPolicyThatCanBeReadAndStartedFrom) {
  const TempDir folder;
  const auto recipe = make(tiny_config());
  recipe->step(0);
  recipe->write_model(folder.path());
  const PolicyFile policy = read_policy(folder / "policy-T3.safetensors");
  EXPECT_EQ(policy.settings.residual, "cosine");
  EXPECT_EQ(policy.settings.rule, "maskgit");
  EXPECT_EQ(policy.settings.generator, "0123");
  const auto next = make(tiny_config(), tiny_parts(), &policy);
  EXPECT_TRUE(at::equal(state_of(*next).at("model.actor.linear3.weight"),
                        state_of(*recipe).at("model.actor.linear3.weight")));
  PolicyTrainConfig other = tiny_config();
  other.network.hidden = 9;
  EXPECT_THROW(make(other, tiny_parts(), &policy), InputError);
  const auto difference = [&](const std::function<void(PolicyTrainConfig&)>& change) -> std::string {
    PolicyTrainConfig config = tiny_config();
    change(config);
    return message_of([&] { make(config, tiny_parts(), &policy); });
  };
  EXPECT_EQ(difference([](auto& c) { c.max_steps = 9; }), "no error");  // steps are fixed: not read
  const auto expect_named = [&](const std::string& wanted, const auto& change) {
    EXPECT_NE(difference(change).find(wanted), std::string::npos) << difference(change);
  };
  expect_named("network.hidden is 8 there, 9 in this run", [](auto& c) { c.network.hidden = 9; });
  expect_named("smoothing is 0.0 there, 0.5 in this run", [](auto& c) { c.smoothing = 0.5; });
  expect_named("rule is \"maskgit\" there, \"adanat\" in this run", [](auto& c) { c.rule = "adanat"; });
  expect_named("residual is \"cosine\" there", [](auto& c) { c.base = "none"; });
  expect_named("cosine.guidance is", [](auto& c) { c.cosine.guidance = 2; });
  // A resume without the same start is another run.
  EXPECT_EQ(next->config()["trained_on"]["init"], policy.hash);
  EXPECT_EQ(recipe->config()["trained_on"]["init"], "");

  PolicyTrainConfig shared = tiny_config();
  shared.shared = true;
  const auto table = make(shared);
  table->step(0);
  const TempDir second;
  table->write_model(second.path());
  const ScheduleTable written = read_schedule_file((second / "schedule-T3.json").string());
  EXPECT_EQ(written.rule, "maskgit");
  EXPECT_EQ(read_policy(second / "policy-T3.safetensors").settings.network.shared_steps, 3);
  EXPECT_NE(written.mask_ratio[1], cosine_table(3, shared.cosine).mask_ratio[1]);
}

TEST(PolicyRecipe, StartsFromATableFile) {
  const TempDir folder;
  ScheduleTable table = cosine_table(3, {});
  table.sampling_temperature = {1.5, 1.25, 0.75};
  table.rule = "adanat";
  std::ofstream(folder / "t.json") << config_to_json(table).dump();
  PolicyTrainConfig config = tiny_config();
  config.base = (folder / "t.json").string();
  const auto recipe = make(config);
  EXPECT_NEAR(value_of(recipe->step(0), "actions/sampling_temperature_mean_t1"), 1.25, 1e-6);
  EXPECT_EQ(policy_settings(config, tiny_parts().generator->config(), "").rule, "adanat");
  config.steps = 4;
  EXPECT_THROW(make(config), InputError);
}

TEST(PolicyRecipe, Refuses) {
  const auto refuses = [](const std::function<void(PolicyTrainConfig&)>& change) {
    PolicyTrainConfig config = tiny_config();
    change(config);
    EXPECT_THROW(make(config), InputError);
  };
  refuses([](auto& c) { c.steps = 0, c.shared = true; });
  refuses([](auto& c) { c.base = "sine"; });
  refuses([](auto& c) { c.base = "absent.json"; });
  refuses([](auto& c) { c.trajectories = 1; });
  refuses([](auto& c) { c.exploration.floor = 1; });
  refuses([](auto& c) { c.discriminator_batch = 40000; });
  refuses([](auto& c) { c.ppo.clip = 1; });
  refuses([](auto& c) { c.discriminator_warmup = -1; });
}

TEST(PolicyRecipe, ShowsTheRewardAllImages) {
  Brightness* reward = nullptr;
  PolicyParts parts = tiny_parts(&reward);
  const auto recipe = make(tiny_config(), std::move(parts));
  reward->wanted_real = 100;
  recipe->step(0);
  EXPECT_EQ(reward->seen_real, 24) << "the last of batches of 5, too";
}

TEST(PolicyRecipe, RefusesOtherClassesAndSeveralProcesses) {
  PolicyParts parts = tiny_parts();
  parts.class_names = {"a", "x", "c"};
  const std::string text = message_of([&] { make(tiny_config(), std::move(parts)); });
  EXPECT_NE(text.find("class 1 is \"b\", the generator's is \"x\""), std::string::npos) << text;
  RecipeContext context;
  context.world_size = 2;
  EXPECT_THROW(make_policy_recipe(tiny_config(), tiny_parts(), std::make_shared<Colours>(), nullptr, context),
               InputError);
}

// A generator of texts: samples take the data's captions, rewards see the pooled texts, and stored features
// and features computed again give the same update.
TEST(PolicyRecipe, TrainsOnCaptions) {
  const testing::TempDir dir;
  const auto data = std::make_shared<CaptionedColours>();
  const auto texts_recipe = [&](const std::string& memory, Brightness** reward) {
    PolicyTrainConfig config = tiny_config();
    config.memory = memory;
    RecipeContext context;
    context.threads = 0;
    return make_policy_recipe(config, tiny_text_parts(dir / "words", reward), data, nullptr, context);
  };
  std::vector<TensorMap> after;
  for (const std::string memory : {"store", "recompute"}) {
    Brightness* reward = nullptr;
    const auto recipe = texts_recipe(memory, &reward);
    for (int64_t u = 0; u < 2; ++u) recipe->step(u);
    const at::Tensor seen = reward->last_conditions;
    EXPECT_EQ(seen.sizes(), at::IntArrayRef({12, 2}));
    EXPECT_EQ(seen.scalar_type(), at::kFloat);
    // Blue, red, and the broken caption, which counts as empty.
    EXPECT_GT((seen == 1).sum().item<int64_t>(), 0);
    EXPECT_GT((seen == 2).sum().item<int64_t>(), 0);
    EXPECT_TRUE(((seen == 0) | (seen == 1) | (seen == 2)).all().item<bool>());
    EXPECT_EQ(recipe->config()["trained_on"]["text_encoder"], "h");
    TensorMap state;
    recipe->save(state);
    for (auto& [name, tensor] : state) tensor = tensor.clone();
    after.push_back(std::move(state));
  }
  for (const auto& [name, tensor] : after[0]) EXPECT_CLOSE(tensor, after[1].at(name), 1e-6) << name;
  // Without captions, or encoded texts for a generator of classes: refused.
  RecipeContext context;
  context.threads = 0;
  Brightness* reward = nullptr;
  EXPECT_THROW(make_policy_recipe(tiny_config(), tiny_text_parts(dir / "words", &reward),
                                  std::make_shared<Colours>(), nullptr, context),
               InputError);
}

}  // namespace
}  // namespace adanat
