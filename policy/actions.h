// From the network's raw outputs to the four numbers of an Action (docs/method.md section 5).
#pragma once
#include <string>

#include "core/sampling/action.h"
#include "core/sampling/schedule.h"

namespace adanat {

// AdaNAT's heuristic schedule, which a policy may correct instead of inventing its own; AdaGen scales two of
// its columns. With r_t = (t+1-1e-3)/T: mask ratio cos(pi/2 r_t), re-mask temperature s (1 - r_t), sampling
// temperature 1, guidance g (t+1e-3)/T.
struct HeuristicConfig {
  double remask_temperature = 1.0;
  double guidance = 1.0;

  static constexpr auto fields() {
    using C = HeuristicConfig;
    return std::tuple{
        field("remask_temperature", &C::remask_temperature, "re-mask temperature at the start, > 0"),
        field("guidance", &C::guidance, "guidance at the end, > 0"),
    };
  }
  void validate() const;
  bool operator==(const HeuristicConfig&) const = default;
};

// What raw outputs of 0 mean: (T, 4) f64 on the CPU in the order mask ratio, re-mask temperature, sampling
// temperature, guidance.
struct ActionBase {
  at::Tensor residual;  // added to the raw outputs before the activation
  at::Tensor exact;     // the actions of a zero network; undefined = activation(residual)
};

ActionBase zero_base(int64_t steps);
ActionBase heuristic_base(int64_t steps, const HeuristicConfig& config);
// A zero network reproduces the table to the last bit. Entries at the end of an activation's range (a ratio
// of 0, a guidance of 0) are entered where its slope is still large enough to learn from, and the difference
// is taken off again.
ActionBase table_base(const ScheduleTable& table);

// sigmoid for the mask ratio, softplus for the others; raw (..., 4) f64 -> (..., 4) f64.
at::Tensor activate(const at::Tensor& raw);

// The way from raw outputs to actions for one number of steps. Everything is computed in float64: the
// reference's float32 inverse softplus loses digits, and the counts of rule maskgit are taken in float64.
class ActionMap {
 public:
  // smoothing: AdaGen's beta in [0, 1). u_t = beta u_(t-1) + (1-beta) raw_t, u_0 = raw_0, and the residual is
  // added after it: the same as AdaGen's smoothing of the sum with its pre-compensated residual, since
  // smoothing is linear.
  ActionMap(ActionBase base, double smoothing, bool float64_ratio, at::Device device);

  // What is smoothed so far: undefined before step 0, then (B, 4) f64. Returns the next one; raw (B, 4).
  at::Tensor smooth(const at::Tensor& smoothed, const at::Tensor& raw) const;
  // smoothed (B, 4) f64 as smooth() returned it -> (B, 4) f64.
  at::Tensor values(int64_t step, const at::Tensor& smoothed) const;
  Action action(const at::Tensor& values) const;  // (B, 4) f64, split into its columns
  int64_t steps() const { return base_.residual.size(0); }

 private:
  ActionBase base_;
  double smoothing_;
  bool float64_ratio_;
};

// The table that raw outputs (T, 4), the same for all samples, amount to.
ScheduleTable table_of(const ActionBase& base, double smoothing, const at::Tensor& raw,
                       const std::string& rule);

}  // namespace adanat
