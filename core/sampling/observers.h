// Observers that most commands want: what was decided, and the tokens after every step.
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

}  // namespace adanat
