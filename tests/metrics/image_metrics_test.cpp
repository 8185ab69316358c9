#include "core/metrics/image_metrics.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "core/base/error.h"
#include "support/support.h"

namespace adanat {
namespace {

TEST(Psnr, KnownValues) {
  at::Tensor a = at::full({3, 3, 12, 12}, 0.5), b = a.clone();
  b[1] += 0.1;
  b[2] -= 0.5;
  const at::Tensor value = psnr(a, b);
  EXPECT_TRUE(std::isinf(value[0].item<double>()));
  EXPECT_NEAR(value[1].item<double>(), 20.0, 1e-4);
  EXPECT_NEAR(value[2].item<double>(), 20 * std::log10(2.0), 1e-9);
  EXPECT_THROW(psnr(a, b[0].unsqueeze(0)), RunError) << "shapes are not broadcast";
}

// The formula of the paper, one window at a time.
double plain_ssim(const at::Tensor& x, const at::Tensor& y) {
  const int64_t height = x.size(1), width = x.size(2);
  double sum = 0;
  int64_t windows = 0;
  const auto px = x.accessor<double, 3>(), py = y.accessor<double, 3>();
  double norm = 0;
  for (int i = -5; i <= 5; ++i)
    for (int j = -5; j <= 5; ++j) norm += std::exp(-(i * i + j * j) / 4.5);
  for (int64_t c = 0; c < x.size(0); ++c)
    for (int64_t top = 0; top + 11 <= height; ++top)
      for (int64_t left = 0; left + 11 <= width; ++left, ++windows) {
        double mx = 0, my = 0, vx = 0, vy = 0, vxy = 0;
        const auto walk = [&](auto visit) {
          for (int i = 0; i < 11; ++i)
            for (int j = 0; j < 11; ++j)
              visit(std::exp(-((i - 5) * (i - 5) + (j - 5) * (j - 5)) / 4.5) / norm, px[c][top + i][left + j],
                    py[c][top + i][left + j]);
        };
        walk([&](double w, double p, double q) { mx += w * p, my += w * q; });
        walk([&](double w, double p, double q) {
          vx += w * (p - mx) * (p - mx), vy += w * (q - my) * (q - my), vxy += w * (p - mx) * (q - my);
        });
        sum += (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4));
      }
  return sum / double(windows);
}

TEST(Ssim, AgainstThePlainFormula) {
  at::manual_seed(5);
  const at::Tensor a = at::rand({2, 3, 13, 16}, at::kDouble);
  const at::Tensor b = (a + 0.2 * at::rand({2, 3, 13, 16}, at::kDouble)).clamp(0, 1);
  const at::Tensor value = ssim(a, b);
  for (int i = 0; i < 2; ++i) EXPECT_NEAR(value[i].item<double>(), plain_ssim(a[i], b[i]), 1e-10);
  EXPECT_CLOSE(ssim(b, a), value, 1e-12);
}

TEST(Ssim, Ends) {
  at::manual_seed(6);
  const at::Tensor a = at::rand({1, 3, 16, 16});
  EXPECT_NEAR(ssim(a, a).item<double>(), 1.0, 1e-12);
  EXPECT_LT(ssim(a, 1 - a).item<double>(), 0);
  // Flat images: only the light term is left.
  EXPECT_NEAR(ssim(at::full({1, 1, 11, 11}, 0.5, at::kDouble), at::full({1, 1, 11, 11}, 0.25, at::kDouble))
                  .item<double>(),
              (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4), 1e-12);
  EXPECT_THROW(ssim(at::zeros({1, 3, 10, 16}), at::zeros({1, 3, 10, 16})), RunError);
}

TEST(CodeHistogram, UsageAndPerplexity) {
  CodeHistogram histogram(8);
  EXPECT_EQ(histogram.perplexity(), 0);
  EXPECT_EQ(histogram.usage(), 0);
  histogram.add(at::full({2, 2}, 3, at::kLong));
  EXPECT_NEAR(histogram.perplexity(), 1, 1e-12);
  EXPECT_EQ(histogram.usage(), 0.125);
  histogram.add(at::full({4}, 5, at::kLong));
  EXPECT_NEAR(histogram.perplexity(), 2, 1e-12);
  histogram.add(at::zeros({0}, at::kLong));
  EXPECT_EQ(histogram.counts().sum().item<int64_t>(), 8);
  CodeHistogram even(8);
  even.add(at::arange(8, at::kLong));
  EXPECT_NEAR(even.perplexity(), 8, 1e-12);
  EXPECT_EQ(even.usage(), 1);
  EXPECT_THROW(even.add(at::tensor({8}, at::kLong)), RunError);
  EXPECT_THROW(even.add(at::tensor({-1}, at::kLong)), RunError);
}

}  // namespace
}  // namespace adanat
