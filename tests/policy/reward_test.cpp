#include "policy/reward.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <fstream>

#include "core/base/sha256.h"
#include "core/features/classifier.h"
#include "core/nn/module_state.h"
#include "policy/discriminator_fill.h"
#include "policy/reward_kinds.h"
#include "support/golden_noise.h"
#include "support/vit_tensors.h"

namespace adanat {
namespace {
namespace fs = std::filesystem;
using testing::TempDir;

constexpr int64_t kSide = 16, kClasses = 3;

template <class E = InputError, class F>
std::string message_of(F run) {
  try {
    run();
  } catch (const E& e) {
    return e.what();
  }
  return "no such error";
}

// Networks that rewards look through, written once: an untrained classifier and a small ViT.
class RewardTest : public ::testing::Test {
 protected:
  RewardTest() {
    at::manual_seed(11);
    at::set_num_threads(1);  // everything here is tiny: a second thread costs more than it brings
    write_classifier("features.safetensors", {{"role", "features"}});
    write_tensors(dir_ / "vit.safetensors", testing::vit_tensors({.width = 16, .patch = 4, .image = 16}, ""),
                  {{"heads", "2"}});
    config_.vit = (dir_ / "vit.safetensors").string();
    config_.mapping_width = 32;
    config_.conv_width = 8;
    config_.discriminator.learning_rate = 1e-2;
    context_ = {
        .image_size = kSide, .classes = kClasses, .features = dir_ / "features.safetensors", .seed = 5};
  }

  fs::path write_classifier(const std::string& name, Metadata metadata) {
    const ClassifierConfig model{.image_size = kSide,
                                 .classes = kClasses,
                                 .stem_kernel = 3,
                                 .stem_stride = 1,
                                 .halve_first = true,
                                 .widths = {8, 12, 16},
                                 .blocks = {1, 1, 1}};
    auto net = std::make_shared<ClassifierNet>(model);
    metadata["kind"] = "classifier", metadata["format"] = "1",
    metadata["config"] = config_to_json(model).dump();
    write_tensors(dir_ / name, module_state(*net), metadata);
    return dir_ / name;
  }

  std::unique_ptr<Reward> make(const std::vector<std::string>& kinds) {
    config_.kinds = kinds;
    return make_reward(config_, context_);
  }

  TempDir dir_;
  RewardConfig config_;
  RewardContext context_;
};

struct Batch {
  at::Tensor images, classes;
};

// Stripes whose direction and colour follow the class, with some noise.
Batch real_batch(int64_t b, int64_t side = kSide) {
  Batch out{at::empty({b, 3, side, side}), at::randint(0, kClasses, {b}, at::kLong)};
  const at::Tensor line = (at::arange(side, at::kFloat) * 1.5).sin() * 0.4 + 0.5;
  for (int64_t i = 0; i < b; ++i) {
    const int64_t c = out.classes[i].item<int64_t>();
    out.images[i].copy_(c == 1 ? line.view({side, 1}).expand({side, side}) : line.expand({side, side}));
    out.images[i][c].mul_(0.3);
  }
  out.images = (out.images + 0.1 * at::rand(out.images.sizes())).clamp(0, 1);
  return out;
}

Batch noise_batch(int64_t b, int64_t side = kSide) {
  return {at::rand({b, 3, side, side}), at::randint(0, kClasses, {b}, at::kLong)};
}

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
  EXPECT_EQ(message(state), "no such error");
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

TEST_F(RewardTest, ConfidenceIsTheProbabilityOfTheWantedClass) {
  const auto reward = make({"confidence"});
  const Batch batch = noise_batch(6);
  const auto net = load_feature_net(context_.features);
  const at::Tensor p = at::softmax(net->forward(batch.images, {"logits"})[0], 1);
  at::Tensor sum = at::zeros({6});
  for (int64_t c = 0; c < kClasses; ++c) {
    const at::Tensor scores = reward->score(batch.images, at::full({6}, c, at::kLong));
    EXPECT_CLOSE(scores, p.select(1, c), 1e-6);
    sum += scores;
  }
  EXPECT_CLOSE(sum, at::ones({6}), 1e-5);
  context_.classes = 4;
  EXPECT_NE(message_of([&] { make({"confidence"}); }).find("3 classes"), std::string::npos);
}

GaussianStats stats_of(const at::Tensor& x) {
  GaussianAccumulator out(x.size(1));
  out.add(x);
  return out.stats();
}

TEST(FrechetPseudoValues, EqualLeavingOutEachRow) {
  at::manual_seed(2);
  for (const auto& [n, d] : {std::pair{40, 6}, {9, 12}, {3, 5}, {64, 1}, {20, 19}}) {
    const at::Tensor mix = at::randn({d, d}, at::kDouble);
    const GaussianStats real = stats_of(at::randn({200, d}, at::kDouble).matmul(mix) + 0.3);
    const at::Tensor x = at::randn({n, d}, at::kDouble).matmul(mix).clamp_min(-0.5);
    const at::Tensor got = frechet_pseudo_values(x, real);
    const double whole = frechet_distance(stats_of(x), real);
    for (int64_t i = 0; i < n; ++i) {
      const at::Tensor rest = at::cat({x.narrow(0, 0, i), x.narrow(0, i + 1, n - i - 1)});
      const double want = (n - 1) * frechet_distance(stats_of(rest), real) - n * whole;
      // 1e-6 of the distances that are subtracted, times n.
      EXPECT_NEAR(got[i].item<double>(), want, 1e-6 * n * (whole + 1))
          << n << " rows of " << d << ", row " << i;
    }
  }
}

TEST(FrechetPseudoValues, ConstantFeatures) {
  const GaussianStats real = stats_of(testing::input_float("reward_test.real", {50, 4}, 1));
  const at::Tensor values = frechet_pseudo_values(at::full({5, 4}, 0.25), real);
  const double whole = frechet_distance(stats_of(at::full({5, 4}, 0.25)), real);
  EXPECT_CLOSE(values, at::full({5}, -whole, at::kDouble), 1e-9);
}

TEST(FrechetInfluence, IsTheDerivativeInTheDirectionOfARow) {
  at::manual_seed(3);
  for (const auto& [n, d] : {std::pair{60, 6}, {200, 19}, {50, 1}}) {
    const at::Tensor mix = at::randn({d, d}, at::kDouble);
    const GaussianStats real = stats_of(at::randn({200, d}, at::kDouble).matmul(mix) + 0.3);
    GaussianStats made = stats_of(at::randn({n, d}, at::kDouble).matmul(mix).clamp_min(-0.5));
    const at::Tensor x = at::randn({5, d}, at::kDouble) * 2;
    const at::Tensor got = frechet_influence(x, made, real);
    for (int64_t i = 0; i < x.size(0); ++i) {
      const auto mixed = [&](double share) {
        const at::Tensor off = x[i] - made.mean;
        const GaussianStats with{
            made.count, made.mean + off * share,
            made.covariance * (1 - share) + off.unsqueeze(1) * off.unsqueeze(0) * (share * (1 - share))};
        return frechet_distance(with, real);
      };
      const double step = 1e-6, want = (mixed(step) - mixed(-step)) / (2 * step);
      // Central differences of values about 1e2 known to 1e-13 of themselves: 1e-5 is left.
      EXPECT_NEAR(got[i].item<double>(), want, 1e-5 * (1 + std::abs(want))) << d << " features, row " << i;
    }
  }
}

TEST_F(RewardTest, RunningFrechetRemembersWhatWasMade) {
  config_.frechet_images = 150;
  config_.frechet_share = "running";
  config_.frechet_memory = 40;
  const auto reward = make({"frechet"});
  reward->observe_real(real_batch(150).images);
  const Batch real = real_batch(24), fake = noise_batch(8);
  const at::Tensor images = at::cat({real.images, fake.images}),
                   classes = at::cat({real.classes, fake.classes});
  const at::Tensor first = reward->score(images, classes);
  EXPECT_NEAR(first.mean().item<double>(), 0, 0.05 * first.abs().max().item<double>());
  EXPECT_GT(first.narrow(0, 0, 24).mean().item<double>(), first.narrow(0, 24, 8).mean().item<double>());

  // What came before changes the scores, and goes along with a checkpoint.
  TensorMap saved;
  reward->save(saved, "r.");
  const at::Tensor second = reward->score(images.narrow(0, 0, 8), classes.narrow(0, 0, 8));
  EXPECT_GT((second - first.narrow(0, 0, 8)).abs().max().item<double>(), 0);
  const auto again = make({"frechet"});
  again->load(saved, "r.", "here");
  EXPECT_CLOSE(again->score(images.narrow(0, 0, 8), classes.narrow(0, 0, 8)), second, 0);
  saved.erase("r.made_mean");
  EXPECT_NE(message_of([&] { again->load(saved, "r.", "here"); }).find("here: lacks the tensor r.made_mean"),
            std::string::npos);

  // It forgets: after enough of other images the first ones no longer count.
  config_.frechet_memory = 0;
  const at::Tensor seen = real_batch(150).images;
  const auto forgets = make({"frechet"});
  forgets->observe_real(seen);
  forgets->score(fake.images, fake.classes);
  const auto fresh = make({"frechet"});
  fresh->observe_real(seen);
  EXPECT_CLOSE(forgets->score(images, classes), fresh->score(images, classes), 1e-4);
}

TEST_F(RewardTest, FrechetOfSeveralTaps) {
  config_.frechet_images = 150;
  const at::Tensor seen = real_batch(150).images;
  TensorMap pool_only;
  {
    const auto reward = make({"frechet"});
    reward->observe_real(seen);
    reward->save(pool_only, "r.");
  }
  config_.frechet_taps = {"pool", "stage1"};
  const auto reward = make({"frechet"});
  EXPECT_NE(message_of([&] { reward->load(pool_only, "r.", "here"); }).find("here: r.real_mean has"),
            std::string::npos);
  reward->observe_real(seen);
  const Batch real = real_batch(28), fake = noise_batch(4);
  const at::Tensor images = at::cat({real.images, fake.images}),
                   classes = at::cat({real.classes, fake.classes});
  const at::Tensor scores = reward->score(images, classes);
  EXPECT_GT(scores.narrow(0, 0, 28).median().item<double>(), scores.narrow(0, 28, 4).max().item<double>());
  // Each tap has the real images' total variance 1, so another order of the same taps changes rounding only.
  config_.frechet_taps = {"stage1", "pool"};
  const auto turned = make({"frechet"});
  turned->observe_real(seen);
  EXPECT_CLOSE(turned->score(images, classes), scores, 1e-4);
  TensorMap saved;
  reward->save(saved, "r.");
  config_.frechet_taps = {"pool", "stage1"};
  const auto again = make({"frechet"});
  again->load(saved, "r.", "here");
  EXPECT_CLOSE(again->score(images, classes), scores, 0);

  config_.frechet_taps = {"pool", "stage9"};
  EXPECT_NE(message_of([&] { make({"frechet"}); }).find("stage9"), std::string::npos);
  config_.frechet_taps = {};
  EXPECT_NE(message_of([&] { make({"frechet"}); }).find("frechet_taps"), std::string::npos);
}

TEST_F(RewardTest, FrechetThroughSeveralNetworks) {
  config_.frechet_images = 150;
  const at::Tensor seen = real_batch(150).images;
  const Batch real = real_batch(28), fake = noise_batch(4);
  const at::Tensor images = at::cat({real.images, fake.images}),
                   classes = at::cat({real.classes, fake.classes});
  const auto scores_of = [&](const std::vector<std::string>& files) {
    config_.frechet_networks = files;
    const auto reward = make({"frechet"});
    reward->observe_real(seen);
    return reward->score(images, classes);
  };
  const std::string other = write_classifier("other.safetensors", {{"role", "features"}}).string();
  const std::string third = write_classifier("third.safetensors", {{"role", "features"}}).string();
  const at::Tensor alone = scores_of({}), two = scores_of({other}), three = scores_of({other, third});
  EXPECT_GT((two - alone).abs().max().item<double>(), 1e-3);
  EXPECT_GT((three - two).abs().max().item<double>(), 1e-3);
  EXPECT_CLOSE(scores_of({third, other}), three, 1e-4);  // each network has the same total variance
  EXPECT_GT(three.narrow(0, 0, 28).median().item<double>(), three.narrow(0, 28, 4).max().item<double>());

  // A checkpoint goes on with the same networks only.
  config_.frechet_networks = {other};
  TensorMap saved;
  make({"frechet"})->save(saved, "r.");
  EXPECT_NO_THROW(make({"frechet"})->load(saved, "r.", "here"));
  config_.frechet_networks = {third};
  EXPECT_NE(message_of([&] { make({"frechet"})->load(saved, "r.", "here"); }).find("here: reward frechet"),
            std::string::npos);

  // What judges is refused here too, as is what is missing.
  config_.frechet_networks = {write_classifier("judge.safetensors", {{"role", "measure"}}).string()};
  EXPECT_NE(message_of([&] { make({"frechet"}); }).find("measure"), std::string::npos);
  config_.frechet_networks = {(dir_ / "none.safetensors").string()};
  EXPECT_NE(message_of([&] { make({"frechet"}); }).find("none.safetensors is missing"), std::string::npos);
}

TEST_F(RewardTest, FrechetRanksWhatIsLikeTheRealImages) {
  config_.frechet_images = 150;
  const auto reward = make({"frechet"});
  EXPECT_FALSE(reward->trains());
  EXPECT_EQ(reward->wants_real(), 150);
  EXPECT_NE(message_of<RunError>([&] {
              const Batch b = noise_batch(4);
              reward->score(b.images, b.classes);
            }).find("real images"),
            std::string::npos);
  reward->observe_real(real_batch(100).images);
  EXPECT_EQ(reward->wants_real(), 50);
  reward->observe_real(real_batch(100).images);
  EXPECT_EQ(reward->wants_real(), 0);
  const Batch real = real_batch(28), fake = noise_batch(4);
  const at::Tensor scores =
      reward->score(at::cat({real.images, fake.images}), at::cat({real.classes, fake.classes}));
  EXPECT_GT(scores.narrow(0, 0, 28).median().item<double>(), scores.narrow(0, 28, 4).max().item<double>());

  config_.frechet_share = "batch";
  const auto shared = make({"frechet"});
  shared->observe_real(real_batch(150).images);
  const at::Tensor good = shared->score(real.images, real.classes);
  const Batch bad = noise_batch(28);
  EXPECT_CLOSE(good, at::full({28}, good[0].item<double>()), 0);
  EXPECT_LT(good[0].item<double>(), 0);
  EXPECT_GT(good[0].item<double>(), shared->score(bad.images, bad.classes)[0].item<double>());
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
