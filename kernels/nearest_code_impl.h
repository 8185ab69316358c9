#pragma once
// What the CPU, CUDA and Meta versions of nearest_code share. Not for callers.
#include <tuple>

#include "kernels/nearest_code.h"

namespace adanat::kernels {

void check_nearest_code(const at::Tensor& x, const at::Tensor& codebook);
NearestCode empty_nearest_code(const at::Tensor& x);

}  // namespace adanat::kernels
