#include "core/sampling/observers.h"

#include <ATen/ops/stack.h>

#include "core/base/interrupt.h"

namespace adanat {

void TraceObserver::on_step(const StepView& view) {
  const Action& a = view.action;
  actions_.push_back(at::stack({a.mask_ratio.to(at::kDouble), a.remask_temperature.to(at::kDouble),
                                a.sampling_temperature.to(at::kDouble), a.guidance.to(at::kDouble)},
                               1));
  revealed_.push_back((view.tokens_after != mask_id_).sum(1));
}

at::Tensor TraceObserver::actions() const {
  return at::stack(actions_).cpu();
}
at::Tensor TraceObserver::revealed() const {
  return at::stack(revealed_).cpu();
}

void TokensObserver::on_step(const StepView& view) {
  tokens_.push_back(view.tokens_after.clone());
  proposals_.push_back(view.proposals.clone());
}

at::Tensor TokensObserver::tokens() const {
  return at::stack(tokens_).cpu();
}
at::Tensor TokensObserver::proposals() const {
  return at::stack(proposals_).cpu();
}

void InterruptObserver::on_step(const StepView&) {
  check_interrupt();
}

}  // namespace adanat
