#include "policy/network.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>

#include <cmath>

namespace adanat {
namespace nn = torch::nn;
namespace {

constexpr int64_t kSinusoids = 256;
constexpr double kLongestPeriod = 10000;
constexpr double kNormEps = 1e-6;

nn::Linear linear(int64_t in, int64_t out) {
  nn::Linear layer(in, out);
  nn::init::xavier_uniform_(layer->weight);
  nn::init::zeros_(layer->bias);
  return layer;
}

nn::Linear zero_linear(int64_t in, int64_t out) {
  nn::Linear layer(in, out);
  nn::init::zeros_(layer->weight);
  nn::init::zeros_(layer->bias);
  return layer;
}

// LN(x) without weights, times (1 + scale), plus shift. x (B, ..., width); terms (B or 1, 2 width).
at::Tensor adaln(const at::Tensor& x, const at::Tensor& terms) {
  const int64_t width = x.size(-1);
  at::Tensor shift = terms.narrow(1, 0, width), scale = terms.narrow(1, width, width);
  if (x.dim() == 3) shift = shift.unsqueeze(1), scale = scale.unsqueeze(1);
  return at::layer_norm(x, {width}, {}, {}, kNormEps) * (1 + scale) + shift;
}

}  // namespace

void PolicyNetworkConfig::validate() const {
  require(input == "features" || input == "tokens", "input", "features or tokens", input);
  require(input_width >= 1 && input_width <= 65536, "input_width", "1..65536", input_width);
  require(codes >= 1 && codes <= (1 << 24), "codes", "1..16777216", codes);
  require(grid_height >= 1 && grid_height <= 1024, "grid_height", "1..1024", grid_height);
  require(grid_width >= 1 && grid_width <= 1024, "grid_width", "1..1024", grid_width);
  require(hidden >= 1 && hidden <= 8192, "hidden", "1..8192", hidden);
  require(channels >= 1 && channels <= 8192, "channels", "1..8192", channels);
  require(mlp >= 1 && mlp <= 65536, "mlp", "1..65536", mlp);
  require(shared_steps >= 0 && shared_steps <= 1000, "shared_steps", "0..1000", shared_steps);
  require(flat() * mlp <= (int64_t(1) << 31), "channels", "small enough for flat * mlp <= 2^31", channels);
}

StepTerms StepTerms::rows(const at::Tensor& index) const {
  const auto pick = [&](const at::Tensor& x) { return x.defined() ? x.index_select(0, index) : x; };
  return {pick(adaln1), pick(adaln2), pick(adaln3), pick(outputs)};
}

StepTerms StepTerms::row(int64_t i) const {
  const auto pick = [&](const at::Tensor& x) { return x.defined() ? x.narrow(0, i, 1) : x; };
  return {pick(adaln1), pick(adaln2), pick(adaln3), pick(outputs)};
}

at::Tensor step_sinusoids(const at::Tensor& t) {
  const int64_t half = kSinusoids / 2;
  const at::Tensor frequency =
      at::arange(half, t.options().dtype(at::kFloat)).mul(-std::log(kLongestPeriod) / double(half)).exp();
  const at::Tensor angle = t.to(at::kFloat).unsqueeze(1) * frequency;
  return at::cat({angle.cos(), angle.sin()}, 1);
}

StepEmbedderImpl::StepEmbedderImpl(int64_t hidden) {
  nn::Linear first(kSinusoids, hidden), second(hidden, hidden);
  for (const auto& layer : {first, second}) {
    nn::init::normal_(layer->weight, 0, 0.02);
    nn::init::zeros_(layer->bias);
  }
  mlp_ = register_module("mlp", nn::Sequential(first, nn::SiLU(), second));
}

at::Tensor StepEmbedderImpl::forward(const at::Tensor& t) {
  return mlp_->forward(step_sinusoids(t));
}

ModulationImpl::ModulationImpl(int64_t hidden, int64_t width) {
  adaLN_modulation_ =
      register_module("adaLN_modulation", nn::Sequential(nn::SiLU(), zero_linear(hidden, 2 * width)));
}

at::Tensor ModulationImpl::forward(const at::Tensor& condition) {
  return adaLN_modulation_->forward(condition);
}

PolicyNetworkImpl::PolicyNetworkImpl(PolicyNetworkConfig config, int64_t outputs)
    : config_(std::move(config)) {
  config_.validate();
  if (config_.shared()) {
    table_ = register_parameter("table", at::zeros({config_.shared_steps, outputs}));
    return;
  }
  const int64_t hidden = config_.hidden;
  if (config_.input == "tokens") {
    token_embedder_ = register_module("token_embedder", nn::Embedding(config_.codes + 1, hidden));
  } else if (config_.input_width != hidden) {
    x_embedder_ = register_module("x_embedder", linear(config_.input_width, hidden));
  }
  t_embedder_ = register_module("t_embedder", StepEmbedder(hidden));
  if (config_.see_steps) steps_embedder_ = register_module("steps_embedder", StepEmbedder(hidden));
  adaLN1_ = register_module("adaLN1", Modulation(hidden, hidden));
  dw_conv_ = register_module(
      "dw_conv", nn::Conv2d(nn::Conv2dOptions(hidden, hidden, 3).stride(2).padding(1).groups(hidden)));
  pw_conv_ = register_module("pw_conv", nn::Conv2d(nn::Conv2dOptions(hidden, config_.channels, 1)));
  linear1_ = register_module("linear1", linear(config_.flat(), config_.mlp));
  adaLN2_ = register_module("adaLN2", Modulation(hidden, config_.mlp));
  linear2_ = register_module("linear2", linear(config_.mlp, hidden));
  adaLN3_ = register_module("adaLN3", Modulation(hidden, hidden));
  linear3_ = register_module("linear3", zero_linear(hidden, outputs));
}

at::Tensor PolicyNetworkImpl::step_embedding(const at::Tensor& t, int64_t steps) {
  const at::Tensor seen = config_.see_step ? t : at::zeros_like(t);
  at::Tensor c = t_embedder_(seen);
  if (!steps_embedder_.is_empty()) c = c + steps_embedder_(at::zeros_like(t) + steps);
  return c;
}

StepTerms PolicyNetworkImpl::step_terms(const at::Tensor& t, int64_t steps) {
  if (config_.shared()) return {{}, {}, {}, table_.index_select(0, t)};
  const at::Tensor c = step_embedding(t, steps);
  return {adaLN1_(c), adaLN2_(c), adaLN3_(c), {}};
}

at::Tensor PolicyNetworkImpl::forward(const at::Tensor& input, const StepTerms& terms, PolicyTaps* taps) {
  const int64_t b = input.size(0);
  if (config_.shared()) return terms.outputs.expand({b, terms.outputs.size(1)});
  const int64_t n = config_.grid_height * config_.grid_width;
  TORCH_CHECK(input.size(1) == n, "policy: its grid has ", n, " tokens, the input ", input.size(1));
  at::Tensor x = !token_embedder_.is_empty() ? token_embedder_(input)
                 : !x_embedder_.is_empty()   ? x_embedder_(input)
                                             : input;
  const at::Tensor normed =
      adaln(x, terms.adaln1);  // (B, N, H): read as an image, it lies channels-last in memory
  x = normed.view({b, config_.grid_height, config_.grid_width, config_.hidden}).permute({0, 3, 1, 2});
  const at::Tensor dw = dw_conv_(x), pw = pw_conv_(at::gelu(dw));
  const at::Tensor two = adaln(linear1_(at::gelu(pw).flatten(1)), terms.adaln2);
  const at::Tensor three = adaln(linear2_(at::gelu(two)), terms.adaln3);
  if (taps != nullptr) *taps = {normed, dw, pw, two, three};
  return linear3_(at::gelu(three));
}

ActorCriticImpl::ActorCriticImpl(const PolicyNetworkConfig& config) {
  actor = register_module("actor", PolicyNetwork(config, 4));
  PolicyNetworkConfig seeing = config;
  seeing.shared_steps = 0;
  critic = register_module("critic", PolicyNetwork(seeing, 1));
}

}  // namespace adanat
