#include "policy/reward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include "core/base/sha256.h"
#include "core/nn/module_state.h"
#include "policy/discriminator_fill.h"
#include "policy/reward_fixture.h"
#include "support/golden_noise.h"
#include "support/message_of.h"
#include "support/meta_device.h"
#include "support/vit_tensors.h"

namespace adanat {
namespace {
namespace fs = std::filesystem;
using testing::Batch;
using testing::kClasses;
using testing::kSide;
using testing::message_of;
using testing::noise_batch;
using testing::real_batch;
using testing::RewardTest;
using testing::TempDir;

class Adversarial : public RewardTest,
                    public ::testing::WithParamInterface<std::tuple<const char*, const char*>> {};

TEST_P(Adversarial, LearnsToTellTwoSetsApart) {
  const auto [kind, loss] = GetParam();
  config_.discriminator.loss = loss;
  const auto reward = make({kind});
  EXPECT_TRUE(reward->trains());
  EXPECT_EQ(reward->name(), kind);
  EXPECT_EQ(reward->wants_real(), 0);
  RewardReport first, last;
  for (int step = 0; step < 40; ++step) {
    const Batch real = real_batch(16), fake = noise_batch(16);
    last = reward->train_step(real.images, real.classes, fake.images, fake.classes);
    if (step == 0) first = last;
  }
  // Every position has a logit of its own, and spectral norms keep them small: the loss falls slowly, images
  // part early.
  EXPECT_LT(last.loss.item<double>(), 0.9 * first.loss.item<double>());
  EXPECT_GE(last.accuracy_real.item<double>() + last.accuracy_fake.item<double>(), 1.8);
  EXPECT_EQ(last.values[0].first, "score_real");
  EXPECT_GT(last.values[0].second.item<double>(), last.values[1].second.item<double>());
  const Batch real = real_batch(16), fake = noise_batch(16);
  const at::Tensor high = reward->score(real.images, real.classes),
                   low = reward->score(fake.images, fake.classes);
  EXPECT_EQ(high.sizes(), at::IntArrayRef({16}));
  EXPECT_FALSE(high.requires_grad());
  EXPECT_GT((high.unsqueeze(1) > low.unsqueeze(0)).to(at::kFloat).mean().item<double>(), 0.95)
      << "fresh images of both sets";
  EXPECT_LE(high.max().item<double>(), 1);
  EXPECT_GE(low.min().item<double>(), 0);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Adversarial,
                         ::testing::Combine(::testing::Values("conv", "features", "projected"),
                                            ::testing::Values("bce", "hinge")));

TEST_F(RewardTest, ConditionDecidesWhereImagesAreTheSame) {
  // Real: the right class. Fake: the same kind of image under a wrong one. Nothing but the condition differs.
  const auto reward = make({"conv"});
  const auto wrong = [](const Batch& b) {
    return (b.classes + at::randint(1, kClasses, b.classes.sizes(), at::kLong)) % kClasses;
  };
  for (int step = 0; step < 60; ++step) {
    const Batch real = real_batch(16), fake = real_batch(16);
    reward->train_step(real.images, real.classes, fake.images, wrong(fake));
  }
  const Batch fresh = real_batch(64);
  const at::Tensor gain =
      reward->score(fresh.images, fresh.classes) - reward->score(fresh.images, wrong(fresh));
  EXPECT_GT((gain > 0).to(at::kFloat).mean().item<double>(), 0.8) << "0.5 by chance, +- 0.06";
}

TEST_F(RewardTest, TextConditions) {
  context_.classes = 0, context_.text_width = 7;
  const at::Tensor text = at::randn({16, 7});
  for (const std::string kind : {"conv", "features", "projected"}) {
    const auto reward = make({kind});
    RewardReport first, last;
    for (int step = 0; step < 20; ++step) {
      last = reward->train_step(real_batch(16).images, text, noise_batch(16).images, text);
      if (step == 0) first = last;
    }
    EXPECT_LT(last.loss.item<double>(), first.loss.item<double>()) << kind;
    const at::Tensor images = real_batch(16).images;
    EXPECT_FALSE(reward->score(images, text).equal(reward->score(images, text.flip(0)))) << kind;
    EXPECT_NE(message_of([&] { reward->score(images, at::zeros({16}, at::kLong)); }).find("(16, 7)"),
              std::string::npos);
  }
  EXPECT_NE(message_of([&] { make({"confidence"}); }).find("class conditions"), std::string::npos);
}

TEST_F(RewardTest, SaveAndLoadContinueBitExact) {
  config_.discriminator.augment = {.colour = true, .translation = 0.125, .cutout = 0.5};
  config_.frechet_images = 20;
  context_.image_size = 20;  // larger than the ViT's 16: crops are drawn
  std::vector<Batch> data;
  for (int i = 0; i < 5; ++i) data.push_back(real_batch(9, 20)), data.push_back(noise_batch(8, 20));
  const auto run = [&](Reward& reward, int from, int to) {
    std::vector<at::Tensor> out;
    for (int i = from; i < to; ++i) {
      const Batch &real = data[2 * i], &fake = data[2 * i + 1];
      out.push_back(reward.train_step(real.images, real.classes, fake.images, fake.classes).loss.view({1}));
      out.push_back(reward.score(fake.images, fake.classes));
    }
    return at::cat(out);
  };
  const auto state = [](const Reward& reward) {
    TensorMap out;
    reward.save(out, "reward.");
    return out;
  };
  for (const std::vector<std::string>& kinds : {std::vector<std::string>{"conv"},
                                                {"features"},
                                                {"projected"},
                                                {"conv", "features", "projected", "frechet"}}) {
    const auto whole = make(kinds);
    while (whole->wants_real() > 0) whole->observe_real(data[0].images);
    run(*whole, 0, 3);
    write_tensors(dir_ / "state.safetensors", state(*whole));
    const at::Tensor want = run(*whole, 3, 5);

    at::manual_seed(99);
    context_.seed = 77;
    const auto resumed = make(kinds);
    context_.seed = 5;
    resumed->load(read_tensors(dir_ / "state.safetensors"), "reward.", "state.safetensors");
    EXPECT_EQ(resumed->wants_real(), 0);
    EXPECT_CLOSE(run(*resumed, 3, 5), want, 0) << kinds[0];
    const TensorMap a = state(*whole), b = state(*resumed);
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [key, tensor] : a) EXPECT_TRUE(tensor.equal(b.at(key))) << key;
  }
}

TEST_F(RewardTest, LoadRefusesAnotherState) {
  const auto reward = make({"features"});
  TensorMap state;
  reward->save(state, "r.");
  const auto message = [&](const TensorMap& in) {
    return message_of([&] { reward->load(in, "r.", "checkpoint"); });
  };
  TensorMap bad = state;
  bad.erase("r.model.heads.0.cls.weight_u");
  EXPECT_NE(message(bad).find("heads.0.cls.weight_u"), std::string::npos);
  bad = state;
  bad.erase("r.optimizer.heads.0.cls.bias.exp_avg");
  EXPECT_NE(message(bad).find("heads.0.cls.bias.exp_avg"), std::string::npos);
  bad = state;
  bad["r.network"] = bad["r.network"] + 1;
  EXPECT_NE(message(bad).find("another network"), std::string::npos);
  bad = state;
  bad["r.random"] = at::zeros({3}, at::kByte);
  EXPECT_NE(message(bad).find("r.random"), std::string::npos);
  EXPECT_EQ(message(state), "no error");
}

TEST_F(RewardTest, ScoringTrainsNothingAndCutsIntoPartsUnnoticed) {
  for (const std::string kind : {"conv", "features", "projected"}) {
    config_.score_batch = 256;
    auto reward = make({kind});
    const Batch batch = noise_batch(32);
    TensorMap before, after;
    reward->save(before, "");
    for (auto& [key, tensor] : before) tensor = tensor.clone();
    const at::Tensor scores = reward->score(batch.images, batch.classes);
    EXPECT_CLOSE(reward->score(batch.images, batch.classes), scores, 0) << kind;
    reward->save(after, "");
    for (const auto& [key, tensor] : before) EXPECT_TRUE(tensor.equal(after.at(key))) << key;
    config_.score_batch = 16;
    auto parts = make({kind});
    parts->load(before, "", "state");
    EXPECT_CLOSE(parts->score(batch.images, batch.classes), scores, 1e-5) << kind;
  }
}

TEST_F(RewardTest, LargeImagesAreCroppedHalfOfTheTime) {
  context_.image_size = 20;
  const auto reward = make({"projected"});
  const Batch batch = noise_batch(8, 20);
  std::vector<at::Tensor> seen;
  int first = 0;
  for (int i = 0; i < 60; ++i) {
    const at::Tensor scores = reward->score(batch.images, batch.classes);
    const bool known =
        std::any_of(seen.begin(), seen.end(), [&](const at::Tensor& s) { return s.equal(scores); });
    if (!known) seen.push_back(scores);
    first += scores.equal(seen[0]);
  }
  // The whole image, resized, and some of the 25 windows.
  EXPECT_GT(seen.size(), 10u);
  EXPECT_LE(seen.size(), 26u);
}

TEST_F(RewardTest, SumIsWeightedAndReportsItsParts) {
  config_.weights = {2.0, -0.5};
  const auto sum = make({"conv", "confidence"});
  TensorMap state;
  sum->save(state, "");
  for (auto& [key, tensor] : state)
    tensor = tensor.clone();  // it shares the weights, which are trained below
  config_.weights = {};
  const auto conv = make({"conv"}), confidence = make({"confidence"});
  conv->load(state, "conv.", "state");
  const Batch real = real_batch(8), fake = noise_batch(8);
  const at::Tensor a = conv->score(fake.images, fake.classes),
                   b = confidence->score(fake.images, fake.classes);
  EXPECT_EQ(sum->name(), "sum");
  EXPECT_CLOSE(sum->score(fake.images, fake.classes), 2 * a - 0.5 * b, 1e-6);
  EXPECT_TRUE(sum->trains());
  EXPECT_FALSE(confidence->trains());
  EXPECT_THROW(confidence->train_step(real.images, real.classes, fake.images, fake.classes), RunError);
  const RewardReport one = conv->train_step(real.images, real.classes, fake.images, fake.classes);
  const RewardReport all = sum->train_step(real.images, real.classes, fake.images, fake.classes);
  EXPECT_CLOSE(all.loss, one.loss, 0);
  EXPECT_EQ(all.values[0].first, "conv.loss");

  config_.normalise = true;
  config_.weights = {1.0, 3.0};
  const auto normal = make({"conv", "confidence"});
  normal->load(state, "", "state");
  const auto z = [](const at::Tensor& x) { return (x - x.mean()) / (x.std(false) + 1e-8); };
  EXPECT_CLOSE(normal->score(fake.images, fake.classes), z(a) + 3 * z(b), 1e-3);
}

TEST_F(RewardTest, NoRewardSeesTheMeasureNetwork) {
  const fs::path measure = write_classifier("measure.safetensors", {{"role", "measure"}});
  for (const std::string kind : {"features", "confidence", "frechet"}) {
    // By its role, wherever it lies and whether or not the judge is known.
    context_.features = dir_ / "renamed.safetensors";
    fs::copy_file(measure, context_.features, fs::copy_options::overwrite_existing);
    context_.measure.clear();
    EXPECT_NE(message_of([&] { make({kind}); }).find("role measure"), std::string::npos) << kind;
    // By its hash, where the role is not written.
    context_.features = write_classifier("plain.safetensors", {});
    fs::copy_file(context_.features, measure, fs::copy_options::overwrite_existing);
    context_.measure = measure;
    ASSERT_EQ(sha256_file(measure.string()), sha256_file(context_.features.string()));
    EXPECT_NE(message_of([&] { make({kind}); }).find("is the same file as"), std::string::npos) << kind;
    write_classifier("measure.safetensors", {{"role", "measure"}});
    EXPECT_NO_THROW(make({kind})) << "another network than the judge";
  }
  fs::copy_file(config_.vit, measure, fs::copy_options::overwrite_existing);
  EXPECT_NE(message_of([&] { make({"projected"}); }).find("is the same file as"), std::string::npos);
}

TEST_F(RewardTest, MissingFilesSayWhatCanStandIn) {
  config_.vit.clear();
  const std::string unset = message_of([&] { make({"projected"}); });
  for (const char* part : {"vit is not set", "vit_small_patch16_224.dino", "features", "conv"})
    EXPECT_NE(unset.find(part), std::string::npos) << unset;
  config_.vit = (dir_ / "nowhere.safetensors").string();
  EXPECT_NE(message_of([&] { make({"projected"}); }).find("nowhere.safetensors is missing"),
            std::string::npos);
  config_.vit = context_.features.string();
  EXPECT_NE(message_of([&] { make({"projected"}); }).find("kind classifier"), std::string::npos);
  context_.features.clear();
  EXPECT_NE(message_of([&] { make({"features"}); }).find("none was given"), std::string::npos);
  context_.features = dir_ / "gone.safetensors";
  EXPECT_NE(message_of([&] {
              make({"conv", "frechet"});
            }).find("gone.safetensors is missing"),
            std::string::npos);
  EXPECT_NO_THROW(make({"conv"})) << "needs neither";
}

TEST_F(RewardTest, TapsAreChosenByName) {
  config_.taps = {"stem", "stage2"};
  TensorMap state;
  make({"features"})->save(state, "");
  EXPECT_TRUE(state.contains("model.heads.1.cls.bias"));
  EXPECT_FALSE(state.contains("model.heads.2.cls.bias"));
  EXPECT_EQ(state.at("model.heads.1.main.0.1.weight").size(0), 12);
  config_.taps = {"pool"};
  EXPECT_NE(message_of([&] { make({"features"}); }).find("no spatial tap pool"), std::string::npos);
}

TEST_F(RewardTest, RefusesBadBatches) {
  const auto reward = make({"conv"});
  const Batch good = noise_batch(4);
  EXPECT_THROW(reward->score(at::rand({4, 3, 8, 8}), good.classes), InputError);
  EXPECT_THROW(reward->score(good.images.to(at::kDouble), good.classes), InputError);
  EXPECT_THROW(reward->score(good.images.narrow(0, 0, 0), good.classes.narrow(0, 0, 0)), InputError);
  EXPECT_THROW(reward->score(good.images, good.classes.narrow(0, 0, 3)), InputError);
  EXPECT_THROW(reward->score(good.images, good.classes.to(at::kFloat)), InputError);
  EXPECT_NE(message_of([&] {
              reward->score(good.images, at::full({4}, kClasses, at::kLong));
            }).find("[0, 3), got 3"),
            std::string::npos);
  EXPECT_THROW(reward->score(good.images, at::full({4}, -1, at::kLong)), InputError);
}

TEST_F(RewardTest, NothingNotFiniteGetsOutOrIn) {
  for (const std::string kind : {"conv", "features", "projected", "confidence"}) {
    const auto reward = make({kind});
    Batch good = noise_batch(8), bad = noise_batch(8);
    bad.images[3][1][2][2] = NAN;
    EXPECT_THROW(reward->score(bad.images, bad.classes), RunError) << kind;
    if (!reward->trains()) continue;
    const at::Tensor before = reward->score(good.images, good.classes);
    EXPECT_THROW(reward->train_step(good.images, good.classes, bad.images, bad.classes), RunError) << kind;
    EXPECT_CLOSE(reward->score(good.images, good.classes), before, 0)
        << kind << ": a refused update changes nothing";
  }
}

// What a GPU is to say comes later: until then nothing not finite is learned either.
TEST_F(RewardTest, AsksAGpuForNothing) {
  for (const std::string kind : {"conv", "features", "projected", "confidence"}) {
    const auto reward = make({kind});
    const Batch good = noise_batch(8);
    Batch bad = noise_batch(8);
    bad.images[3][1][2][2] = NAN;
    const at::Tensor before = reward->score(good.images, good.classes);
    DeferredChecks checks(/*at_once=*/false);
    {
      const testing::HostWaits waits;
      reward->score(bad.images, bad.classes, checks);
      if (reward->trains()) reward->train_step(good.images, good.classes, bad.images, bad.classes, checks);
      // The least and the largest class of each batch, which are looked at on the CPU alone.
      const size_t batches = reward->trains() ? 3 : 1;
      EXPECT_EQ(waits.names(), std::vector<std::string>(2 * batches, "aten::_local_scalar_dense")) << kind;
    }
    EXPECT_CLOSE(reward->score(good.images, good.classes), before, 0) << kind;
    EXPECT_EQ(
        message_of<RunError>([&] { checks.settle(); }).find(cat("reward ", kind, ": a score is not finite")),
        0)
        << kind;
  }
}

TEST(RewardGolden, ProjectedScoresAndTrainsAsTheReference) {
  const std::string file = "discriminator.safetensors";
  const testing::Golden& g = testing::golden(file);
  TempDir dir;
  write_tensors(dir / "vit.safetensors", testing::vit_tensors({}, "dino.model.model."), {{"heads", "4"}});
  for (const std::string name : {"disc_class.", "disc_text."}) {
    const bool text = name == "disc_text.";
    RewardConfig config;
    config.kinds = {"projected"};
    config.vit = (dir / "vit.safetensors").string();
    const auto reward = make_reward(config, {.image_size = 48, .classes = 1000, .text_width = text ? 24 : 0});
    TensorMap state;
    reward->save(state, "");
    for (auto& [key, tensor] : state)
      if (key.starts_with("model."))
        tensor = testing::discriminator_value(key.substr(6), tensor.sizes(), true);
    reward->load(state, "", "golden");
    const at::Tensor real = testing::input_u("disc.real", {4, 3, 48, 48});
    const at::Tensor fake = 0.25 + 0.5 * testing::input_u("disc.fake", {4, 3, 48, 48});
    at::Tensor real_c = g[name + "context_real"], fake_c = g[name + "context_fake"];
    if (!text) real_c = real_c.squeeze(1), fake_c = fake_c.squeeze(1);
    const auto expect = [&](const at::Tensor& value, const std::string& key) {
      EXPECT_CLOSE(value, g[name + key], testing::golden_tolerance(file, name + key)) << name << key;
    };
    expect(reward->score(fake, fake_c).unsqueeze(1), "reward");
    expect(reward->train_step(real, real_c, fake, fake_c).loss, "bce");
    state.clear();
    reward->save(state, "");
    for (const char* key : {"heads.0.cls.bias", "heads.3.main.0.1.weight"})
      expect(state.at(std::string("model.") + key), std::string("after_adam.") + key);
    for (const char* key : {"heads.0.cls.weight_u", "heads.0.cls.weight_v"})
      expect(state.at(std::string("model.") + key), std::string("after_train.") + key);
  }
}

TEST(RewardConfig, RoundTripsAndNamesBadKeys) {
  RewardConfig config;
  config.kinds = {"projected", "frechet"};
  config.weights = {1, 0.5};
  config.discriminator.augment.cutout = 0.5;
  EXPECT_EQ(config_from_json<RewardConfig>(config_to_json(config), "test"), config);
  const auto expect_bad = [](auto change, const char* key) {
    RewardConfig bad;
    change(bad);
    EXPECT_NE(message_of([&] { bad.validate(); }).find(key), std::string::npos) << key;
  };
  expect_bad([](RewardConfig& c) { c.kinds = {}; }, "kinds");
  expect_bad([](RewardConfig& c) { c.kinds = {"imagereward"}; }, "imagereward");
  expect_bad([](RewardConfig& c) { c.kinds = {"conv", "conv"}; }, "twice");
  expect_bad([](RewardConfig& c) { c.weights = {1}; }, "weights");
  expect_bad([](RewardConfig& c) { c.score_batch = 12; }, "score_batch");
  expect_bad([](RewardConfig& c) { c.frechet_share = "all"; }, "frechet_share");
  expect_bad([](RewardConfig& c) { c.discriminator.loss = "mse"; }, "discriminator.loss");
  expect_bad([](RewardConfig& c) { c.discriminator.augment.translation = 2; }, "augment.translation");
}

}  // namespace
}  // namespace adanat
