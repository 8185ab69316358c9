#include "tokenizer/patchgan.h"

#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/relu.h>

#include <algorithm>

namespace adanat {

void PatchGanConfig::validate() const {
  require(weight >= 0, "gan.weight", ">= 0", weight);
  require(start >= 0, "gan.start", ">= 0", start);
  require(width >= 1 && width <= 1024, "gan.width", "in 1..1024", width);
  require(layers >= 1 && layers <= 8, "gan.layers", "in 1..8", layers);
}

PatchDiscriminatorImpl::PatchDiscriminatorImpl(const PatchGanConfig& config) {
  int64_t in = 3;
  const auto add = [&](int64_t out, int64_t stride, bool bias) {
    const std::string index = std::to_string(convs_.size());
    convs_.push_back(register_module("conv" + index, vqgan::Conv(in, out, 4, bias, stride, 1)));
    in = out;
  };
  for (int64_t i = 0; i <= config.layers; ++i) {
    add(config.width << std::min<int64_t>(i, 3), i < config.layers ? 2 : 1, i == 0);
    if (i > 0) norms_.push_back(register_module("norm" + std::to_string(i), vqgan::Norm(in)));
  }
  add(1, 1, true);
}

at::Tensor PatchDiscriminatorImpl::forward(const at::Tensor& images) const {
  const int64_t halvings = int64_t(norms_.size());
  if (images.dim() != 4 || images.size(1) != 3 || std::min(images.size(2), images.size(3)) >> halvings < 3)
    throw InputError(cat("gan.layers = ", halvings, " needs images of at least ", 3 << halvings,
                         " pixels, got ", images.sizes()));
  at::Tensor h = at::leaky_relu(convs_[0]->forward(images * 2 - 1), 0.2);
  for (size_t i = 0; i < norms_.size(); ++i)
    h = at::leaky_relu(norms_[i]->forward(convs_[i + 1]->forward(h)), 0.2);
  return convs_.back()->forward(h);
}

at::Tensor hinge_discriminator_loss(const at::Tensor& real, const at::Tensor& fake) {
  return 0.5 * (at::relu(1 - real).mean() + at::relu(1 + fake).mean());
}

at::Tensor hinge_generator_loss(const at::Tensor& fake) {
  return -fake.mean();
}

at::Tensor adaptive_weight(const at::Tensor& grad_nll, const at::Tensor& grad_gan, double weight) {
  const at::Tensor ratio = at::linalg_vector_norm(grad_nll) / (at::linalg_vector_norm(grad_gan) + 1e-4);
  return ratio.clamp(0, 1e4).detach() * weight;
}

}  // namespace adanat
