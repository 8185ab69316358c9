// Trajectories for PPO: the Sampler with a schedule that explores and an observer that keeps the states.
#pragma once
#include <functional>
#include <optional>
#include <string>

#include "core/sampling/sampler.h"
#include "policy/policy_schedule.h"

namespace adanat {

// Standard normal noise of the exploration, (B, T, 4) f32, a function of its coordinates alone: Philox at
// counter (0, 0, image index, step | 2 << 16), words 0, 1 and 2, 3 through Box-Muller. seed, image_index (B)
// i64, on their device.
at::Tensor exploration_noise(const at::Tensor& seed, const at::Tensor& image_index, int64_t steps);

// Uniform integers in [0, n): word 0 of Philox at counter (0, 0, image index, stream 3), key seed. (B) i64.
at::Tensor label_draws(const at::Tensor& seed, const at::Tensor& image_index, int64_t n);

// log N(raw; mean, std) summed over the four numbers. raw, mean (R, 4) -> (R).
at::Tensor gaussian_log_prob(const at::Tensor& raw, const at::Tensor& mean, double std);
// Of the four numbers together.
double gaussian_entropy(double std);

// What the policy said at the T steps of one rollout of B samples.
struct Decisions {
  at::Tensor raw;           // (T, B, 4) f32: with exploration
  at::Tensor log_prob;      // (T, B) f32
  at::Tensor mean_actions;  // (T, B, 4) f32: the activated actions without this step's exploration
};

// A policy that explores. Used for one run of the sampler at a time.
class RolloutSchedule : public Schedule {
 public:
  // noise (B, T, 4). With `round` the actor reads the features as bfloat16 keeps them, so that what is kept
  // is what was seen. Without std (0) the mean action is taken.
  RolloutSchedule(const PolicySchedule& policy, at::Tensor noise, double std, bool round);

  std::string name() const override { return "rollout"; }
  int64_t steps() const override { return policy_.steps(); }
  kernels::RemaskRule rule() const override { return policy_.rule(); }
  std::unique_ptr<ScheduleState> begin(int64_t batch, at::Device device) const override;
  void see_tokens(ScheduleState* state, const at::Tensor& tokens) const override {
    policy_.see_tokens(state, tokens);
  }
  Action next(ScheduleState* state, int64_t step, const at::Tensor& features) const override;
  std::optional<double> known_guidance(int64_t) const override { return std::nullopt; }

  Decisions decisions() const;

 private:
  const PolicySchedule& policy_;
  at::Tensor noise_;
  double std_;
  bool round_;
  mutable std::vector<at::Tensor> raw_, log_prob_, mean_actions_;  // of the run in progress
};

// How the states of an update are kept.
enum class StateMemory {
  kFeatures,   // bfloat16 features
  kRecompute,  // tokens; the features are computed again wherever they are read
  kTokens,     // tokens, which are what the policy reads
};

// Bytes of the states of `trajectories` of `steps` steps.
int64_t state_bytes(StateMemory memory, int64_t trajectories, int64_t steps, int64_t tokens, int64_t width);

// All states of one update, row t * trajectories + b. The generator must outlive it (kRecompute).
class StateBuffer : public SamplerObserver {
 public:
  StateBuffer(StateMemory memory, GeneratorImpl& generator, int64_t trajectories, int64_t steps,
              at::Device device);

  // Samples [begin, begin + conditions.size(0)) come next. conditions as the sampler takes them.
  void expect(int64_t begin, const at::Tensor& conditions);
  void on_step(const StepView& view) override;
  // What the policy reads at rows [begin, begin + count): (count, N, D) f32 features as rounded to bfloat16,
  // or (count, N) i64 tokens.
  at::Tensor inputs(int64_t begin, int64_t count) const;

 private:
  StateMemory memory_;
  GeneratorImpl& generator_;
  int64_t trajectories_, begin_ = 0;
  at::Tensor features_;    // (T, B, N, D) bf16
  at::Tensor tokens_;      // (T, B, N) i32
  at::Tensor conditions_;  // (B, ...)
};

}  // namespace adanat
