// PPO against the reference (golden file ppo), and on two environments whose best actions are known.
#include "policy/ppo.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "core/nn/module_state.h"
#include "policy/rollout.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::golden;

struct Tolerances {
  double mean, value, log_prob, ratio, loss, gradient, after_1, after_5;
};

// One run of the golden trajectories. `prefix` "" or "slow.".
void expect_golden(const std::string& prefix, double learning_rate, int64_t minibatch,
                   const Tolerances& tol) {
  SCOPED_TRACE(prefix + " minibatch " + std::to_string(minibatch));
  const auto& g = golden("ppo.safetensors");
  PolicyNetworkConfig sizes;
  sizes.input_width = 64;
  ActorCritic net(sizes);
  testing::fill_procedural(*net);
  const at::Tensor features = testing::input_float("ppo.feat", {4, 3, 256, 64}, 1.7).flatten(0, 1);
  PpoConfig config;
  config.learning_rate = learning_rate;
  config.minibatch = minibatch;
  const at::Tensor reward = g["reward"];
  PpoBatch batch;
  batch.steps = 4;
  batch.step = g["timestep"];
  batch.raw = g["old.action"];
  batch.log_prob = g["old.logprob"];
  batch.returns = reward.repeat({4});
  batch.inputs = [&](int64_t begin, int64_t count) { return features.narrow(0, begin, count); };

  EXPECT_CLOSE(batch.returns, g["return.raw"], 0);
  EXPECT_CLOSE(normalise_returns(batch.returns), g["return.normalised"], 1e-6);
  EXPECT_CLOSE(normalise_returns(batch.returns) - g["old.value"], g["advantage"], 5e-5);
  EXPECT_CLOSE(g["old.mean"] + g["eps"] * 0.6, g["old.action"], 1e-6);
  // 188 rms: the float32 error of the reference is 7.7e-4, times 20 (golden/README.md).
  EXPECT_CLOSE(gaussian_log_prob(g["old.action"], g["old.mean"], 0.6), g["old.logprob"], 1e-4);
  EXPECT_NEAR(gaussian_entropy(0.6), g["entropy"][0].item<double>(), 1e-5);

  Optimizer optimizer(named_parameters(*net), ppo_optimizer(config));
  const TensorMap state = module_state(*net);
  const auto expect_params = [&](const std::string& group, double tolerance) {
    const std::map<std::string, std::vector<int64_t>> strides = {
        {"linear1.weight", {32, 64}},
        {"pw_conv.weight", {8, 8}},
        {"dw_conv.weight", {8}},
        {"x_embedder.weight", {16, 4}},
        {"t_embedder.mlp.0.weight", {16, 8}},
        {"adaLN2.adaLN_modulation.1.weight", {64, 16}}};
    int64_t compared = 0;
    for (const auto& [key, expected] : g.tensors) {
      const std::string head = group == "grad." ? group : prefix + group;
      if (key.rfind(head, 0) != 0) continue;
      const std::string name = key.substr(head.size());
      at::Tensor actual;
      if (group == "grad.") {
        for (const auto& [known, parameter] : optimizer.parameters())
          if (known == name) actual = parameter.grad();
      } else {
        actual = state.at(name);
      }
      ASSERT_TRUE(actual.defined()) << name;
      for (const auto& [tail, by] : strides) {
        if (!name.ends_with(tail)) continue;
        for (size_t d = 0; d < by.size(); ++d) actual = actual.slice(int64_t(d), 0, std::nullopt, by[d]);
      }
      if (name.ends_with("pw_conv.weight")) actual = actual.select(3, 0).select(2, 0);
      if (name.ends_with("dw_conv.weight")) actual = actual.select(1, 0);
      EXPECT_CLOSE(actual, expected, tolerance) << key;
      ++compared;
    }
    EXPECT_GT(compared, 15) << group;
  };

  DeferredChecks checks;
  const auto compare = [&](int64_t epoch, const PpoEpoch& e) {
    SCOPED_TRACE("epoch " + std::to_string(epoch));
    const std::string key = prefix + "epoch" + std::to_string(epoch) + ".";
    EXPECT_CLOSE(e.mean, g[key + "mean"], tol.mean);
    EXPECT_CLOSE(e.value, g[key + "value"], tol.value);
    EXPECT_CLOSE(e.log_prob, g[key + "logprob"], tol.log_prob);
    EXPECT_CLOSE(e.ratio, g[key + "ratio"], tol.ratio);
    EXPECT_NEAR(e.loss.item<double>(), g[prefix + "loss"][epoch].item<double>(), tol.loss);
    if (epoch == 0) expect_params("grad.", tol.gradient);
    if (epoch == 1) expect_params("param_after_1.", tol.after_1);
  };
  const PpoReport report = ppo_update(*net, optimizer, batch, config, checks, compare);
  expect_params("param_after_5.", tol.after_5);
  EXPECT_NEAR(report.return_mean.item<double>(), g["return.mean"].item<double>(), 1e-6);
  EXPECT_NEAR(report.return_std.item<double>(), g["return.std"].item<double>(), 1e-6);
  EXPECT_NEAR(report.value_error.item<double>(), g["value_mse"].item<double>(), 1e-4);
  const at::NoGradGuard no_grad;
  const at::Tensor means =
      net->actor->forward(features, net->actor->step_terms(at::arange(4), 4).rows(batch.step));
  EXPECT_CLOSE(means, g[prefix + "after_5.mean"], tol.mean);
  EXPECT_CLOSE(gaussian_log_prob(batch.raw, means, 0.6), g[prefix + "after_5.logprob"], tol.log_prob);
}

// Tolerances: golden/README.md, 20 times the distance of the reference's float32 run from its float64 run.
TEST(Ppo, GoldenFast) {
  expect_golden("", 1e-3, 0, {2e-3, 2e-3, 2e-2, 1e-4, 1e-3, 5e-5, 5e-7, 5e-5});
}
TEST(Ppo, GoldenSlow) {
  expect_golden("slow.", 3e-5, 0, {5e-5, 5e-5, 2e-3, 1e-2, 1e-3, 5e-5, 5e-7, 5e-5});
}
// Gradients of parts add up to those of the whole; 12 rows do not divide by 5.
TEST(Ppo, GoldenSlowInParts) {
  expect_golden("slow.", 3e-5, 5, {5e-5, 5e-5, 2e-3, 1e-2, 1e-3, 5e-5, 5e-7, 5e-5});
}

TEST(Ppo, ExplorationIsLoweredOnceAndStored) {
  const ExplorationConfig config;
  double std = config.std;
  for (int64_t update = 0; update <= 10000; ++update) {
    EXPECT_EQ(std, update <= 500 ? 0.6 : 0.3) << update;  // metadata of golden ppo: 500 -> 0.6, 501 -> 0.3
    std = exploration_after(config, std, update);
  }
  EXPECT_EQ(exploration_after({.std = 0.2, .decrease = 0.15, .after = 3, .floor = 0.1}, 0.2, 3), 0.1);
}

// A NaN that turns up in the second epoch: the weights stay as the first one left them, whether the error
// comes at once or, as where a GPU computes, when all three are done.
class BadLoss : public ::testing::TestWithParam<bool> {};

TEST_P(BadLoss, TeachesNothing) {
  const bool at_once = GetParam();
  at::set_num_threads(1);
  at::manual_seed(3);
  PolicyNetworkConfig sizes;
  sizes.input_width = 6;
  sizes.grid_height = sizes.grid_width = 3;
  sizes.hidden = 16, sizes.channels = 8, sizes.mlp = 16;
  ActorCritic net(sizes);
  PpoConfig config;
  config.epochs = 3;
  Optimizer optimizer(named_parameters(*net), ppo_optimizer(config));
  const at::Tensor features = at::randn({8, 9, 6}), raw = at::randn({8, 4}) * 0.4;
  int64_t calls = 0;
  PpoBatch batch{2,
                 at::arange(2).repeat_interleave(4),
                 raw,
                 gaussian_log_prob(raw, at::zeros({8, 4}), 0.4),
                 at::arange(8).to(at::kFloat),
                 0.4,
                 [&](int64_t begin, int64_t count) {
                   const at::Tensor rows = features.narrow(0, begin, count);
                   // A third step would have good gradients again.
                   return ++calls == 2 ? rows / 0.0 * 0.0 : rows;
                 }};
  TensorMap before;
  const auto keep = [&](int64_t epoch, const PpoEpoch&) {
    if (epoch == 1)
      for (const auto& [name, tensor] : module_state(*net)) before[name] = tensor.clone();
  };
  DeferredChecks checks(at_once);
  try {
    ppo_update(*net, optimizer, batch, config, checks, keep);
    EXPECT_FALSE(at_once);
    checks.settle();
    FAIL() << "no error";
  } catch (const RunError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("surrogate is not finite before step 2"), std::string::npos) << text;
  }
  EXPECT_EQ(calls, at_once ? 2 : 3);
  for (const auto& [name, tensor] : module_state(*net)) {
    EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
    EXPECT_TRUE(at::equal(tensor, before.at(name))) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Ppo, BadLoss, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "AtOnce" : "Later"; });

// Environment: T = 2 steps, samples of two kinds that their features tell apart; the reward falls with the
// squared distance of every raw number from the best one, which may depend on the kind. Returns the mean
// distance from the best at the end.
double distance_after_training(bool shared, bool depends_on_sample, int64_t updates) {
  at::set_num_threads(1);
  at::manual_seed(5);
  PolicyNetworkConfig sizes;
  sizes.input_width = 6;
  sizes.grid_height = sizes.grid_width = 3;
  sizes.hidden = 16, sizes.channels = 8, sizes.mlp = 16;
  if (shared) sizes.shared_steps = 2;
  ActorCritic net(sizes);
  PpoConfig config;
  config.learning_rate = shared ? 1e-2 : 2e-3;
  Optimizer optimizer(named_parameters(*net), ppo_optimizer(config));
  const int64_t b = 128, steps = 2;
  const double std = 0.4;
  const at::Tensor step = at::arange(steps).repeat_interleave(b);
  at::Generator random = at::globalContext().defaultGenerator(at::kCPU);
  double distance = 0;
  for (int64_t update = 0; update < updates; ++update) {
    const at::Tensor kind = at::randint(0, 2, {b}, random).to(at::kFloat) * 2 - 1;  // -1 or 1
    const at::Tensor features = (kind.view({b, 1, 1}) * at::linspace(-1, 1, 6).view({1, 1, 6}))
                                    .expand({b, 9, 6})
                                    .repeat({steps, 1, 1});
    // Step 0 wants 0.5 and step 1 wants -0.5, turned round by the kind where it matters.
    at::Tensor best = (0.5 - step.to(at::kFloat)).unsqueeze(1).expand({steps * b, 4});
    if (depends_on_sample) best = best * kind.repeat({steps}).unsqueeze(1);
    at::Tensor raw, log_prob, mean;
    {
      const at::NoGradGuard no_grad;
      mean = net->actor->forward(features, net->actor->step_terms(at::arange(steps), steps).rows(step));
      raw = mean + at::randn({steps * b, 4}, random) * std;
      log_prob = gaussian_log_prob(raw, mean, std);
    }
    const at::Tensor reward = -(raw - best).square().sum(1).view({steps, b}).sum(0);
    PpoBatch batch{
        steps, step, raw, log_prob, reward.repeat({steps}), std, [&](int64_t begin, int64_t count) {
          return features.narrow(0, begin, count);
        }};
    DeferredChecks checks;
    ppo_update(*net, optimizer, batch, config, checks);
    distance = (mean - best).abs().mean().item<double>();
  }
  return distance;
}

TEST(Ppo, FindsAKnownBestAction) {
  EXPECT_LT(distance_after_training(/*shared=*/false, /*depends_on_sample=*/false, 120), 0.12);
  EXPECT_LT(distance_after_training(/*shared=*/true, /*depends_on_sample=*/false, 120), 0.12);
}

// The best shared action is the middle, half a unit from either kind's best.
TEST(Ppo, OnlyAPolicyThatSeesTheSampleFindsWhatDependsOnIt) {
  EXPECT_LT(distance_after_training(/*shared=*/false, /*depends_on_sample=*/true, 150), 0.15);
  EXPECT_GT(distance_after_training(/*shared=*/true, /*depends_on_sample=*/true, 150), 0.4);
}

}  // namespace
}  // namespace adanat
