#include "core/metrics/image_metrics.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "core/base/error.h"

namespace adanat {
namespace {

void check_pair(const char* what, const at::Tensor& a, const at::Tensor& b) {
  if (a.dim() != 4 || a.sizes() != b.sizes())
    throw RunError(
        cat(what, ": wanted two batches of images of one shape, got ", a.sizes(), " and ", b.sizes()));
}

}  // namespace

at::Tensor psnr(const at::Tensor& a, const at::Tensor& b) {
  check_pair("psnr", a, b);
  const at::Tensor square =
      (a.detach().to(at::kDouble) - b.detach().to(at::kDouble)).square().mean({1, 2, 3});
  return square.log10() * -10;
}

at::Tensor ssim(const at::Tensor& a, const at::Tensor& b) {
  check_pair("ssim", a, b);
  const int64_t height = a.size(2), width = a.size(3);
  if (height < 11 || width < 11)
    throw RunError(cat("ssim: images must be at least 11x11, got ", width, "x", height));
  const auto planes = [&](const at::Tensor& x) {
    return x.detach().to(at::kDouble).reshape({a.size(0) * a.size(1), 1, height, width});
  };
  at::Tensor line = at::arange(11, a.options().dtype(at::kDouble)) - 5;
  line = (line.square() / (-2 * 1.5 * 1.5)).exp();
  line = line / line.sum();
  // The window is an outer product: two passes of 11 instead of one of 121.
  const auto blur = [&](const at::Tensor& x) {
    return at::conv2d(at::conv2d(x, line.view({1, 1, 11, 1})), line.view({1, 1, 1, 11}));
  };
  const double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
  const at::Tensor x = planes(a), y = planes(b), mx = blur(x), my = blur(y);
  const at::Tensor vx = blur(x * x) - mx * mx, vy = blur(y * y) - my * my, vxy = blur(x * y) - mx * my;
  const at::Tensor map = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2));
  return map.mean({1, 2, 3}).view({a.size(0), a.size(1)}).mean(1);
}

CodeHistogram::CodeHistogram(int64_t codes) : counts_(at::zeros({codes}, at::kLong)) {}

void CodeHistogram::add(const at::Tensor& ids) {
  if (ids.numel() == 0) return;
  const at::Tensor flat = ids.detach().to(at::kCPU).flatten();
  const int64_t low = flat.min().item<int64_t>(), high = flat.max().item<int64_t>();
  if (low < 0 || high >= counts_.size(0))
    throw RunError(
        cat("code histogram: code ", low < 0 ? low : high, " is outside 0..", counts_.size(0) - 1));
  counts_ += at::bincount(flat, {}, counts_.size(0));
}

double CodeHistogram::usage() const {
  return double(counts_.gt(0).sum().item<int64_t>()) / double(counts_.size(0));
}

double CodeHistogram::perplexity() const {
  const double total = double(counts_.sum().item<int64_t>());
  if (total == 0) return 0;
  double entropy = 0;
  for (int64_t i = 0; i < counts_.size(0); ++i) {
    const double share = double(counts_.const_data_ptr<int64_t>()[i]) / total;
    if (share > 0) entropy -= share * std::log(share);
  }
  return std::exp(entropy);
}

}  // namespace adanat
