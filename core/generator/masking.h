// Which tokens a training example hides (docs/method.md section 3).
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace adanat {

// Mask ratios (count) f32 in (0, 1]. Laws: "beta" Beta(a, b) (AutoNAT: 12, 3); "cosine" cos(pi/2 * U(0,1))
// (MaskGIT); "mixed" draws each with probability one half.
at::Tensor draw_mask_ratios(const std::string& law, double a, double b, int64_t count,
                            at::Generator generator);

// Hidden positions (B, N) bool: k = max(1, round-half-to-even(N * ratio)) per row; position j is hidden iff
// argsort(rand)[j] < k, rand (B, N) uniform draws. (The argsort index itself: any uniform permutation serves,
// this one is the reference's.)
at::Tensor hide_positions(const at::Tensor& ratios, const at::Tensor& rand);

}  // namespace adanat
