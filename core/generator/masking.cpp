#include "core/generator/masking.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_standard_gamma.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/where.h>

#include <numbers>

namespace adanat {

at::Tensor draw_mask_ratios(const std::string& law, double a, double b, int64_t count,
                            at::Generator generator) {
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const auto beta = [&] {
    const at::Tensor x = at::_standard_gamma(at::full({count}, a, options), generator);
    const at::Tensor y = at::_standard_gamma(at::full({count}, b, options), generator);
    return x / (x + y);
  };
  const auto cosine = [&] { return (at::rand({count}, generator, options) * (std::numbers::pi / 2)).cos(); };
  if (law == "beta") return beta();
  if (law == "cosine") return cosine();
  const at::Tensor first = beta(), second = cosine();
  return at::where(at::rand({count}, generator, options) < 0.5, first, second);
}

at::Tensor hide_positions(const at::Tensor& ratios, const at::Tensor& rand) {
  const int64_t n = rand.size(1);
  const at::Tensor count = (ratios * double(n)).round().clamp_min(1).unsqueeze(1);  // round() is half to even
  return at::argsort(rand, /*dim=*/1, /*descending=*/false) < count;
}

}  // namespace adanat
