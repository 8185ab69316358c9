#include "policy/rollout.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <array>
#include <cmath>
#include <numbers>

#include "kernels/philox.h"

namespace adanat {
namespace {

constexpr int64_t kLow32 = 0xFFFFFFFFll;

// (low, high) words of a 32 x 32 bit product in int64 lanes. The product wraps, and the shift carries the
// sign: both lie above the bits that are kept.
std::pair<at::Tensor, at::Tensor> multiply(const at::Tensor& x, int64_t by) {
  const at::Tensor product = x * by;
  return {product.bitwise_and(kLow32), product.bitwise_right_shift(32).bitwise_and(kLow32)};
}

// philox4x32_10 (kernels/philox.h) in tensor operations, so that no draw leaves its device. Words as i64 in
// [0, 2^32). The tensors broadcast.
std::array<at::Tensor, 4> philox(std::array<at::Tensor, 4> counter, const at::Tensor& key) {
  at::Tensor k0 = key.bitwise_and(kLow32), k1 = key.bitwise_right_shift(32).bitwise_and(kLow32);
  for (int round = 0; round < 10; ++round) {
    const auto [low0, high0] = multiply(counter[0], 0xD2511F53ll);
    const auto [low1, high1] = multiply(counter[2], 0xCD9E8D57ll);
    counter = {high1.bitwise_xor(counter[1]).bitwise_xor(k0), low1,
               high0.bitwise_xor(counter[3]).bitwise_xor(k1), low0};
    k0 = (k0 + 0x9E3779B9ll).bitwise_and(kLow32);
    k1 = (k1 + 0xBB67AE85ll).bitwise_and(kLow32);
  }
  return counter;
}

int64_t stream_word(kernels::Stream stream) {
  return int64_t(stream) << 16;
}

// kernels::unit_open in float64; exact, since its values are multiples of 2^-24.
at::Tensor unit_open(const at::Tensor& bits) {
  return (bits.bitwise_right_shift(9).to(at::kDouble) + 0.5) * 0x1p-23;
}

}  // namespace

at::Tensor exploration_noise(const at::Tensor& seed, const at::Tensor& image_index, int64_t steps) {
  const at::Tensor step =
      at::arange(steps, image_index.options()) + stream_word(kernels::Stream::kExploration);
  const at::Tensor index = image_index.unsqueeze(1), zero = at::zeros_like(index);
  const auto words = philox({zero, zero, index, step.unsqueeze(0)}, seed.unsqueeze(1));
  std::vector<at::Tensor> normals;
  for (const size_t pair : {0, 2}) {
    const at::Tensor radius = (unit_open(words[pair]).log() * -2).sqrt();
    const at::Tensor angle = unit_open(words[pair + 1]) * (2 * std::numbers::pi);
    normals.push_back(radius * angle.cos());
    normals.push_back(radius * angle.sin());
  }
  return at::stack(normals, 2).to(at::kFloat);
}

at::Tensor label_draws(const at::Tensor& seed, const at::Tensor& image_index, int64_t n) {
  const at::Tensor zero = at::zeros_like(image_index);
  const auto words = philox({zero, zero, image_index, zero + stream_word(kernels::Stream::kData)}, seed);
  return (words[0] * n).bitwise_right_shift(32);  // n < 2^31: no overflow
}

at::Tensor gaussian_log_prob(const at::Tensor& raw, const at::Tensor& mean, double std) {
  const double constant = 4 * (std::log(std) + 0.5 * std::log(2 * std::numbers::pi));
  return ((raw - mean) / std).square().sum(1) * -0.5 - constant;
}

double gaussian_entropy(double std) {
  return 4 * (0.5 + 0.5 * std::log(2 * std::numbers::pi) + std::log(std));
}

RolloutSchedule::RolloutSchedule(const PolicySchedule& policy, at::Tensor noise, double std, bool round)
    : policy_(policy), noise_(std::move(noise)), std_(std), round_(round) {}

std::unique_ptr<ScheduleState> RolloutSchedule::begin(int64_t batch, at::Device device) const {
  raw_.clear(), log_prob_.clear(), mean_actions_.clear();
  return policy_.begin(batch, device);
}

Action RolloutSchedule::next(ScheduleState* state, int64_t step, const at::Tensor& features) const {
  auto& mine = *static_cast<PolicyState*>(state);
  const at::Tensor mean =
      policy_.raw_outputs(mine, step, round_ ? features.to(at::kBFloat16) : features);  // widened again there
  const ActionMap& map = policy_.actions();
  mean_actions_.push_back(map.values(step, map.smooth(mine.smoothed, mean)).to(at::kFloat));
  const at::Tensor raw = std_ > 0 ? mean + noise_.select(1, step) * std_ : mean;
  raw_.push_back(raw);
  if (std_ > 0) log_prob_.push_back(gaussian_log_prob(raw, mean, std_));
  mine.smoothed = map.smooth(mine.smoothed, raw);
  return map.action(map.values(step, mine.smoothed));
}

Decisions RolloutSchedule::decisions() const {
  return {at::stack(raw_), log_prob_.empty() ? at::Tensor() : at::stack(log_prob_), at::stack(mean_actions_)};
}

int64_t state_bytes(StateMemory memory, int64_t trajectories, int64_t steps, int64_t tokens, int64_t width) {
  const int64_t rows = trajectories * steps;
  switch (memory) {
    case StateMemory::kFeatures:
      return rows * tokens * width * 2;
    case StateMemory::kRecompute:
    case StateMemory::kTokens:
      return rows * tokens * 4;
  }
  return 0;
}

StateBuffer::StateBuffer(StateMemory memory, GeneratorImpl& generator, int64_t trajectories, int64_t steps,
                         at::Device device)
    : memory_(memory), generator_(generator), trajectories_(trajectories) {
  const GeneratorConfig& config = generator.config();
  const auto options = at::TensorOptions().device(device);
  if (memory == StateMemory::kFeatures)
    features_ = at::empty({steps, trajectories, config.tokens(), config.width}, options.dtype(at::kBFloat16));
  if (memory == StateMemory::kRecompute || memory == StateMemory::kTokens)
    tokens_ = at::empty({steps, trajectories, config.tokens()}, options.dtype(at::kInt));
}

void StateBuffer::expect(int64_t begin, const at::Tensor& conditions) {
  begin_ = begin;
  if (memory_ != StateMemory::kRecompute) return;
  if (!conditions_.defined()) {
    std::vector<int64_t> sizes = conditions.sizes().vec();
    sizes[0] = trajectories_;
    conditions_ = at::empty(sizes, conditions.options());
  }
  conditions_.narrow(0, begin, conditions.size(0)).copy_(conditions);
}

void StateBuffer::on_step(const StepView& view) {
  const int64_t rows = view.features.size(0);
  if (features_.defined()) features_[view.step].narrow(0, begin_, rows).copy_(view.features);
  if (tokens_.defined()) tokens_[view.step].narrow(0, begin_, rows).copy_(view.tokens_before);
}

at::Tensor StateBuffer::inputs(int64_t begin, int64_t count) const {
  if (memory_ == StateMemory::kFeatures)
    return features_.flatten(0, 1).narrow(0, begin, count).to(at::kFloat);
  const at::Tensor tokens = tokens_.flatten(0, 1).narrow(0, begin, count).to(at::kLong);
  if (memory_ == StateMemory::kTokens) return tokens;
  const at::NoGradGuard no_grad;
  const at::Tensor sample = (at::arange(begin, begin + count, tokens.options())).remainder(trajectories_);
  const bool was_training = generator_.is_training();
  generator_.eval();
  const at::Tensor features = generator_.features(tokens, conditions_.index_select(0, sample));
  generator_.train(was_training);
  return features.to(at::kBFloat16).to(at::kFloat);
}

}  // namespace adanat
