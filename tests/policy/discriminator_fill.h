// The golden fill of discriminators: spectral-norm vectors, equalised layers, everything else by the rule.
#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

#include <cmath>
#include <string>

#include "support/support.h"

namespace adanat::testing {

// One tensor called `name` (prefix included). `equalised` fills mapping.* and *.cmapper.* by their
// multipliers.
inline at::Tensor discriminator_value(const std::string& name, at::IntArrayRef shape, bool equalised) {
  const at::Tensor v = (2 * procedural_u(name, c10::multiply_integers(shape)) - 1).view(shape);
  if (name.ends_with("weight_u") || name.ends_with("weight_v"))
    return (v / v.square().sum().sqrt()).to(at::kFloat);
  if (equalised && (name.starts_with("mapping.") || name.find(".cmapper.") != std::string::npos)) {
    const double multiplier = name.starts_with("mapping.fc") ? 0.01 : 1.0;
    return (v * (name.ends_with(".weight") ? std::sqrt(3.0) : 0.1) / multiplier).to(at::kFloat);
  }
  return procedural_weight(name, shape);
}

inline void fill_discriminator(torch::nn::Module& module, const std::string& prefix, bool equalised) {
  const at::NoGradGuard no_grad;
  for (auto& item : module.named_parameters())
    item.value().copy_(discriminator_value(prefix + item.key(), item.value().sizes(), equalised));
  for (auto& item : module.named_buffers())
    item.value().copy_(discriminator_value(prefix + item.key(), item.value().sizes(), equalised));
}

}  // namespace adanat::testing
