// The two layers that the tokenizer and its discriminator are made of, with channel counts that need not be
// multiples of 32. Own modules instead of torch/nn.h: the whole of it costs every includer seconds to
// compile.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace adanat::vqgan {

// 2-D convolution, square kernel; weight (out, in, k, k), optional bias (out), both from U(-1/sqrt(in*k*k),
// +).
class ConvImpl : public torch::nn::Module {
 public:
  ConvImpl(int64_t in, int64_t out, int64_t kernel, bool with_bias, int64_t stride = 1, int64_t padding = -1);
  // (B, in, H, W) -> (B, out, H', W'). padding -1 means kernel / 2.
  at::Tensor forward(const at::Tensor& x) const;
  at::Tensor weight, bias;

 private:
  int64_t stride_, padding_;
};
TORCH_MODULE(Conv);

// GroupNorm with 32 groups, eps 1e-6; where 32 does not divide the channels, gcd(32, channels) groups.
class NormImpl : public torch::nn::Module {
 public:
  explicit NormImpl(int64_t channels);
  at::Tensor forward(const at::Tensor& x) const;  // (B, channels, H, W), same shape out
  at::Tensor weight, bias;

 private:
  int64_t groups_;
};
TORCH_MODULE(Norm);

// Stores every 4-d parameter in the layout that convolutions in bfloat16 want on its device. Values do not
// change. Call before an optimizer or an average is built over the parameters, so that theirs follows. CUDA:
// channels-last, which tensor cores read (in float32 nothing is gained: group norm gives back the other
// layout, so every convolution begins with a copy). CPU: as it is; channels-last there costs
// a third of the speed (64 channels at 16x16, batch 64, one core of an EPYC with AVX-512: 89 images/s in
// training against 125, 236 against 355 forward alone).
void choose_layout(torch::nn::Module& module);

}  // namespace adanat::vqgan
