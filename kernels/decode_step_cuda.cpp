// The binding: device guard, current stream, pointers. The work is in decode_step.cuh.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/decode_step_impl.h"
#include "kernels/decode_step_launch.h"

namespace adanat::kernels {
namespace {

LogitType logit_type(const at::Tensor& logits) {
  if (logits.scalar_type() == at::kFloat) return LogitType::kFloat32;
  return logits.scalar_type() == at::kBFloat16 ? LogitType::kBFloat16 : LogitType::kFloat16;
}

RowView row_view(const at::Tensor& x) {
  if (!x.defined()) return {};
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}

DecodeStepResult decode_step_cuda(const DecodeStepInput& in) {
  const c10::cuda::CUDAGuard guard(in.logits.device());
  DecodeStepResult out = empty_decode_step_result(in);
  // Copies of strided inputs live until the function ends; the allocator reuses their memory in stream order.
  const at::Tensor logits = rows_contiguous(in.logits), tokens = in.tokens.contiguous();
  const at::Tensor uncond = in.logits_uncond ? rows_contiguous(*in.logits_uncond) : at::Tensor();
  const at::Tensor noise = in.token_noise ? rows_contiguous(*in.token_noise) : at::Tensor();
  const at::Tensor confidence_noise = in.confidence_noise ? in.confidence_noise->contiguous() : at::Tensor();
  const at::Tensor priority = in.priority ? in.priority->contiguous() : at::Tensor();
  const at::Tensor ratio = in.mask_ratio.contiguous(), remask = in.remask_temperature.contiguous(),
                   sampling = in.sampling_temperature.contiguous(), guidance = in.guidance.contiguous(),
                   seed = in.seed.contiguous(), image = in.image_index.contiguous(),
                   hidden = in.hidden_at_start.contiguous();

  DecodeStepArgs args;
  args.batch = logits.size(0);
  args.positions = logits.size(1);
  args.vocab = logits.size(2);
  args.type = logit_type(logits);
  args.rule = static_cast<int64_t>(in.rule);
  args.cond = row_view(logits);
  args.uncond = row_view(uncond);
  args.token_noise = row_view(noise);
  args.tokens = tokens.const_data_ptr<int64_t>();
  if (ratio.scalar_type() == at::kFloat)
    args.mask_ratio_f32 = ratio.const_data_ptr<float>();
  else
    args.mask_ratio_f64 = ratio.const_data_ptr<double>();
  args.remask_temperature = remask.const_data_ptr<float>();
  args.sampling_temperature = sampling.const_data_ptr<float>();
  args.guidance = guidance.const_data_ptr<float>();
  args.seed = seed.const_data_ptr<int64_t>();
  args.image_index = image.const_data_ptr<int64_t>();
  args.step = in.step.const_data_ptr<int64_t>();
  args.hidden_at_start = hidden.const_data_ptr<int64_t>();
  if (priority.defined()) args.priority = priority.const_data_ptr<int64_t>();
  if (confidence_noise.defined()) args.confidence_noise = confidence_noise.const_data_ptr<float>();
  args.out_tokens = out.tokens.mutable_data_ptr<int64_t>();
  args.out_proposals = out.proposals.mutable_data_ptr<int64_t>();
  args.out_confidence = out.confidence.mutable_data_ptr<float>();
  args.out_log_prob = out.log_prob.mutable_data_ptr<float>();
  C10_CUDA_CHECK(launch_decode_step(args, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace
}  // namespace adanat::kernels

TORCH_LIBRARY_IMPL(adanat, CUDA, m) {
  using namespace adanat::kernels;
  m.impl("decode_step", TORCH_FN((as_operator<decode_step_cuda>)));
}
