#include "core/train/optimizer.h"

#include <torch/nn/module.h>

#include "core/train/ema.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::golden;
using testing::input_float;

const testing::Golden& expected() {
  return golden("optim.safetensors");
}

NamedTensors start() {
  return {{"w", input_float("optim.w", {4, 5}, 1).requires_grad_()},
          {"b", input_float("optim.b", {7}, 1).requires_grad_()}};
}

void set_gradients(const NamedTensors& parameters, int64_t step) {
  parameters[0].second.mutable_grad() = input_float(cat("optim.gw", step), {4, 5}, 0.3);
  parameters[1].second.mutable_grad() = input_float(cat("optim.gb", step), {7}, 2);
}

struct Row {
  const char* name;
  OptimizerConfig config;
  double tolerance;  // the table of tests/golden/data/README.md
};
void PrintTo(const Row& row, std::ostream* out) {
  *out << row.name;
}

class GoldenOptimizer : public ::testing::TestWithParam<Row> {};

TEST_P(GoldenOptimizer, FiveUpdates) {
  const Row& row = GetParam();
  const NamedTensors parameters = start();
  Optimizer optimizer(parameters, row.config);
  for (int64_t step = 0; step < 5; ++step) {
    set_gradients(parameters, step);
    optimizer.step(row.config.learning_rate);
    EXPECT_CLOSE(parameters[0].second.detach(), expected()[cat(row.name, ".step", step, ".w")],
                 row.tolerance);
    EXPECT_CLOSE(parameters[1].second.detach(), expected()[cat(row.name, ".step", step, ".b")],
                 row.tolerance);
    EXPECT_FALSE(parameters[0].second.grad().defined()) << "gradients are cleared";
  }
  TensorMap state;
  optimizer.save(state, "");
  EXPECT_CLOSE(state.at("w.exp_avg"), expected()[cat(row.name, ".exp_avg.w")], row.tolerance);
  EXPECT_CLOSE(state.at("w.exp_avg_sq"), expected()[cat(row.name, ".exp_avg_sq.w")], row.tolerance);
  EXPECT_EQ(state.at("w.step").item<double>(), 5);
}

INSTANTIATE_TEST_SUITE_P(
    Optim, GoldenOptimizer,
    ::testing::Values(
        Row{"adamw", {.learning_rate = 1e-3, .weight_decay = 0.03, .beta1 = 0.99, .beta2 = 0.99}, 5e-6},
        Row{"adam_ppo", {.learning_rate = 1e-3, .weight_decay = 0, .beta1 = 0.9, .beta2 = 0.999}, 2e-6},
        Row{"adam_disc", {.learning_rate = 1e-3, .weight_decay = 0, .beta1 = 0.5, .beta2 = 0.999}, 2e-6}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Optimizer, ClipsTheWholeGradient) {
  const NamedTensors parameters = start();
  Optimizer optimizer(parameters, {.clip = 0.5});
  set_gradients(parameters, 0);
  const at::Tensor w = parameters[0].second.grad().clone(), b = parameters[1].second.grad().clone();
  const double norm = std::sqrt((w.square().sum() + b.square().sum()).item<double>());
  EXPECT_NEAR(optimizer.step(1e-3).item<double>(), norm, 1e-5 * norm);
  // The first moment after one update is (1 - beta1) times the gradient that was used.
  TensorMap state;
  optimizer.save(state, "");
  EXPECT_CLOSE(state.at("w.exp_avg"), w * (0.01 * 0.5 / (norm + 1e-6)), 1e-7);
}

// An update that is skipped leaves all as it was, and one that could have been is the same to the bit.
TEST(Optimizer, SkipsWhereTheTensorSaysSo) {
  const NamedTensors plain = start(), asked = start();
  Optimizer always(plain, {.clip = 0.5}), sometimes(asked, {.clip = 0.5});
  for (int64_t step = 0; step < 3; ++step) {
    set_gradients(asked, step);
    asked[0].second.mutable_grad()[1][2] = NAN;
    sometimes.step(1e-3, at::ones({}));
    EXPECT_FALSE(asked[0].second.grad().defined()) << "gradients are cleared";
    set_gradients(asked, step);
    sometimes.step(1e-3, at::zeros({}));
    set_gradients(plain, step);
    always.step(1e-3);
  }
  TensorMap wanted, state;
  always.save(wanted, ""), sometimes.save(state, "");
  for (const auto& [name, tensor] : wanted) EXPECT_CLOSE(state.at(name), tensor, 0) << name;
  for (size_t i = 0; i < plain.size(); ++i)
    EXPECT_CLOSE(asked[i].second.detach(), plain[i].second.detach(), 0);
}

TEST(Optimizer, ParametersWithoutGradientStay) {
  const NamedTensors parameters = start();
  Optimizer optimizer(parameters, {});
  const at::Tensor before = parameters[1].second.detach().clone();
  parameters[0].second.mutable_grad() = input_float("optim.gw0", {4, 5}, 0.3);
  optimizer.step(1e-3);
  EXPECT_CLOSE(parameters[1].second.detach(), before, 0);
}

TEST(Optimizer, SaveAndLoadGoOnBitExactly) {
  const NamedTensors whole = start(), first = start();
  Optimizer optimizer(whole, {}), before(first, {});
  for (int64_t step = 0; step < 5; ++step) {
    set_gradients(whole, step);
    optimizer.step(1e-3);
    if (step < 2) {
      set_gradients(first, step);
      before.step(1e-3);
    }
  }
  TensorMap state;
  before.save(state, "o.");
  for (auto& [name, tensor] : state) tensor = tensor.clone();
  Optimizer after(first, {});
  after.load(state, "o.", "test");
  for (int64_t step = 2; step < 5; ++step) {
    set_gradients(first, step);
    after.step(1e-3);
  }
  EXPECT_CLOSE(first[0].second.detach(), whole[0].second.detach(), 0);
  EXPECT_CLOSE(first[1].second.detach(), whole[1].second.detach(), 0);
  state.erase("o.w.exp_avg");
  EXPECT_THROW(after.load(state, "o.", "test"), InputError);
}

TEST(LearningRate, LawOfTheReference) {
  const Json five = parse_json(expected().metadata.at("lr_used_at_update_warmup5_base4e-4"), "golden");
  for (size_t i = 0; i < five.size(); ++i)
    EXPECT_NEAR(learning_rate_at({.learning_rate = 4e-4, .warmup = 5}, int64_t(i), 100),
                five[i].get<double>(), 1e-12)
        << i;
  const Json none = parse_json(expected().metadata.at("lr_used_at_update_warmup0"), "golden");
  for (size_t i = 0; i < none.size(); ++i)
    EXPECT_NEAR(learning_rate_at({.learning_rate = 4e-4, .warmup = 0}, int64_t(i), 100),
                none[i].get<double>(), 1e-12)
        << i;
  const Json many = parse_json(expected().metadata.at("lr_used_warmup5000"), "golden");
  for (const auto& item : many.items())
    EXPECT_NEAR(learning_rate_at({.learning_rate = 4e-4, .warmup = 5000}, std::stoll(item.key()), 9999),
                item.value().get<double>(), 1e-12)
        << item.key();
}

TEST(LearningRate, CosineEndsAtItsFinalRatio) {
  const OptimizerConfig config{.learning_rate = 1, .warmup = 10, .schedule = "cosine", .final_ratio = 0.1};
  EXPECT_NEAR(learning_rate_at(config, 11, 110), 1.0, 1e-3);
  EXPECT_NEAR(learning_rate_at(config, 60, 110), 0.55, 1e-9);
  EXPECT_NEAR(learning_rate_at(config, 110, 110), 0.1, 1e-9);
  EXPECT_NEAR(learning_rate_at(config, 500, 110), 0.1, 1e-9) << "stays there";
  double before = 2;
  for (int64_t i = 11; i <= 110; ++i) {
    const double rate = learning_rate_at(config, i, 110);
    EXPECT_LE(rate, before);
    before = rate;
  }
}

TEST(Ema, ConstantRate) {
  const NamedTensors source = start();
  NamedTensors half;
  for (const auto& [name, tensor] : source) half.emplace_back(name, (tensor.detach() * 0.5));
  // Starts its averages at the halves, then follows the sources.
  Ema ema(source, {.decay = 0.9999, .ramp = false});
  TensorMap state{{"w", half[0].second}, {"b", half[1].second}};
  ema.load(state, "", "test");
  const at::NoGradGuard no_grad;
  for (int64_t step = 0; step < 3; ++step) {
    source[0].second.detach().add_(input_float(cat("optim.gw", step), {4, 5}, 0.3));
    source[1].second.detach().add_(input_float(cat("optim.gb", step), {7}, 2));
    ema.update(step);
    EXPECT_CLOSE(ema.averages()[0].second, expected()[cat("ema.step", step, ".w")], 1e-6);
    EXPECT_CLOSE(ema.averages()[1].second, expected()[cat("ema.step", step, ".b")], 1e-6);
  }
}

TEST(Ema, RampSwapAndErrors) {
  const at::NoGradGuard no_grad;
  at::Tensor p = input_float("optim.w", {4, 5}, 1);
  Ema ema({{"p", p}}, {.decay = 0.5, .ramp = true});
  const at::Tensor first = p.clone();
  p.add_(1);
  ema.update(0);  // rate min(0.5, 1/10)
  EXPECT_CLOSE(ema.averages()[0].second, first + 0.9, 1e-6);
  const at::Tensor now = p.clone(), average = ema.averages()[0].second.clone();
  ema.swap();
  EXPECT_CLOSE(p, average, 0);
  ema.swap();
  EXPECT_CLOSE(p, now, 0);
  p.add_(1);
  ema.update(100);  // rate 0.5
  EXPECT_CLOSE(ema.averages()[0].second, (average + p) / 2, 1e-6);
  EXPECT_THROW(ema.load({}, "", "test"), InputError);
}

// Warm-up, AdamW and EMA together, as the reference's training loop runs them.
TEST(GoldenLoop, SixUpdates) {
  const NamedTensors parameters{{"w", input_float("optim.w", {4, 5}, 1).requires_grad_()}};
  const OptimizerConfig config{
      .learning_rate = 4e-4, .weight_decay = 0.03, .beta1 = 0.99, .beta2 = 0.99, .warmup = 3};
  Optimizer optimizer(parameters, config);
  Ema ema(parameters, {.decay = 0.9999, .ramp = false});
  for (int64_t step = 0; step < 6; ++step) {
    parameters[0].second.mutable_grad() = input_float(cat("optim.gw", step), {4, 5}, 0.3);
    optimizer.step(learning_rate_at(config, step, 6));
    ema.update(step);
    EXPECT_CLOSE(parameters[0].second.detach(), expected()[cat("loop.step", step, ".w")], 5e-6);
    EXPECT_CLOSE(ema.averages()[0].second, expected()[cat("loop.step", step, ".ema_w")], 5e-6);
  }
}

}  // namespace
}  // namespace adanat
