#pragma once
// The CPU's inner loop of decode_step: one row (one hidden position of one sample). Free of torch.
#include <cstdint>

#include "kernels/decode_step_rules.h"
#include "kernels/isa.h"
#include "kernels/logit_type.h"

namespace adanat::kernels {

struct RowInput {
  const void* cond = nullptr;    // vocab logits of type `type`
  const void* uncond = nullptr;  // null: no guidance
  LogitType type = LogitType::kFloat32;
  int64_t vocab = 0;
  float guidance = 0;
  float temperature = 1;               // at or below kGreedyTemperature: argmax, no noise
  const float* token_noise = nullptr;  // null: Philox at the coordinates below
  uint64_t seed = 0;
  uint32_t position = 0, image = 0, step = 0;
};

struct RowDraw {
  int64_t id;      // -1: NaN or +inf among the guided logits, or all of them -inf
  float log_prob;  // of id under softmax(guided logits), without the temperature
};

// Floats of scratch memory that one call needs.
constexpr int64_t row_scratch_size(int64_t vocab) {
  return 2 * ((vocab + 63) / 64 * 64);
}

using RowFunction = RowDraw (*)(const RowInput&, float* scratch);
using NoiseFunction = void (*)(const RowInput& coordinates,
                               float* noise);  // writes row_scratch_size(vocab) / 2 floats

// isa must be available.
RowFunction row_function(Isa isa);
NoiseFunction noise_function(Isa isa);

}  // namespace adanat::kernels
