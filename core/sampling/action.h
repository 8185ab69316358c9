// What is decided at one generation step: four numbers for every sample (docs/method.md section 4).
#pragma once
#include <ATen/core/Tensor.h>

namespace adanat {

// Each (B), on the generator's device. A hand-made table is an Action whose rows are all equal.
struct Action {
  at::Tensor mask_ratio;            // f32, or f64 from tables (their counts are taken in float64), >= 0
  at::Tensor remask_temperature;    // f32, >= 0: scale of the noise on the confidence
  at::Tensor sampling_temperature;  // f32, >= 0: divides the logits of the draw; at or below 1e-4 = argmax
  at::Tensor guidance;              // f32: w in c + w (c - u)
};

}  // namespace adanat
