#pragma once
// What the CPU, CUDA and Meta versions of decode_step share. Not for callers.
#include <tuple>

#include "kernels/decode_step.h"

namespace adanat::kernels {

using DecodeStepTuple = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

// Ranks, sizes, dtypes, one device; no values. Throws c10::Error.
void check_decode_step(const DecodeStepInput& input);

// Uninitialised results of the right shapes on the device of the tokens.
DecodeStepResult empty_decode_step_result(const DecodeStepInput& input);

// logits as given where its last stride is 1, else a copy.
at::Tensor rows_contiguous(const at::Tensor& logits);

// The operator's signature around a version that takes the struct.
template <DecodeStepResult (*Version)(const DecodeStepInput&)>
DecodeStepTuple as_operator(const at::Tensor& logits, const OptionalTensor& logits_uncond,
                            const at::Tensor& tokens, const at::Tensor& mask_ratio,
                            const at::Tensor& remask_temperature, const at::Tensor& sampling_temperature,
                            const at::Tensor& guidance, const at::Tensor& seed, const at::Tensor& image_index,
                            const at::Tensor& step, const at::Tensor& hidden_at_start, int64_t rule,
                            const OptionalTensor& priority, const OptionalTensor& token_noise,
                            const OptionalTensor& confidence_noise) {
  const DecodeStepInput input{
      logits,   logits_uncond, tokens,          mask_ratio, remask_temperature, sampling_temperature,
      guidance, seed,          image_index,     step,       hidden_at_start,    static_cast<RemaskRule>(rule),
      priority, token_noise,   confidence_noise};
  check_decode_step(input);
  DecodeStepResult r = Version(input);
  return {std::move(r.tokens), std::move(r.proposals), std::move(r.confidence), std::move(r.log_prob)};
}

}  // namespace adanat::kernels
