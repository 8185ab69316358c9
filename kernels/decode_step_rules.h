#pragma once
// The numbers of the step that the CPU and the CUDA version must agree on, host and device. Free of torch.
#include <cstdint>

#include "kernels/float_math.h"

namespace adanat::kernels {

constexpr float kGreedyTemperature = 1e-4f;  // sampling at or below it means argmax

// guided = c + w (c - u). A code that the condition rules out (-inf) stays ruled out, whatever u is.
ADANAT_HD float guide(float c, float u, float w) {
  const float guided = add_rn(c, mul_rn(w, sub_rn(c, u)));
  return c == -kInfinity ? c : guided;
}

// A position is masked where the number of confidences that come before its own is at most the bound.
// "Before" is <= for the strict rules and < for maskgit: with s sorted, c < s[k] says exactly that no more
// than k confidences are <= c, and c <= s[count - 1] that no more than count - 1 are < c. So a device needs
// no sort. Both return -1 where nothing may be masked.
ADANAT_HD int64_t strict_bound(float mask_ratio, int64_t hidden_at_start, int64_t positions) {
  const float product =
      mul_rn(static_cast<float>(hidden_at_start), mask_ratio);  // float32, as the reference has it
  const int64_t most = (hidden_at_start < positions ? hidden_at_start : positions) - 1;
  if (!(product > 0.0f))
    return most < 0 ? -1 : 0;  // also NaN; k = 0 masks nothing, as nothing is below the smallest
  return product < static_cast<float>(most) ? static_cast<int64_t>(product) : most;
}

ADANAT_HD int64_t maskgit_bound(double mask_ratio, int64_t hidden_at_start, int64_t hidden) {
  if (hidden <= 0) return -1;
  const double product = static_cast<double>(hidden_at_start) * mask_ratio;
  int64_t count = hidden - 1;
  if (!(product >= static_cast<double>(count))) count = product > 0 ? static_cast<int64_t>(product) : 0;
  return (count > 1 ? count : 1) - 1;
}

}  // namespace adanat::kernels
