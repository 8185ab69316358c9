// The binding: checks, device guard, current stream. The work is in nearest_code.cuh.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/nearest_code_impl.h"
#include "kernels/nearest_code_launch.h"

namespace adanat::kernels {
namespace {

std::tuple<at::Tensor, at::Tensor> nearest_code_cuda(const at::Tensor& x_in, const at::Tensor& codebook_in) {
  check_nearest_code(x_in, codebook_in);
  const c10::cuda::CUDAGuard guard(x_in.device());
  const at::Tensor x = x_in.contiguous(), codebook = codebook_in.contiguous();
  NearestCode out = empty_nearest_code(x);
  C10_CUDA_CHECK(launch_nearest_code(x.const_data_ptr<float>(), codebook.const_data_ptr<float>(), x.size(0),
                                     codebook.size(0), x.size(1), out.ids.mutable_data_ptr<int64_t>(),
                                     out.distance.mutable_data_ptr<float>(),
                                     c10::cuda::getCurrentCUDAStream()));
  return {out.ids, out.distance};
}

}  // namespace
}  // namespace adanat::kernels

TORCH_LIBRARY_IMPL(adanat, CUDA, m) {
  m.impl("nearest_code", TORCH_FN(adanat::kernels::nearest_code_cuda));
}
