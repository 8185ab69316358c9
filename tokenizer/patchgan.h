// The adversary of tokenizer training: a patch discriminator, hinge losses, and the adaptive weight.
// Source: docs/method.md section 2 (VQGAN, arXiv 2012.09841, section 3.1; PatchGAN: Isola et al. 2017).
#pragma once
#include "core/base/config.h"
#include "tokenizer/layers.h"

namespace adanat {

struct PatchGanConfig {
  double weight = 0.8;
  int64_t start = 0;
  int64_t width = 64;
  int64_t layers = 3;

  static constexpr auto fields() {
    using C = PatchGanConfig;
    return std::tuple{
        field("weight", &C::weight,
              "factor on the adaptive weight of the adversarial loss, >= 0; 0 = no discriminator"),
        field("start", &C::start, "first update with the adversarial loss, 0-based"),
        field("width", &C::width, "channels of the first convolution; doubled per layer, at most 8 times"),
        field("layers", &C::layers,
              "convolutions that halve the side, >= 1; a patch is 16, 34, 70, ... pixels wide"),
    };
  }
  void validate() const;
  bool operator==(const PatchGanConfig&) const = default;
};

// conv 4x4 stride 2, leaky ReLU 0.2; (layers-1) x [conv 4x4 stride 2, norm, leaky ReLU]; [conv 4x4, norm,
// leaky ReLU]; conv 4x4 to one logit per patch. GroupNorm instead of the usual batch norm: an image's logits
// do not depend on its batch mates, so real and fake images can share a forward pass, and there is no state
// besides the weights.
class PatchDiscriminatorImpl : public torch::nn::Module {
 public:
  explicit PatchDiscriminatorImpl(const PatchGanConfig& config);
  // (B, 3, S, S) in [0, 1] -> (B, 1, S/2^layers - 2, the same). InputError where nothing would be left.
  at::Tensor forward(const at::Tensor& images) const;

 private:
  std::vector<vqgan::Conv> convs_;
  std::vector<vqgan::Norm> norms_;  // norms_[i] follows convs_[i + 1]
};
TORCH_MODULE(PatchDiscriminator);

// 0.5 * (mean relu(1 - real) + mean relu(1 + fake)), 0-d.
at::Tensor hinge_discriminator_loss(const at::Tensor& real, const at::Tensor& fake);
// -mean(fake), 0-d.
at::Tensor hinge_generator_loss(const at::Tensor& fake);

// |grad_nll| / (|grad_gan| + 1e-4), clamped to [0, 1e4], times `weight`: the factor on the adversarial loss
// that makes it pull at the decoder's last weights as strongly as the other losses do. Gradients of the two
// losses there; 0-d, detached.
at::Tensor adaptive_weight(const at::Tensor& grad_nll, const at::Tensor& grad_gan, double weight);

}  // namespace adanat
