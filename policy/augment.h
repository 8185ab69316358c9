// Random differentiable changes to the images that a discriminator sees, real and generated alike, so that it
// does not learn small data sets by heart (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN
// Training", 2020).
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include "core/base/config.h"

namespace adanat {

struct DiffAugmentConfig {
  bool colour = false;
  double translation = 0.0;
  double cutout = 0.0;

  static constexpr auto fields() {
    using C = DiffAugmentConfig;
    return std::tuple{
        field("colour", &C::colour,
              "brightness (+-0.5), saturation (x0..2) and contrast (x0.5..1.5); paper: true"),
        field("translation", &C::translation,
              "largest shift as a share of the side, zeros move in, [0, 0.5]; paper: 0.125"),
        field("cutout", &C::cutout,
              "side of the square set to 0 as a share of the image's side, [0, 1); paper: 0.5"),
    };
  }
  bool any() const { return colour || translation > 0 || cutout > 0; }
  void validate() const;
  bool operator==(const DiffAugmentConfig&) const = default;
};

// images (B, 3, H, W) float in [0, 1] -> the same shape, dtype and device. Each image draws its own changes
// from `generator` (CPU); what is off draws nothing. Colours are not clamped (the gradient would end there):
// values lie
// in [-2, 3] at most with colour on, in [0, 1] without. Differentiable towards the images.
at::Tensor diff_augment(const at::Tensor& images, const DiffAugmentConfig& config, at::Generator& generator);

}  // namespace adanat
