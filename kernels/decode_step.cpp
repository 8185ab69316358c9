#include "kernels/decode_step.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "kernels/decode_step_impl.h"

namespace adanat::kernels {

DecodeStepResult decode_step(const DecodeStepInput& in) {
  using Signature = DecodeStepTuple(
      const at::Tensor&, const OptionalTensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const at::Tensor&, int64_t, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adanat::decode_step", "").typed<Signature>();
  auto [tokens, proposals, confidence, log_prob] =
      op.call(in.logits, in.logits_uncond, in.tokens, in.mask_ratio, in.remask_temperature,
              in.sampling_temperature, in.guidance, in.seed, in.image_index, in.step, in.hidden_at_start,
              static_cast<int64_t>(in.rule), in.priority, in.token_noise, in.confidence_noise);
  return {tokens, proposals, confidence, log_prob};
}

namespace {

void check_vector(const at::Tensor& x, const char* name, int64_t size, bool dtype_ok, const char* dtypes) {
  TORCH_CHECK(x.dim() == 1 && x.size(0) == size && dtype_ok, "decode_step: ", name, " must be (", size, ") ",
              dtypes, ", got ", x.sizes(), " ", x.scalar_type());
}

}  // namespace

void check_decode_step(const DecodeStepInput& in) {
  const at::Tensor& logits = in.logits;
  const auto type = logits.scalar_type();
  TORCH_CHECK(logits.dim() == 3 && logits.size(2) >= 1,
              "decode_step: logits must be (B, N, V) with V >= 1, got ", logits.sizes());
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "decode_step: logits must be float32, bfloat16 or float16, got ", type);
  const int64_t batch = logits.size(0), positions = logits.size(1), vocab = logits.size(2);
  TORCH_CHECK(vocab < (int64_t{1} << 31) && positions < (int64_t{1} << 31),
              "decode_step: N and V must be below 2^31, got ", logits.sizes());
  if (in.logits_uncond) {
    TORCH_CHECK(in.logits_uncond->sizes() == logits.sizes() && in.logits_uncond->scalar_type() == type,
                "decode_step: logits_uncond must be like logits, ", logits.sizes(), " ", type, ", got ",
                in.logits_uncond->sizes(), " ", in.logits_uncond->scalar_type());
  }
  TORCH_CHECK(in.tokens.dim() == 2 && in.tokens.size(0) == batch && in.tokens.size(1) == positions &&
                  in.tokens.scalar_type() == at::kLong,
              "decode_step: tokens must be (", batch, ", ", positions, ") int64 as logits are ",
              logits.sizes(), ", got ", in.tokens.sizes(), " ", in.tokens.scalar_type());
  const auto is = [](const at::Tensor& x, at::ScalarType t) { return x.scalar_type() == t; };
  check_vector(in.mask_ratio, "mask_ratio", batch,
               is(in.mask_ratio, at::kFloat) || is(in.mask_ratio, at::kDouble), "float32 or float64");
  check_vector(in.remask_temperature, "remask_temperature", batch, is(in.remask_temperature, at::kFloat),
               "float32");
  check_vector(in.sampling_temperature, "sampling_temperature", batch,
               is(in.sampling_temperature, at::kFloat), "float32");
  check_vector(in.guidance, "guidance", batch, is(in.guidance, at::kFloat), "float32");
  check_vector(in.seed, "seed", batch, is(in.seed, at::kLong), "int64");
  check_vector(in.image_index, "image_index", batch, is(in.image_index, at::kLong), "int64");
  check_vector(in.step, "step", 1, is(in.step, at::kLong), "int64");
  check_vector(in.hidden_at_start, "hidden_at_start", batch, is(in.hidden_at_start, at::kLong), "int64");
  TORCH_CHECK(
      in.rule == RemaskRule::kAdanat || in.rule == RemaskRule::kMaskgit || in.rule == RemaskRule::kOrder,
      "decode_step: rule must be 0 (adanat), 1 (maskgit) or 2 (order), got ", static_cast<int64_t>(in.rule));
  TORCH_CHECK(in.rule != RemaskRule::kOrder || in.priority, "decode_step: the rule order needs priority");
  if (in.priority) check_vector(*in.priority, "priority", positions, is(*in.priority, at::kLong), "int64");
  if (in.token_noise) {
    TORCH_CHECK(in.token_noise->sizes() == logits.sizes() && is(*in.token_noise, at::kFloat),
                "decode_step: token_noise must be ", logits.sizes(), " float32, got ",
                in.token_noise->sizes(), " ", in.token_noise->scalar_type());
  }
  if (in.confidence_noise) {
    TORCH_CHECK(in.confidence_noise->sizes() == in.tokens.sizes() && is(*in.confidence_noise, at::kFloat),
                "decode_step: confidence_noise must be ", in.tokens.sizes(), " float32, got ",
                in.confidence_noise->sizes(), " ", in.confidence_noise->scalar_type());
  }
  const auto same_device = [&](const at::Tensor& x, const char* name) {
    TORCH_CHECK(x.device() == logits.device(), "decode_step: ", name, " is on ", x.device(), ", logits on ",
                logits.device());
  };
  same_device(in.tokens, "tokens");
  same_device(in.mask_ratio, "mask_ratio");
  same_device(in.remask_temperature, "remask_temperature");
  same_device(in.sampling_temperature, "sampling_temperature");
  same_device(in.guidance, "guidance");
  same_device(in.seed, "seed");
  same_device(in.image_index, "image_index");
  same_device(in.step, "step");
  same_device(in.hidden_at_start, "hidden_at_start");
  if (in.logits_uncond) same_device(*in.logits_uncond, "logits_uncond");
  if (in.priority) same_device(*in.priority, "priority");
  if (in.token_noise) same_device(*in.token_noise, "token_noise");
  if (in.confidence_noise) same_device(*in.confidence_noise, "confidence_noise");
}

DecodeStepResult empty_decode_step_result(const DecodeStepInput& in) {
  const auto ids = in.tokens.options();
  const auto reals = ids.dtype(at::kFloat);
  const auto sizes = in.tokens.sizes();
  return {at::empty(sizes, ids), at::empty(sizes, ids), at::empty(sizes, reals), at::empty(sizes, reals)};
}

at::Tensor rows_contiguous(const at::Tensor& logits) {
  return logits.stride(2) == 1 || logits.size(2) == 1 ? logits : logits.contiguous();
}

}  // namespace adanat::kernels

TORCH_LIBRARY_FRAGMENT(adanat, m) {
  m.def(
      "decode_step(Tensor logits, Tensor? logits_uncond, Tensor tokens, Tensor mask_ratio, Tensor "
      "remask_temperature, "
      "Tensor sampling_temperature, Tensor guidance, Tensor seed, Tensor image_index, Tensor step, "
      "Tensor hidden_at_start, int rule, Tensor? priority, Tensor? token_noise, Tensor? confidence_noise) -> "
      "(Tensor tokens, Tensor proposals, Tensor confidence, Tensor log_prob)");
}

TORCH_LIBRARY_IMPL(adanat, Meta, m) {
  using namespace adanat::kernels;
  m.impl("decode_step", TORCH_FN((as_operator<empty_decode_step_result>)));
}

TORCH_LIBRARY_IMPL(adanat, Autograd, m) {
  m.impl("decode_step", torch::autograd::autogradNotImplementedFallback());
}
