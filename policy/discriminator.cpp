#include "policy/discriminator.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace adanat {
namespace {

constexpr double kSlope = 0.2, kNormEpsilon = 1e-5, kUnitEpsilon = 1e-12;
constexpr int64_t kVirtualBatch = 8, kConditionChannels = 64, kMappingLayers = 8;
constexpr int kStartIterations = 15;  // as torch.nn.utils.parametrizations.spectral_norm

// x / |x| over the last dimension.
at::Tensor unit(const at::Tensor& x) {
  return x / at::linalg_vector_norm(x, 2, {-1}, /*keepdim=*/true).clamp_min(kUnitEpsilon);
}

}  // namespace

SpectralConv::SpectralConv(int64_t in, int64_t out, std::vector<int64_t> kernel, int64_t stride)
    : kernel_(std::move(kernel)), stride_(stride) {
  std::vector<int64_t> shape{out, in};
  shape.insert(shape.end(), kernel_.begin(), kernel_.end());
  // torch.nn.Conv's own start: uniform with variance 1 / (3 fan_in), bias alike.
  int64_t fan_in = in;
  for (const int64_t side : kernel_) fan_in *= side;
  const double bound = 1 / std::sqrt(double(fan_in));
  weight_ = register_parameter("weight_orig", at::empty(shape).uniform_(-bound, bound));
  bias_ = register_parameter("bias", at::empty({out}).uniform_(-bound, bound));
  u_ = register_buffer("weight_u", unit(at::randn({out})));
  v_ = register_buffer("weight_v", unit(at::randn({fan_in})));
  for (int i = 0; i < kStartIterations; ++i) iterate();
}

void SpectralConv::iterate() {
  const at::NoGradGuard no_grad;
  const at::Tensor matrix = weight_.flatten(1);
  v_.copy_(unit(at::mv(matrix.t(), u_)));
  u_.copy_(unit(at::mv(matrix, v_)));
}

at::Tensor SpectralConv::weight() {
  const at::Tensor matrix = weight_.flatten(1);
  if (!is_training()) return weight_ / (u_ * at::mv(matrix, v_)).sum();
  iterate();
  // Copies: the backward pass reads this forward's vectors, whatever later forwards make of them.
  return weight_ / (u_.clone() * at::mv(matrix, v_.clone())).sum();
}

at::Tensor SpectralConv::forward(const at::Tensor& x) {
  if (kernel_.size() == 1) {
    const int64_t padding = kernel_[0] / 2;
    return at::conv1d(padding > 0 ? at::pad(x, {padding, padding}, "circular") : x, weight(), bias_);
  }
  const int64_t padding = (kernel_[0] - 1) / 2;
  return at::conv2d(x, weight(), bias_, at::IntArrayRef({stride_, stride_}),
                    at::IntArrayRef({padding, padding}));
}

BatchNormLocal::BatchNormLocal(int64_t channels) {
  weight_ = register_parameter("weight", at::ones({channels}));
  bias_ = register_parameter("bias", at::zeros({channels}));
}

int64_t BatchNormLocal::groups(int64_t batch) {
  int64_t count = (batch + kVirtualBatch - 1) / kVirtualBatch;
  while (count > 1 && batch % count != 0) --count;
  return count;
}

at::Tensor BatchNormLocal::forward(const at::Tensor& x) const {
  const int64_t b = x.size(0), c = x.size(1), count = groups(b);
  const at::Tensor grouped = x.reshape({count, b / count, c, x.size(2)});
  const auto [variance, mean] =
      at::var_mean(grouped, at::IntArrayRef({1, 3}), /*correction=*/0, /*keepdim=*/true);
  const at::Tensor normal = (grouped - mean) / (variance + kNormEpsilon).sqrt();
  return normal.view(x.sizes()) * weight_.view({1, c, 1}) + bias_.view({1, c, 1});
}

EqualLinear::EqualLinear(int64_t in, int64_t out, double multiplier, bool activate)
    : multiplier_(multiplier), activate_(activate) {
  weight_ = register_parameter("weight", at::randn({out, in}) / multiplier);
  bias_ = register_parameter("bias", at::zeros({out}));
}

at::Tensor EqualLinear::finish(const at::Tensor& x) const {
  const at::Tensor y = x * (multiplier_ / std::sqrt(double(weight_.size(1)))) + bias_ * multiplier_;
  return activate_ ? at::leaky_relu(y, kSlope) * std::numbers::sqrt2 : y;
}

at::Tensor EqualLinear::forward(const at::Tensor& x) const {
  return finish(at::linear(x, weight_));
}

at::Tensor EqualLinear::of_one_hot(const at::Tensor& ids) const {
  return finish(at::index_select(weight_.t(), 0, ids));
}

ClassMapping::ClassMapping(int64_t classes, int64_t width) {
  embed_ = register_module("embed", std::make_shared<EqualLinear>(classes, width, 1.0, false));
  for (int64_t i = 0; i < kMappingLayers; ++i)
    layers_.push_back(register_module(cat("fc", i), std::make_shared<EqualLinear>(width, width, 0.01, true)));
}

at::Tensor ClassMapping::forward(const at::Tensor& ids) const {
  at::Tensor x = embed_->of_one_hot(ids);
  x = x * (x.square().mean(1, /*keepdim=*/true) + 1e-8).rsqrt();
  for (const auto& layer : layers_) x = layer->forward(x);
  return x;
}

DiscriminatorHead::DiscriminatorHead(int64_t channels, int64_t condition_width) {
  auto main = register_module("main", std::make_shared<torch::nn::Module>());
  auto residual = std::make_shared<torch::nn::Module>();
  const std::shared_ptr<torch::nn::Module> holders[2] = {
      main->register_module("0", std::make_shared<torch::nn::Module>()),
      main->register_module("1", residual)->register_module("fn", std::make_shared<torch::nn::Module>())};
  for (size_t i = 0; i < 2; ++i) {
    convs_[i] = holders[i]->register_module(
        "0", std::make_shared<SpectralConv>(channels, channels, std::vector<int64_t>{i == 0 ? 1 : 9}));
    norms_[i] = holders[i]->register_module("1", std::make_shared<BatchNormLocal>(channels));
  }
  if (condition_width > 0)
    cmapper_ = register_module(
        "cmapper", std::make_shared<EqualLinear>(condition_width, kConditionChannels, 1.0, false));
  cls_ = register_module(
      "cls", std::make_shared<SpectralConv>(channels, condition_width > 0 ? kConditionChannels : 1,
                                            std::vector<int64_t>{1}));
}

at::Tensor DiscriminatorHead::block(size_t index, const at::Tensor& x) {
  return at::leaky_relu(norms_[index]->forward(convs_[index]->forward(x)), kSlope);
}

at::Tensor DiscriminatorHead::forward(const at::Tensor& x, const at::Tensor& c) {
  at::Tensor h = block(0, x);
  h = (h + block(1, h)) / std::numbers::sqrt2;
  h = cls_->forward(h);
  if (!cmapper_) return h;
  return (h * cmapper_->forward(c).unsqueeze(2)).sum(1, /*keepdim=*/true) /
         std::sqrt(double(kConditionChannels));
}

ProjectedDiscriminator::ProjectedDiscriminator(const std::vector<int64_t>& channels, ConditionShape condition,
                                               int64_t mapping_width)
    : condition_(condition) {
  const int64_t width = condition.text_width > 0 ? condition.text_width : mapping_width;
  if (condition.text_width == 0)
    mapping_ = register_module("mapping", std::make_shared<ClassMapping>(condition.classes, mapping_width));
  auto holder = register_module("heads", std::make_shared<torch::nn::Module>());
  for (size_t i = 0; i < channels.size(); ++i)
    heads_.push_back(
        holder->register_module(std::to_string(i), std::make_shared<DiscriminatorHead>(channels[i], width)));
}

at::Tensor ProjectedDiscriminator::forward(const std::vector<at::Tensor>& taps,
                                           const at::Tensor& conditions) {
  const at::Tensor c = mapping_ ? mapping_->forward(conditions) : unit(conditions);
  std::vector<at::Tensor> logits;
  for (size_t i = 0; i < heads_.size(); ++i) logits.push_back(heads_[i]->forward(taps[i], c).flatten(1));
  return at::cat(logits, 1);
}

ConvDiscriminator::ConvDiscriminator(int64_t image_size, int64_t width, ConditionShape condition)
    : condition_(condition) {
  int64_t in = 3, out = width;
  const auto add = [&](int64_t kernel, int64_t stride) {
    convs_.push_back(
        register_module(cat("conv", convs_.size()),
                        std::make_shared<SpectralConv>(in, out, std::vector<int64_t>(2, kernel), stride)));
    in = out;
  };
  for (int64_t side = image_size; side >= 8; side /= 2) {
    add(4, 2);
    out = std::min(2 * out, 4 * width);
  }
  out = in;
  add(3, 1);
  cls_ = register_module("cls", std::make_shared<SpectralConv>(in, 1, std::vector<int64_t>(2, 1)));
  const int64_t rows = condition.text_width > 0 ? condition.text_width : condition.classes;
  embedding_ = register_parameter("embedding", at::randn({rows, in}));
}

at::Tensor ConvDiscriminator::forward(const at::Tensor& images, const at::Tensor& conditions) {
  at::Tensor h = images * 2 - 1;
  for (const auto& conv : convs_) h = at::leaky_relu(conv->forward(h), kSlope);
  const at::Tensor e = condition_.text_width > 0 ? unit(conditions).matmul(embedding_)
                                                 : at::index_select(embedding_, 0, conditions);
  const at::Tensor wanted = (h * e.unsqueeze(2).unsqueeze(3)).sum(1) / std::sqrt(double(h.size(1)));
  return (cls_->forward(h).squeeze(1) + wanted).flatten(1);
}

at::Tensor discriminator_loss(const std::string& kind, const at::Tensor& real, const at::Tensor& fake) {
  if (kind == "hinge") return at::relu(1 - real).mean() + at::relu(1 + fake).mean();
  return at::softplus(-real).mean() + at::softplus(fake).mean();
}

}  // namespace adanat
