// Rewards that nothing trains: a classifier's confidence, the Frechet distance.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "policy/reward_fixture.h"
#include "support/message_of.h"
#include "support/support.h"

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

}  // namespace
}  // namespace adanat
