// How different two images look to a network, differentiable: the perceptual loss of the tokenizer.
#pragma once
#include "core/features/feature_net.h"

namespace adanat {

// images, targets (B, 3, H, W) float in [0, 1] -> (B), >= 0, 0 for equal images.
//
//   d = sum over taps  mean over space  sum_c  w_c (x_c - y_c)^2,    x, y: features divided by their L2 norm
//   over channels
//
// w = the network's channel weights (the whole is LPIPS then), else 1/C for all (at most 4/C per tap). Every
// spatial tap of the network takes part; `pool` and `logits` do not. Gradients flow to `images`, and to
// `targets` where they want one. Source: Zhang et al., CVPR 2018; PerceptualSimilarity lpips/lpips.py (norm +
// 1e-10), whose infinite slope at all-zero features is avoided here: sqrt(sum x^2 + 1e-10).
at::Tensor perceptual_distance(FeatureNet& net, const at::Tensor& images, const at::Tensor& targets);

}  // namespace adanat
