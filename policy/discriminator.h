// Discriminators: the heads that are projected onto frozen features, and a convolutional one that starts from
// nothing. Source: docs/method.md section 6; StyleGAN-T networks/discriminator.py, AdaNAT
// libs/discriminator.py. The names of parameters and buffers are the reference's.
#pragma once
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "core/base/config.h"

namespace adanat {

// A convolution whose weight is divided by its largest singular value, found by one power iteration per
// training forward and none in evaluation (torch.nn.utils.spectral_norm). The gradient passes through the
// division; u and v are constants. Fresh vectors turn 15 times at once (the reference: never): random ones
// see a fraction of the singular value, and scores before the first update would be too large by that, layer
// upon layer. Parameters weight_orig (out, in, k [, k]) and bias (out); buffers weight_u (out), weight_v (in
// * k [* k]).
class SpectralConv : public torch::nn::Module {
 public:
  // kernel.size() = 1: over (B, in, L), circular padding k/2. kernel.size() = 2: over (B, in, h, w), zero
  // padding k/2 - 1 for even and k/2 for odd k.
  SpectralConv(int64_t in, int64_t out, std::vector<int64_t> kernel, int64_t stride = 1);
  at::Tensor forward(const at::Tensor& x);
  // The weight as it is used, of the same shape as weight_orig; advances u and v in training mode.
  at::Tensor weight();

 private:
  void iterate();
  std::vector<int64_t> kernel_;
  int64_t stride_;
  at::Tensor weight_, bias_, u_, v_;
};

// Normalises each channel over groups of consecutive samples, also in evaluation: mean and (biased) variance
// over the group's samples and positions, epsilon 1e-5, then weight and bias (C). The number of groups is
// ceil(B/8), and where that does not divide B the largest divisor of B below it (the reference refuses such
// batches).
class BatchNormLocal : public torch::nn::Module {
 public:
  explicit BatchNormLocal(int64_t channels);
  at::Tensor forward(const at::Tensor& x) const;  // (B, C, L) -> the same
  static int64_t groups(int64_t batch);

 private:
  at::Tensor weight_, bias_;
};

// Linear layer with equalised learning rate: x * weight^T * m / sqrt(in) + m * bias, m = multiplier; with
// `activate` leaky ReLU 0.2 times sqrt(2) behind it. Weights start normal with deviation 1/m, the bias at 0.
class EqualLinear : public torch::nn::Module {
 public:
  EqualLinear(int64_t in, int64_t out, double multiplier, bool activate);
  at::Tensor forward(const at::Tensor& x) const;       // (B, in) -> (B, out)
  at::Tensor of_one_hot(const at::Tensor& ids) const;  // (B) int64 in [0, in): forward of one-hot rows

 private:
  at::Tensor finish(const at::Tensor& x) const;
  double multiplier_;
  bool activate_;
  at::Tensor weight_, bias_;
};

// Class -> condition embedding: embed (one-hot linear), divided by its root mean square, fc0..fc7 with
// multiplier 0.01.
class ClassMapping : public torch::nn::Module {
 public:
  ClassMapping(int64_t classes, int64_t width);
  at::Tensor forward(const at::Tensor& ids) const;  // (B) int64 -> (B, width)

 private:
  std::shared_ptr<EqualLinear> embed_;
  std::vector<std::shared_ptr<EqualLinear>> layers_;
};

// One head: h = block_1(x), h = (h + block_9(h)) / sqrt(2), block_k = [SpectralConv k, BatchNormLocal, leaky
// ReLU 0.2]; with a condition: sum over 64 channels of cls(h) * cmapper(c), / sqrt(64); without: cls(h) with
// one channel.
class DiscriminatorHead : public torch::nn::Module {
 public:
  DiscriminatorHead(int64_t channels, int64_t condition_width);  // 0 = no condition
  // x (B, channels, L), L >= 4; c (B, condition_width), not read without a condition. -> (B, 1, L)
  at::Tensor forward(const at::Tensor& x, const at::Tensor& c);

 private:
  at::Tensor block(size_t index, const at::Tensor& x);
  std::shared_ptr<SpectralConv> convs_[2], cls_;
  std::shared_ptr<BatchNormLocal> norms_[2];
  std::shared_ptr<EqualLinear> cmapper_;
};

// What a discriminator is conditioned on. Classes: int64 (B) in [0, classes). Text: float (B, text_width),
// which is divided by its L2 norm. text_width > 0 = text.
struct ConditionShape {
  int64_t classes = 0, text_width = 0;
};

// heads.{i}.* over taps of a frozen network, and mapping.* for classes.
class ProjectedDiscriminator : public torch::nn::Module {
 public:
  ProjectedDiscriminator(const std::vector<int64_t>& channels, ConditionShape condition,
                         int64_t mapping_width);
  // taps[i] (B, channels[i], L_i) -> logits (B, sum of L_i): positions of tap 0, then of tap 1, ...
  at::Tensor forward(const std::vector<at::Tensor>& taps, const at::Tensor& conditions);

 private:
  ConditionShape condition_;
  std::shared_ptr<ClassMapping> mapping_;
  std::vector<std::shared_ptr<DiscriminatorHead>> heads_;
};

// Spectral-norm convolutions 4x4 with stride 2 until the side is below 8, width doubled each time up to 4 *
// width, one of 3x3, leaky ReLU 0.2 throughout; at each remaining position a logit cls(h) + <h, e(condition)>
// / sqrt(channels) (projection discriminator, Miyato and Koyama 2018). No normalisation over the batch: an
// image's logits do not depend on its batch mates.
class ConvDiscriminator : public torch::nn::Module {
 public:
  ConvDiscriminator(int64_t image_size, int64_t width, ConditionShape condition);
  // images (B, 3, S, S) in [0, 1] -> logits (B, positions).
  at::Tensor forward(const at::Tensor& images, const at::Tensor& conditions);

 private:
  ConditionShape condition_;
  std::vector<std::shared_ptr<SpectralConv>> convs_;
  std::shared_ptr<SpectralConv> cls_;
  at::Tensor embedding_;  // (classes or text_width, channels)
};

// mean softplus(-real) + mean softplus(fake), or mean relu(1 - real) + mean relu(1 + fake); 0-d.
at::Tensor discriminator_loss(const std::string& kind, const at::Tensor& real, const at::Tensor& fake);

}  // namespace adanat
