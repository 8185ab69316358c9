#include "policy/augment.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/index.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>

#include <cmath>

#include "core/nn/device.h"

namespace adanat {

void DiffAugmentConfig::validate() const {
  require(translation >= 0 && translation <= 0.5, "augment.translation", "in [0, 0.5]", translation);
  require(cutout >= 0 && cutout < 1, "augment.cutout", "in [0, 1)", cutout);
}

at::Tensor diff_augment(const at::Tensor& images, const DiffAugmentConfig& config, at::Generator& generator) {
  const int64_t b = images.size(0), height = images.size(2), width = images.size(3);
  const auto uniform = [&] {
    return sent_to(images.device(), at::rand({b, 1, 1, 1}, generator, at::kFloat)).to(images.options());
  };
  const auto integer = [&](int64_t low, int64_t high) {  // high is included
    return sent_to(images.device(), at::randint(low, high + 1, {b, 1, 1}, generator, at::kLong));
  };
  at::Tensor x = images;
  if (config.colour) {
    x = x + (uniform() - 0.5);
    const at::Tensor grey = x.mean(1, /*keepdim=*/true);
    x = (x - grey) * (uniform() * 2) + grey;
    const at::Tensor mean = x.mean({1, 2, 3}, /*keepdim=*/true);
    x = (x - mean) * (uniform() + 0.5) + mean;
  }
  const at::Tensor rows = at::arange(height, images.options().dtype(at::kLong)).view({1, height, 1});
  const at::Tensor columns = at::arange(width, images.options().dtype(at::kLong)).view({1, 1, width});
  if (config.translation > 0) {
    const int64_t most_y = std::llround(double(height) * config.translation);
    const int64_t most_x = std::llround(double(width) * config.translation);
    // A border of one zero on each side stands for everything outside.
    const at::Tensor y = (rows + integer(-most_y, most_y) + 1).clamp(0, height + 1);
    const at::Tensor z = (columns + integer(-most_x, most_x) + 1).clamp(0, width + 1);
    const at::Tensor sample = at::arange(b, rows.options()).view({b, 1, 1});
    const at::Tensor padded = at::pad(x, {1, 1, 1, 1}).permute({0, 2, 3, 1});
    x = at::index(padded, {sample, y, z}).permute({0, 3, 1, 2}).contiguous();
  }
  if (config.cutout > 0) {
    const int64_t tall = std::llround(double(height) * config.cutout);
    const int64_t wide = std::llround(double(width) * config.cutout);
    // The square's centre lies anywhere in the image: at the border a part of the square is outside.
    const at::Tensor top = integer(0, height - tall % 2) - tall / 2;
    const at::Tensor left = integer(0, width - wide % 2) - wide / 2;
    const at::Tensor hidden = (rows >= top)
                                  .logical_and(rows < top + tall)
                                  .logical_and((columns >= left).logical_and(columns < left + wide));
    x = x.masked_fill(hidden.unsqueeze(1), 0);
  }
  return x;
}

}  // namespace adanat
