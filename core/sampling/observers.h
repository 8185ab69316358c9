// Observers that most commands want: what was decided, the tokens after every step, and whether to go on.
#pragma once
#include <vector>

#include "core/sampling/sampler.h"

namespace adanat {

// The activated action and the number of revealed tokens of every sample and step (generate --trace).
class TraceObserver : public SamplerObserver {
 public:
  explicit TraceObserver(int64_t mask_id) : mask_id_(mask_id) {}
  void on_step(const StepView& view) override;
  // (T, B, 4) f64 in the order mask ratio, re-mask temperature, sampling temperature, guidance.
  at::Tensor actions() const;
  // (T, B) i64: tokens revealed after each step; the last row is N.
  at::Tensor revealed() const;

 private:
  int64_t mask_id_;
  std::vector<at::Tensor> actions_, revealed_;
};

// Tokens after each step (generate --save-tokens) and the proposals (previews).
class TokensObserver : public SamplerObserver {
 public:
  void on_step(const StepView& view) override;
  at::Tensor tokens() const;     // (T, B, N) i64, V = masked
  at::Tensor proposals() const;  // (T, B, N) i64

 private:
  std::vector<at::Tensor> tokens_, proposals_;
};

// Throws Interrupted after the step during which a signal asked for the end: a batch of many images and steps
// takes minutes. The images of that batch are lost, none of them is finished.
class InterruptObserver : public SamplerObserver {
 public:
  void on_step(const StepView& view) override;
  bool reads_steps() const override { return false; }
};

}  // namespace adanat
