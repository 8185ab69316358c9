// What tests of the training loop train: a recipe whose step takes microseconds and that fails as it is told
// to.
#pragma once
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <thread>

#include "core/base/log.h"
#include "core/train/ema.h"
#include "core/train/optimizer.h"
#include "core/train/trainer.h"
#include "support/support.h"

namespace adanat::testing {

struct ToyConfig {
  int64_t width = 6;
  double noise = 0.1;
  std::string dtype = "float32";
  OptimizerConfig optimizer{.learning_rate = 0.01, .warmup = 2};
  LoopConfig loop{.steps = 10, .log_every = 1, .checkpoint_every = 0};
  static constexpr auto fields() {
    return std::tuple{field("width", &ToyConfig::width, ""), field("noise", &ToyConfig::noise, ""),
                      field("dtype", &ToyConfig::dtype, ""), field("optimizer", &ToyConfig::optimizer, ""),
                      field("loop", &ToyConfig::loop, "")};
  }
  void validate() const {}
};

// Fits a vector to noisy measurements; the noise comes from torch's default generator, whose state the loop
// must keep.
class ToyRecipe : public Recipe {
 public:
  explicit ToyRecipe(ToyConfig config = {}) : config_(config), weights_(at::randn({config.width})) {
    weights_.requires_grad_();
    optimizer_ = std::make_unique<Optimizer>(NamedTensors{{"w", weights_}}, config_.optimizer);
    ema_ = std::make_unique<Ema>(NamedTensors{{"w", weights_}}, EmaConfig{});
  }
  std::string name() const override { return "toy"; }
  Json config() const override { return config_to_json(config_); }
  const LoopConfig& loop() const override { return config_.loop; }
  std::string dtype() const override { return config_.dtype; }
  void set_dtype(const std::string& dtype) override { config_.dtype = dtype; }
  std::vector<int64_t> phases() const override { return {0, 6}; }
  DataHealth data_health() const override { return health; }
  StepReport step(int64_t step) override {
    steps_seen.push_back(step);
    if (before_step) before_step(step);
    // Something that is never saved would show as a trace of the timing; precision shows in the loss.
    if (config_.dtype == slow_dtype) std::this_thread::sleep_for(std::chrono::milliseconds(4));
    const double noise = config_.dtype == "bfloat16" ? config_.noise / 2 : config_.noise;
    const at::Tensor loss = (weights_ - noise * at::randn({config_.width})).square().sum();
    loss.backward();
    if (config_.dtype == too_large_dtype) TORCH_CHECK_WITH(OutOfMemoryError, false, "out of memory");
    optimizer_->step(learning_rate_at(config_.optimizer, step, config_.loop.steps));
    ema_->update(step);
    if (step == poison_at) weights_.detach()[2] = std::numeric_limits<float>::infinity();
    const double shown = step == nan_at ? std::numeric_limits<double>::quiet_NaN() : loss.item<double>();
    return {{{"loss", at::scalar_tensor(shown)}}, 1};
  }
  Scalars evaluate() override {
    if (before_evaluate) before_evaluate();
    return {{"size", weights_.detach().square().sum().item<double>()}};
  }
  std::vector<NamedImage> samples() override {
    TORCH_CHECK(weights_.detach().abs().max().item<double>() < 1e20, "a logit is NaN");
    return {{"samples", Image{1, 1, {1, 2, 3}}}};
  }
  void save(TensorMap& out) const override {
    out["w"] = weights_.detach();
    if (ballast > 0) out["ballast"] = at::zeros({ballast});
    optimizer_->save(out, "optimizer.");
    ema_->save(out, "ema.");
  }
  void load(const TensorMap& in, const std::string& where) override {
    weights_.detach().copy_(in.at("w"));
    optimizer_->load(in, "optimizer.", where);
    ema_->load(in, "ema.", where);
  }
  void write_model(const std::filesystem::path& folder) override {
    write_tensors(folder / "toy.safetensors", {{"w", weights_}});
  }

  std::vector<int64_t> steps_seen;
  std::function<void(int64_t)> before_step;
  std::function<void()> before_evaluate;
  int64_t nan_at = -1, poison_at = -1, ballast = 0;
  std::string slow_dtype, too_large_dtype;
  DataHealth health;

 private:
  ToyConfig config_;
  at::Tensor weights_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;
};

inline TensorMap state_of(const std::filesystem::path& checkpoint) {
  TensorMap out;
  for (const auto& [name, tensor] : read_tensors(checkpoint / "state.safetensors"))
    out[name] = tensor.clone();
  return out;
}

inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> out;
  if (std::filesystem::exists(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

// Each test has a folder of its own, and the weights of every recipe are the same.
class TrainerFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    set_quiet(true);
    at::manual_seed(7);
  }
  TempDir dir_;
  const std::filesystem::path out_ = dir_ / "out";
};

}  // namespace adanat::testing
