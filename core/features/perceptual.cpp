#include "core/features/perceptual.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "core/base/error.h"

namespace adanat {
namespace {

at::Tensor channel_unit(const at::Tensor& x) {
  return x * (x.square().sum(1, /*keepdim=*/true) + 1e-10).rsqrt();
}

}  // namespace

at::Tensor perceptual_distance(FeatureNet& net, const at::Tensor& images, const at::Tensor& targets) {
  if (images.sizes() != targets.sizes())
    throw RunError(cat("perceptual_distance: images ", images.sizes(), " and targets ", targets.sizes(),
                       " differ in shape"));
  std::vector<std::string> taps;
  for (const std::string& tap : net.taps())
    if (tap != "pool" && tap != "logits") taps.push_back(tap);
  const std::vector<at::Tensor> a = net.forward(images, taps);
  const std::vector<at::Tensor> b =
      net.forward(targets, taps);  // weights are frozen: no graph unless targets want one
  at::Tensor total;
  for (size_t i = 0; i < taps.size(); ++i) {
    const at::Tensor square = (channel_unit(a[i]) - channel_unit(b[i])).square();  // (B, C, h, w)
    const at::Tensor weight = net.channel_weight(taps[i]);
    const at::Tensor term = weight.defined() ? (square * weight.view({1, -1, 1, 1})).sum(1) : square.mean(1);
    const at::Tensor mean = term.mean({1, 2});
    total = total.defined() ? total + mean : mean;
  }
  return total;
}

}  // namespace adanat
