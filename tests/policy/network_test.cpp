// The policy network and its actions against the reference (golden files policy and actions).
#include "policy/network.h"

#include <ATen/ATen.h>

#include "core/nn/module_state.h"
#include "policy/actions.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::golden;

PolicyNetworkConfig sizes(int64_t width) {
  PolicyNetworkConfig config;
  config.input_width = width;
  return config;
}

at::Tensor slice(const at::Tensor& x, std::initializer_list<int64_t> strides) {
  at::Tensor out = x;
  int64_t dim = 1;
  for (const int64_t stride : strides) out = out.slice(dim++, 0, std::nullopt, stride);
  return out;
}

TEST(PolicyNetwork, GoldenTapsInOrder) {
  const at::NoGradGuard no_grad;
  const auto& expected = golden("policy.safetensors");
  EXPECT_CLOSE(step_sinusoids(at::arange(8)), expected["t_sinusoid"], 1e-6);
  for (const int64_t width : {64, 768, 512}) {
    SCOPED_TRACE(width);
    ActorCritic net(sizes(width));
    testing::fill_procedural(*net);
    EXPECT_EQ(parameter_count(*net->actor),
              std::stoll(expected.metadata.at("actor.c" + std::to_string(width) + ".parameters")));
    const at::Tensor features =
        testing::input_float("policy.feat" + std::to_string(width), {8, 256, width}, 1.7);
    const at::Tensor t = at::arange(8);
    const std::string key = "actor.c" + std::to_string(width) + ".";
    // Suggested tolerance of golden/README.md for this file: 20 times the float32 error.
    const double tolerance = 5e-5;
    EXPECT_CLOSE(slice(net->actor->step_embedding(t, 8), {8}), expected[key + "t_emb"], tolerance);
    PolicyTaps taps;
    const at::Tensor out = net->actor->forward(features, net->actor->step_terms(t, 8), &taps);
    EXPECT_CLOSE(slice(taps.adaln1, {32, 32}), expected[key + "adaln1_slice"], tolerance);
    EXPECT_CLOSE(slice(taps.dw_conv, {64}), expected[key + "dw_conv_slice"], tolerance);
    EXPECT_CLOSE(slice(taps.pw_conv, {16}), expected[key + "pw_conv_slice"], tolerance);
    EXPECT_CLOSE(slice(taps.adaln2, {16}), expected[key + "adaln2_slice"], tolerance);
    EXPECT_CLOSE(slice(taps.adaln3, {16}), expected[key + "adaln3_slice"], tolerance);
    EXPECT_CLOSE(out, expected[key + "out"], tolerance);
    EXPECT_CLOSE(net->critic->forward(features, net->critic->step_terms(t, 8)),
                 expected["critic.c" + std::to_string(width) + ".out"], tolerance);
  }
}

TEST(PolicyNetwork, OddGridsAndOneRowOfTermsForAll) {
  const at::NoGradGuard no_grad;
  PolicyNetworkConfig config = sizes(12);
  config.grid_height = 5, config.grid_width = 3;
  config.hidden = 8, config.channels = 6, config.mlp = 10;
  EXPECT_EQ(config.flat(), 6 * 3 * 2);
  PolicyNetwork net(config, 4);
  testing::fill_procedural(*net, "odd.");
  const at::Tensor x = testing::input_float("odd", {7, 15, 12}, 1.0);
  const StepTerms terms = net->step_terms(at::arange(4), 4);
  EXPECT_CLOSE(net->forward(x, terms.row(2)), net->forward(x, terms.rows(at::full({7}, 2, at::kLong))), 1e-6);
  // A sample does not depend on its neighbours.
  EXPECT_CLOSE(net->forward(x, terms.row(2)).narrow(0, 3, 1), net->forward(x.narrow(0, 3, 1), terms.row(2)),
               1e-6);
  EXPECT_THROW(net->forward(testing::input_float("odd", {7, 16, 12}, 1.0), terms.row(0)), c10::Error);
}

TEST(PolicyNetwork, IsZeroUntilTrained) {
  PolicyNetworkConfig config = sizes(12);
  config.grid_height = 4, config.grid_width = 4;
  config.hidden = 8, config.channels = 6, config.mlp = 10;
  PolicyNetwork net(config, 4);
  const at::Tensor x = testing::input_float("zero", {3, 16, 12}, 1.0);
  EXPECT_CLOSE(net->forward(x, net->step_terms(at::arange(3), 4)), at::zeros({3, 4}), 0);
}

TEST(PolicyNetwork, TheStepsAreSeenWhereTheyShouldBe) {
  const at::NoGradGuard no_grad;
  PolicyNetworkConfig config = sizes(12);
  config.grid_height = 4, config.grid_width = 4;
  config.hidden = 8, config.channels = 6, config.mlp = 10;
  const at::Tensor x = testing::input_float("steps", {1, 16, 12}, 1.0);
  const auto out = [&](int64_t t, int64_t steps) {
    PolicyNetwork net(config, 4);
    testing::fill_procedural(*net, "seen.");
    return net->forward(x, net->step_terms(at::full({1}, t, at::kLong), steps));
  };
  EXPECT_FALSE(at::equal(out(1, 4), out(2, 4)));
  EXPECT_TRUE(at::equal(out(1, 4), out(1, 9)));
  config.see_steps = true;
  EXPECT_FALSE(at::equal(out(1, 4), out(1, 9)));
  config.see_step = false;
  EXPECT_TRUE(at::equal(out(1, 4), out(2, 4)));
}

// The golden actions are float32 arithmetic of the reference: 7e-7 of noise, times 20 (golden/README.md).
constexpr double kActionTolerance = 2e-5;

void expect_actions(const ActionBase& base, double smoothing, const std::string& key,
                    const std::string& raw_key) {
  SCOPED_TRACE(key);
  const auto& expected = golden("actions.safetensors");
  const at::Tensor raw = expected[raw_key];
  const int64_t steps = raw.size(0), b = raw.size(1);
  const ActionMap map(base, smoothing, false, at::kCPU);
  at::Tensor smoothed, smoothed_zero;
  for (int64_t t = 0; t < steps; ++t) {
    smoothed = map.smooth(smoothed, raw[t]);
    smoothed_zero = map.smooth(smoothed_zero, at::zeros({1, 4}));
    if (expected.tensors.contains(key + ".smoothed_raw")) {
      // Compared through the activation: the reference's residual alone carries up to 2.4e-3 of noise there.
      EXPECT_CLOSE(activate(smoothed + base.residual[t]),
                   activate(expected[key + ".smoothed_raw"][t].to(at::kDouble)), kActionTolerance);
    }
    const Action action = map.action(map.values(t, smoothed));
    const at::Tensor all = at::stack(
        {action.mask_ratio, action.remask_temperature, action.sampling_temperature, action.guidance}, 1);
    ASSERT_EQ(all.size(0), b);
    EXPECT_CLOSE(all, expected[key + ".action"][t], kActionTolerance);
    EXPECT_CLOSE(map.values(t, smoothed_zero)[0].to(at::kFloat), expected[key + ".action_of_zero"][t],
                 kActionTolerance);
  }
}

TEST(PolicyActions, Golden) {
  const auto& expected = golden("actions.safetensors");
  for (const int64_t steps : {4, 8}) {
    const std::string key = "T" + std::to_string(steps);
    EXPECT_CLOSE(heuristic_base(steps, {}).residual, expected[key + ".residual_f64"], 1e-12);
    expect_actions(zero_base(steps), 0, key + ".heu0", key + ".raw");
    expect_actions(heuristic_base(steps, {}), 0, key + ".heu1", key + ".raw");
  }
  expect_actions(heuristic_base(16, {}), 0.8, "adagen.T16", "adagen.T16.raw");
  expect_actions(heuristic_base(32, {.remask_temperature = 4.5, .guidance = 2.5}), 0.8, "adagen.T32",
                 "adagen.T32.raw");
  expect_actions(heuristic_base(8, {}), 0, "adagen.T8_unsmoothed", "T8.raw");
}

// The residual that AdaGen adds before smoothing is what smoothing our sum undoes.
TEST(PolicyActions, SmoothingEqualsThePreCompensatedResidual) {
  const at::Tensor s = heuristic_base(16, {}).residual;
  const at::Tensor residual = golden("actions.safetensors")["adagen.T16.residual_f64"];
  at::Tensor u;
  for (int64_t t = 0; t < 16; ++t) {
    u = t == 0 ? residual[t] : u * 0.8 + residual[t] * (1 - 0.8);
    EXPECT_CLOSE(u, s[t], 1e-9);
  }
}

TEST(PolicyActions, AZeroNetworkIsTheTableToTheLastBit) {
  TableOptions options;
  options.guidance = 3.25;
  for (const int64_t steps : {1, 3, 4, 8, 16}) {
    ScheduleTable table = cosine_table(steps, options);
    table.sampling_temperature[0] = 0;  // argmax
    for (const double smoothing : {0.0, 0.8}) {
      const ActionMap map(table_base(table), smoothing, true, at::kCPU);
      at::Tensor smoothed;
      for (int64_t t = 0; t < steps; ++t) {
        smoothed = map.smooth(smoothed, at::zeros({2, 4}));
        const at::Tensor v = map.values(t, smoothed);
        const auto i = size_t(t);
        const at::Tensor want = at::tensor({table.mask_ratio[i], table.remask_temperature[i],
                                            table.sampling_temperature[i], table.guidance[i]},
                                           at::kDouble);
        EXPECT_CLOSE(v[1], want, 0);
      }
    }
  }
}

TEST(PolicyActions, ATableLeavesRoomToLearn) {
  ScheduleTable table = cosine_table(4, {});
  table.guidance[0] = 0;
  const ActionMap map(table_base(table), 0, true, at::kCPU);
  // Everywhere, a raw output of +1 moves every number, and -30 stays in its range.
  for (int64_t t = 0; t < 4; ++t) {
    const at::Tensor zero = map.values(t, at::zeros({1, 4}, at::kDouble)),
                     up = map.values(t, at::ones({1, 4}, at::kDouble));
    EXPECT_TRUE((up - zero > 0.01).all().item<bool>()) << t;
    EXPECT_TRUE((map.values(t, at::full({1, 4}, -30.0, at::kDouble)) >= 0).all().item<bool>());
    EXPECT_TRUE((map.values(t, at::full({1, 4}, 30.0, at::kDouble)).select(1, 0) <= 1).all().item<bool>());
  }
}

}  // namespace
}  // namespace adanat
