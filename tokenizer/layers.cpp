#include "tokenizer/layers.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <numeric>

#include "core/nn/undrawn.h"

namespace adanat::vqgan {

ConvImpl::ConvImpl(int64_t in, int64_t out, int64_t kernel, bool with_bias, int64_t stride, int64_t padding)
    : stride_(stride), padding_(padding < 0 ? kernel / 2 : padding) {
  const double bound = 1.0 / std::sqrt(double(in * kernel * kernel));
  const auto drawn = [&](at::Tensor x) { return UndrawnWeights::active() ? x : x.uniform_(-bound, bound); };
  weight = register_parameter("weight", drawn(at::empty({out, in, kernel, kernel})));
  if (with_bias) bias = register_parameter("bias", drawn(at::empty({out})));
}

at::Tensor ConvImpl::forward(const at::Tensor& x) const {
  return at::conv2d(x, weight, bias, {stride_, stride_}, {padding_, padding_});
}

NormImpl::NormImpl(int64_t channels) : groups_(std::gcd(int64_t{32}, channels)) {
  weight = register_parameter("weight", at::ones({channels}));
  bias = register_parameter("bias", at::zeros({channels}));
}

at::Tensor NormImpl::forward(const at::Tensor& x) const {
  return at::group_norm(x, groups_, weight, bias, 1e-6);
}

void choose_layout(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : module.parameters())
    if (parameter.dim() == 4 && parameter.is_cuda())
      parameter.set_data(parameter.contiguous(at::MemoryFormat::ChannelsLast));
}

}  // namespace adanat::vqgan
