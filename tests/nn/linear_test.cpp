// The Linear layer that chooses its library, and its int8 form against sums in double.
#include "core/nn/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/linear.h>

#include "core/base/error.h"
#include "core/nn/device.h"
#include "support/support.h"

namespace adanat {
namespace {

torch::nn::Linear filled(int64_t in, int64_t out, bool bias = true) {
  torch::nn::Linear layer(torch::nn::LinearOptions(in, out).bias(bias));
  testing::fill_procedural(*layer);
  return layer;
}

const std::pair<int64_t, int64_t> kSizes[] = {{1, 1}, {31, 33}, {64, 192}, {257, 31}, {1023, 257}};

TEST(Linear, IsTheProduct) {
  const at::NoGradGuard no_grad;
  for (const auto& [in, out] : kSizes) {
    for (const int64_t rows : {0, 1, 33, 257}) {
      for (const bool bias : {true, false}) {
        torch::nn::Linear layer = filled(in, out, bias);
        const at::Tensor x = at::randn({rows, in});
        at::Tensor y = at::matmul(x.to(at::kDouble), layer->weight.to(at::kDouble).t());
        if (bias) y = y + layer->bias;
        // Roundings of `in` float products.
        EXPECT_CLOSE(linear(*layer, x), y.to(at::kFloat), 2e-6 * double(in));
        EXPECT_CLOSE(linear_gelu(*layer, x), at::gelu(y).to(at::kFloat), 2e-6 * double(in));
        EXPECT_CLOSE(linear(x, layer->weight, layer->bias), y.to(at::kFloat), 2e-6 * double(in));
      }
    }
  }
}

TEST(Linear, TakesAnyRankAndStride) {
  const at::NoGradGuard no_grad;
  torch::nn::Linear layer = filled(32, 48);
  const at::Tensor x = at::randn({3, 5, 64}).narrow(2, 16, 32), flat = x.reshape({15, 32});
  EXPECT_CLOSE(linear(*layer, x).view({15, 48}), linear(*layer, flat), 1e-6);
  EXPECT_CLOSE(linear(*layer, at::randn({32, 7}).t()), at::zeros({7, 48}),
               1e3);  // shape only: no copy is asked for
  if (!int8_supported()) return;
  EXPECT_EQ(quantize_linears(*layer), 1);
  EXPECT_TRUE(at::equal(linear(*layer, x).view({15, 48}), linear(*layer, flat)));
}

// Computes with one library for a scope.
class Library {
 public:
  explicit Library(const char* name) : before_(float32_library()) { use_float32_library(name); }
  ~Library() { use_float32_library(before_); }

 private:
  std::string before_;
};

// {result, gradients of x, weight and bias} of sum(weights * gelu(linear)).
std::vector<at::Tensor> with_gradients(torch::nn::Linear layer, const at::Tensor& values,
                                       const at::Tensor& weights, bool ours) {
  layer->zero_grad();
  const at::Tensor x = values.detach().clone().requires_grad_();
  const at::Tensor y = ours ? linear_gelu(*layer, x) : at::gelu(at::linear(x, layer->weight, layer->bias));
  (y * weights).sum().backward();
  std::vector<at::Tensor> out{y.detach(), x.grad(), layer->weight.grad().clone()};
  if (layer->bias.defined()) out.push_back(layer->bias.grad().clone());
  return out;
}

TEST(Linear, HasTheGradientsOfTorch) {
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{64, 96}, {96, 33}, {31, 257}, {1, 1}}) {
    for (const bool bias : {true, false}) {
      torch::nn::Linear layer = filled(in, out, bias);
      // The last one is what sum() sends back: one number for all, stored once.
      const at::Tensor x = at::randn({3, 13, in});
      for (const at::Tensor& weights : {at::randn({3, 13, out}), at::ones({1}).expand({3, 13, out})}) {
        const auto wanted = with_gradients(layer, x, weights, false);
        {
          const Library mkl("MKL");
          const auto made = with_gradients(layer, x, weights, true);
          for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(at::equal(made[i], wanted[i])) << i;
        }
        const Library onednn("oneDNN");
        const auto made = with_gradients(layer, x, weights, true);
        // Roundings of as many float products as each sum has.
        for (size_t i = 0; i < wanted.size(); ++i)
          EXPECT_CLOSE(made[i], wanted[i], 2e-6 * double(std::max<int64_t>({in, out, 39})));
      }
    }
  }
}

// sum() sends back one number for all, a column sum one row for all: gradients whose elements share memory.
TEST(Linear, TakesGradientsWhoseElementsShareMemory) {
  for (const auto& [in, out] :
       {std::pair<int64_t, int64_t>{64, 96}, {96, 64}, {31, 257}, {1, 33}, {33, 1}, {1, 1}}) {
    torch::nn::Linear layer = filled(in, out);
    const at::Tensor values = at::randn({39, in});
    for (const at::Tensor& gradient : {at::full({1}, 2.0), at::randn({39, 1}), at::randn({1, out})}) {
      const auto made = [&](const char* name) {
        const Library library(name);
        const at::Tensor x = values.clone().requires_grad_();
        return torch::autograd::grad({linear(*layer, x)}, {x, layer->weight, layer->bias},
                                     {gradient.expand({39, out})});
      };
      const auto wanted = made("MKL"), ours = made("oneDNN");
      // Roundings of as many float products as each sum has.
      for (size_t i = 0; i < wanted.size(); ++i)
        EXPECT_CLOSE(ours[i], wanted[i], 2e-6 * double(std::max<int64_t>({in, out, 39})));
    }
  }
}

// Frozen layers in a network that learns, and inputs that nothing is learned of.
TEST(Linear, GradientsOnlyWhereTheyAreWanted) {
  const Library onednn("oneDNN");
  torch::nn::Linear layer = filled(64, 96);
  layer->weight.set_requires_grad(false);
  layer->bias.set_requires_grad(false);
  const at::Tensor x = at::randn({8, 64}).requires_grad_();
  linear(*layer, x).sum().backward();
  EXPECT_CLOSE(x.grad(), layer->weight.sum(0).expand({8, 64}), 1e-4);  // sums of 96 floats
  EXPECT_FALSE(layer->weight.grad().defined());
  EXPECT_FALSE(linear(*layer, at::randn({8, 64})).requires_grad());
}

TEST(Linear, RefusesGradientsOfGradients) {
  const Library onednn("oneDNN");
  const torch::nn::Linear layer = filled(8, 8);
  const at::Tensor x = at::randn({2, 8}).requires_grad_();
  EXPECT_THROW(torch::autograd::grad({linear(*layer, x).sum()}, {x}, {}, std::nullopt, /*create_graph=*/true),
               c10::Error);
}

TEST(Linear, KnowsItsLibraries) {
  EXPECT_THROW(use_float32_library("BLAS"), InputError);
  const std::string before = float32_library();
  for (const char* name : {"MKL", "oneDNN"}) {
    const Library chosen(name);
    EXPECT_STREQ(float32_library(), name);
  }
  EXPECT_EQ(float32_library(), before);
}

TEST(Linear, Bfloat16StaysBfloat16) {
  const at::NoGradGuard no_grad;
  torch::nn::Linear layer = filled(64, 96);
  const at::Tensor x = at::randn({40, 64}), y = at::gelu(linear(*layer, x));
  layer->to(at::kBFloat16);
  const at::Tensor made = linear_gelu(*layer, x.to(at::kBFloat16));
  EXPECT_EQ(made.scalar_type(), at::kBFloat16);
  // 8 bits of input, weight and result.
  EXPECT_CLOSE(made.to(at::kFloat), y, 0.02 * std::max(1.0, y.abs().max().item<double>()));
}

TEST(Int8Linear, IsTheSumOfRoundedProducts) {
  if (!int8_supported()) GTEST_SKIP() << "no int8 products on this CPU";
  for (const auto& [in, out] : kSizes) {
    for (const int64_t rows : {0, 1, 33, 257}) {
      torch::nn::Linear layer = filled(in, out);
      const at::Tensor w = layer->weight.detach().to(at::kDouble), b = layer->bias.detach().to(at::kDouble);
      const at::Tensor x = at::randn({rows, in}) * 3;
      const auto rounded = [](const at::Tensor& v) {  // by row
        const at::Tensor step = v.abs().amax({1}, true).clamp_min(1e-30) / 127;
        return (v / step).round() * step;
      };
      EXPECT_EQ(quantize_linears(*layer), 1);
      EXPECT_EQ(layer->weight.scalar_type(), at::kChar);
      EXPECT_EQ(quantize_linears(*layer), 0);  // it is already
      const at::Tensor wanted = rows == 0 ? at::zeros({0, out}, at::kDouble)
                                          : at::matmul(rounded(x.to(at::kDouble)), rounded(w).t()) + b;
      const at::Tensor made = linear(*layer, x);
      // A value in the middle of two integers may be rounded either way: one step of each factor.
      const double step = rows == 0 ? 0 : x.abs().max().item<double>() / 127 * w.abs().max().item<double>();
      EXPECT_CLOSE(made, wanted.to(at::kFloat), 2 * step + 1e-5);
      EXPECT_CLOSE(linear_gelu(*layer, x), at::gelu(made),
                   1e-6 * std::max(1.0, wanted.numel() == 0 ? 0 : wanted.abs().max().item<double>()));
    }
  }
}

// Bit for bit: an image must not depend on what else is in its batch.
TEST(Int8Linear, ARowDoesNotSeeItsNeighbours) {
  if (!int8_supported()) GTEST_SKIP() << "no int8 products on this CPU";
  torch::nn::Linear layer = filled(257, 192);
  EXPECT_EQ(quantize_linears(*layer), 1);
  at::Tensor x = at::randn({65, 257});
  x[7] *= 1000;
  const at::Tensor together = linear_gelu(*layer, x);
  for (const int64_t row : {0, 7, 64})
    EXPECT_TRUE(at::equal(linear_gelu(*layer, x.narrow(0, row, 1)), together.narrow(0, row, 1))) << row;
}

TEST(Int8Linear, ANanIsSeen) {
  if (!int8_supported()) GTEST_SKIP() << "no int8 products on this CPU";
  torch::nn::Linear layer = filled(33, 31);
  EXPECT_EQ(quantize_linears(*layer), 1);
  at::Tensor x = at::randn({4, 33});
  x[2][5] = NAN;
  const at::Tensor bad = linear(*layer, x).isnan();
  EXPECT_TRUE(bad[2].all().item<bool>());
  EXPECT_EQ(bad.sum().item<int64_t>(), 31);
}

TEST(Int8Linear, RefusesOtherInputs) {
  if (!int8_supported()) GTEST_SKIP() << "no int8 products on this CPU";
  torch::nn::Linear layer = filled(32, 16);
  EXPECT_EQ(quantize_linears(*layer), 1);
  EXPECT_THROW(linear(*layer, at::randn({4, 32}).to(at::kBFloat16)), c10::Error);
  EXPECT_THROW(linear(*layer, at::randn({4, 31})), c10::Error);
}

TEST(Int8Dtype, IsForCpusThatHaveIt) {
  if (int8_supported()) {
    EXPECT_EQ(parse_dtype("int8", at::kCPU), at::kChar);
  } else {
    EXPECT_THROW(parse_dtype("int8", at::kCPU), InputError);
  }
  EXPECT_THROW(parse_dtype("int8", at::Device(at::kCUDA, 0)), InputError);
  EXPECT_THROW(parse_dtype("int4", at::kCPU), InputError);
}

}  // namespace
}  // namespace adanat
