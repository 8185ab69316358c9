#include "policy/actions.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace adanat {
namespace {

// AdaGen's bound on the argument of the logit.
constexpr double kLogitMargin = 1e-6;
// Where entries of a table enter an activation at the least: its slope is 0.05 there.
constexpr double kTableMargin = 0.05;

double logit(double p, double margin) {
  const double x = std::clamp(p, margin, 1 - margin);
  return std::log(x / (1 - x));
}

// softplus^-1(y) = y + log(1 - exp(-y)), y > 0.
double inverse_softplus(double y) {
  return y + std::log(-std::expm1(-y));
}

}  // namespace

void HeuristicConfig::validate() const {
  require(remask_temperature > 0 && remask_temperature <= 1e6, "remask_temperature", "in (0, 1e6]",
          remask_temperature);
  require(guidance > 0 && guidance <= 1e6, "guidance", "in (0, 1e6]", guidance);
}

ActionBase zero_base(int64_t steps) {
  return {at::zeros({steps, 4}, at::kDouble), {}};
}

ActionBase heuristic_base(int64_t steps, const HeuristicConfig& config) {
  ActionBase base{at::empty({steps, 4}, at::kDouble), {}};
  double* row = base.residual.mutable_data_ptr<double>();
  for (int64_t t = 0; t < steps; ++t, row += 4) {
    const double r = (double(t) + 1 - 1e-3) / double(steps);
    row[0] = logit(std::cos(std::numbers::pi / 2 * r), kLogitMargin);
    row[1] = inverse_softplus(config.remask_temperature * (1 - r));
    row[2] = inverse_softplus(1);
    row[3] = inverse_softplus(config.guidance * (double(t) + 1e-3) / double(steps));
  }
  return base;
}

ActionBase table_base(const ScheduleTable& table) {
  table.validate();
  ActionBase base{at::empty({table.steps, 4}, at::kDouble), at::empty({table.steps, 4}, at::kDouble)};
  double* row = base.residual.mutable_data_ptr<double>();
  double* exact = base.exact.mutable_data_ptr<double>();
  for (size_t t = 0; t < size_t(table.steps); ++t, row += 4, exact += 4) {
    exact[0] = table.mask_ratio[t];
    exact[1] = table.remask_temperature[t];
    exact[2] = table.sampling_temperature[t];
    exact[3] = table.guidance[t];
    row[0] = logit(exact[0], kTableMargin);
    for (int i = 1; i < 4; ++i) row[i] = inverse_softplus(std::max(exact[i], kTableMargin));
  }
  return base;
}

at::Tensor activate(const at::Tensor& raw) {
  // Beyond the threshold softplus is its argument to the last bit of a double.
  return at::cat({at::sigmoid(raw.narrow(-1, 0, 1)), at::softplus(raw.narrow(-1, 1, 3), 1, 40)}, -1);
}

ActionMap::ActionMap(ActionBase base, double smoothing, bool float64_ratio, at::Device device)
    : base_(std::move(base)), smoothing_(smoothing), float64_ratio_(float64_ratio) {
  base_.residual = base_.residual.to(device);
  if (base_.exact.defined()) base_.exact = base_.exact.to(device);
}

at::Tensor ActionMap::smooth(const at::Tensor& smoothed, const at::Tensor& raw) const {
  const at::Tensor now = raw.to(at::kDouble);
  return smoothed.defined() ? smoothed * smoothing_ + now * (1 - smoothing_) : now;
}

at::Tensor ActionMap::values(int64_t step, const at::Tensor& smoothed) const {
  const at::Tensor residual = base_.residual[step];
  at::Tensor out = activate(smoothed + residual);
  if (!base_.exact.defined()) return out;
  // a + (exact - activation(residual)), arranged so that a = activation(residual) gives `exact` itself.
  out = ((out - activate(residual)) + base_.exact[step]).clamp_min(0);
  return at::cat({out.narrow(1, 0, 1).clamp_max(1), out.narrow(1, 1, 3)}, 1);
}

Action ActionMap::action(const at::Tensor& values) const {
  const auto column = [&](int64_t i) { return values.select(1, i).to(at::kFloat); };
  return {float64_ratio_ ? values.select(1, 0).contiguous() : column(0), column(1), column(2), column(3)};
}

ScheduleTable table_of(const ActionBase& base, double smoothing, const at::Tensor& raw,
                       const std::string& rule) {
  const ActionMap map(base, smoothing, true, at::kCPU);
  ScheduleTable out;
  out.steps = map.steps();
  out.rule = rule;
  at::Tensor smoothed;
  for (int64_t t = 0; t < out.steps; ++t) {
    smoothed = map.smooth(smoothed, raw.narrow(0, t, 1));
    const at::Tensor values = map.values(t, smoothed).contiguous();
    const double* v = values.const_data_ptr<double>();
    out.mask_ratio.push_back(v[0]);
    out.remask_temperature.push_back(v[1]);
    out.sampling_temperature.push_back(v[2]);
    out.guidance.push_back(v[3]);
  }
  return out;
}

}  // namespace adanat
