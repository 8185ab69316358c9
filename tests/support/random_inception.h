// Inception weights of no meaning for tests that need a whole file of them.
#pragma once
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>

#include <cmath>

#include "core/features/inception.h"

namespace adanat::testing {

// Every tensor of InceptionNet, of the size that keeps activations; the same numbers on every call.
inline TensorMap random_inception() {
  at::manual_seed(12);
  TensorMap out;
  for (const auto& [name, shape] : InceptionNet::layout()) {
    at::Tensor& t = out[name];
    if (shape.size() > 1)
      t = at::randn(shape) * std::sqrt(2.0 / double(c10::multiply_integers(shape) / shape[0]));
    else
      t = name.ends_with("running_var") ? at::rand(shape) + 0.5 : at::randn(shape) * 0.1;
    if (name.ends_with("bn.weight")) t += 1;
  }
  return out;
}

}  // namespace adanat::testing
