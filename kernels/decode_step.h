#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace adanat::kernels {

// How the positions that stay masked are chosen. The numbers are part of the operator's schema.
enum class RemaskRule : int64_t {
  kAdanat = 0,  // k = min(floor(H m), H - 1), product in float32; masked: confidence < k-th smallest (from 0)
  kMaskgit = 1,  // count = max(1, min(hidden - 1, floor(H m))), product in float64; masked: <= (count - 1)-th
                 // smallest
  kOrder = 2,  // kAdanat with confidence = -priority, no noise: the hidden positions latest in the order stay
               // masked
};

struct DecodeStepResult {
  at::Tensor tokens;      // (B, N) i64 in [0, V]: after re-masking; V = masked
  at::Tensor proposals;   // (B, N) i64 in [0, V): drawn ids; the token itself where it was revealed
  at::Tensor confidence;  // (B, N) f32; +inf where the token was revealed
  at::Tensor
      log_prob;  // (B, N) f32 of the proposal under softmax(guided logits), no temperature; 0 where revealed
};

// B samples, N positions, V codes. Everything on one device. A position is hidden where its token is V.
struct DecodeStepInput {
  at::Tensor logits;  // (B, N, V) f32|bf16|f16, conditional. Not read at revealed positions.
  // (B, N, V), dtype of logits. Absent: no guidance. Not read for samples whose guidance is 0.
  std::optional<at::Tensor> logits_uncond;
  at::Tensor tokens;                // (B, N) i64 in [0, V]
  at::Tensor mask_ratio;            // (B) f32|f64, >= 0
  at::Tensor remask_temperature;    // (B) f32
  at::Tensor sampling_temperature;  // (B) f32; at or below 1e-4: argmax
  at::Tensor guidance;              // (B) f32
  at::Tensor seed;                  // (B) i64, any bits
  at::Tensor image_index;           // (B) i64 in [0, 2^32)
  at::Tensor step;                  // (1) i64 in [0, 2^16)
  at::Tensor hidden_at_start;       // (B) i64 in [0, N]: H, the positions hidden when the run began
  RemaskRule rule = RemaskRule::kAdanat;
  std::optional<at::Tensor> priority;  // (N) i64 rank in the reveal order; kOrder needs it, others ignore it
  std::optional<at::Tensor> token_noise;       // (B, N, V) f32, finite: used instead of Philox's
  std::optional<at::Tensor> confidence_noise;  // (B, N) f32, finite: used instead of Philox's
};

// One step of the generation (the MDP of the paper), per sample:
//
//   guided     = c + w (c - u)                                  c; u where w is not 0
//   proposal   = argmax(guided / tau1 + Gumbel)                 = a draw from softmax(guided / tau1)
//   log_prob   = log softmax(guided)[proposal]
//   confidence = log_prob + tau2 * Gumbel                       +inf where revealed
//   tokens     = masked again by the rule, else the proposal
//
// Noise: kernels/philox.h, streams kToken and kConfidence: a function of (seed, image, step, position, code).
//
// Edge cases
//   ties of the draw or the argmax: the lower id.
//   ties of the confidence: kAdanat and kOrder mask fewer than k, kMaskgit masks whole groups.
//   nothing hidden: tokens come back unchanged.
//   k >= hidden: kAdanat and kOrder reveal nothing (where some token is revealed already). kMaskgit masks at
//     least one position and at most all but one.
//   sampling temperature <= 1e-4: argmax of the guided logits; the token noise is not used.
//   -inf logits: that code is never drawn; -inf stays -inf under guidance.
//   B = 0 or N = 0: empty results.
//   NaN, +inf or nothing but -inf among the guided logits of a hidden row: the CPU throws c10::Error with
//     sample and position. CUDA, which makes no host round trip, leaves a marker: proposal and token V,
//     confidence and log_prob NaN.
//   a NaN or infinite action, a mask ratio < 0, a token, count or index out of range: the CPU throws. CUDA: a
//     NaN sampling temperature means argmax, a negative or NaN mask ratio counts as 0, an index is cut to its
//     bits, a token outside [0, V] counts as revealed; nothing is read or written out of bounds.
//
// Equal logits give equal bits in all CPU instruction sets and thread counts. CUDA gives the same proposals;
// its log_prob differs in the last digits (another order of summation), so masks may differ where confidences
// almost tie. Inputs may have any strides; logits are copied only where their last stride is not 1. Not
// differentiable.
//
// Why an operator: in ATen this is guidance, softmax, multinomial, log_softmax, gather, kthvalue, where,
// which walks [B, N, V] many times and draws by position in the batch. Measured with
// bench/decode_step_bench.cpp, [16, 256, 1024] float32, all hidden, one thread of a 2-core AMD EPYC (family
// 26, AVX-512), processor time, median of 31:
//   unguided  ATen  97.6 ms, decode_step 11.2 ms (8.8 times)
//   guided    ATen 113.2 ms, decode_step  9.5 ms (11.9 times)
// One guided row of 1024: baseline 6.7 us, x86-64-v3 4.3 us, x86-64-v4 2.0 us. Not measured on a GPU yet.
//
// Source: AdaNAT train.py, the sampling step; MaskGIT's and AutoNAT's for kMaskgit. Differs: the count is per
// sample (the reference takes sample 0's), the noise, and the treatment of NaN.
DecodeStepResult decode_step(const DecodeStepInput& input);

// The noise that decode_step uses, as tensors on the CPU: feeding it back as explicit noise gives the same
// ids. seed, image_index: (B) i64 on the CPU.
at::Tensor token_noise(const at::Tensor& seed, const at::Tensor& image_index, int64_t step, int64_t positions,
                       int64_t vocab);  // (B, N, V) f32
at::Tensor confidence_noise(const at::Tensor& seed, const at::Tensor& image_index, int64_t step,
                            int64_t positions);  // (B, N) f32

}  // namespace adanat::kernels
