// Proximal policy optimisation of the policy over one update's trajectories (docs/method.md section 6).
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "core/base/config.h"
#include "core/nn/deferred_checks.h"
#include "core/train/optimizer.h"
#include "policy/network.h"

namespace adanat {

struct PpoConfig {
  double learning_rate = 1e-5;
  int64_t epochs = 5;
  double clip = 0.2;
  double value_weight = 0.5;
  double entropy_weight = 0.01;
  double gradient_clip = 0.0;
  int64_t minibatch = 0;

  static constexpr auto fields() {
    using C = PpoConfig;
    return std::tuple{
        field("learning_rate", &C::learning_rate, "of Adam, for actor and critic, > 0"),
        field("epochs", &C::epochs, "full-batch steps per update, >= 1"),
        field("clip", &C::clip, "ratios are clipped to 1 - clip .. 1 + clip, in (0, 1)"),
        field("value_weight", &C::value_weight, "weight of the critic's squared error, >= 0"),
        field("entropy_weight", &C::entropy_weight,
              "weight of the entropy, a constant at fixed exploration, >= 0"),
        field("gradient_clip", &C::gradient_clip, "largest L2 norm of the gradient, 0 = none"),
        field("minibatch", &C::minibatch,
              "rows (samples x steps) through the network at a time, gradients added up; 0 = as the "
              "rollout's batches"),
    };
  }
  void validate() const;
  bool operator==(const PpoConfig&) const = default;
};

// Width of the exploration by update: `std`, lowered once by `decrease` after update `after` (0-based), not
// below `floor`.
struct ExplorationConfig {
  double std = 0.6;
  double decrease = 0.3;
  int64_t after = 500;
  double floor = 0.1;

  static constexpr auto fields() {
    using C = ExplorationConfig;
    return std::tuple{
        field("std", &C::std, "standard deviation of the noise on the raw outputs, > 0"),
        field("decrease", &C::decrease, "taken off once, >= 0"),
        field("after", &C::after, "0-based update after which it is taken off; -1 = never"),
        field("floor", &C::floor, "the width is never lowered below this, > 0"),
    };
  }
  void validate() const;
  bool operator==(const ExplorationConfig&) const = default;
};

// The width after an update, from the width during it.
double exploration_after(const ExplorationConfig& config, double std, int64_t update);

// R rows, any order. Returns are normalised and advantages taken inside.
struct PpoBatch {
  int64_t steps = 0;    // T that the network is told
  at::Tensor step;      // (R) i64 in [0, T)
  at::Tensor raw;       // (R, 4): what was done
  at::Tensor log_prob;  // (R): under the policy that did it
  at::Tensor returns;   // (R): the reward of the row's trajectory
  double std = 0.6;     // exploration in force then
  // What the networks read at rows [begin, begin + count).
  std::function<at::Tensor(int64_t begin, int64_t count)> inputs;
};

// What one epoch computed before its step; for tests and reports.
struct PpoEpoch {
  at::Tensor loss;                    // 0-d
  at::Tensor mean;                    // (R, 4)
  at::Tensor log_prob, value, ratio;  // (R)
};

// 0-d float tensors, so that a GPU is asked only at a log line.
struct PpoReport {
  at::Tensor return_mean, return_std;  // of the raw returns
  at::Tensor advantage_std;
  at::Tensor surrogate;          // mean of -min(...) in the last epoch
  at::Tensor loss;               // whole, last epoch
  at::Tensor clip_share;         // rows whose ratio lies outside the clip range, last epoch
  at::Tensor approx_kl;          // mean of (ratio - 1) - log ratio, last epoch
  at::Tensor value_error;        // mean (V - R)^2, first epoch: what the critic knew before this update
  at::Tensor first_ratio_error;  // largest |ratio - 1| in the first epoch: rounding only
  double entropy = 0;
};

// (R - mean) / (unbiased std + 1e-7).
at::Tensor normalise_returns(const at::Tensor& returns);

// `epochs` full-batch steps of -min(ratio A, clip(ratio) A) + value_weight MSE(V, R) - entropy_weight H,
// every mean over all R rows; A = normalised return - value before the update. `observe` is called before
// each step, with the gradients in place. The optimizer holds the parameters of `network`.
// A step whose loss or gradient is not finite is noted in `checks`, with the name of the tensor, and not
// taken; nor is any after a failure noted there. Nothing is read back from a GPU.
PpoReport ppo_update(ActorCriticImpl& network, Optimizer& optimizer, const PpoBatch& batch,
                     const PpoConfig& config, DeferredChecks& checks,
                     const std::function<void(int64_t epoch, const PpoEpoch&)>& observe = {});

// Plain Adam as the reference has it.
OptimizerConfig ppo_optimizer(const PpoConfig& config);

}  // namespace adanat
