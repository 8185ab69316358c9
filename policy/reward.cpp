#include "policy/reward.h"

namespace adanat {

Reward::~Reward() = default;

RewardReport Reward::train_step(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&) {
  throw RunError(cat("reward ", name(), ": has nothing to train"));
}

void Reward::observe_real(const at::Tensor&) {}

void Reward::save(TensorMap&, const std::string&) const {}

void Reward::load(const TensorMap&, const std::string&, const std::string&) {}

}  // namespace adanat
