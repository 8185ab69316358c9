#include "tokenizer/vqgan.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/pixel_shuffle.h>
#include <ATen/ops/pixel_unshuffle.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/upsample_nearest2d.h>

#include <cmath>

#include "core/nn/module_state.h"
#include "kernels/nearest_code.h"
#include "tokenizer/shapes.h"
#include "tokenizer/tokenizer_file.h"

namespace adanat {

void TokenizerConfig::validate() const {
  require(channels >= 1 && channels <= 4096, "channels", "in 1..4096", channels);
  require(!channel_multipliers.empty() && channel_multipliers.size() <= 8, "channel_multipliers",
          "1 to 8 numbers", channel_multipliers.size());
  for (const int64_t multiplier : channel_multipliers)
    require(multiplier >= 1 && multiplier <= 64, "channel_multipliers", "numbers in 1..64", multiplier);
  require(residual_blocks >= 1 && residual_blocks <= 64, "residual_blocks", "in 1..64", residual_blocks);
  require(latent_channels >= 1 && latent_channels <= 4096, "latent_channels", "in 1..4096", latent_channels);
  require(codes >= 2 && codes <= (1 << 20), "codes", "in 2..1048576", codes);
  require(shortcut_from == "input" || shortcut_from == "hidden", "shortcut_from", "input or hidden",
          shortcut_from);
  require(unshuffle >= 1 && unshuffle <= 16, "unshuffle", "in 1..16", unshuffle);
  require(image_size >= 1 && image_size <= 16384 && image_size % factor() == 0, "image_size",
          cat("a multiple of the factor ", factor()).c_str(), image_size);
}

int64_t TokenizerConfig::factor() const {
  return unshuffle << (channel_multipliers.size() - 1);
}

namespace vqgan {
namespace {

// A module that only groups others under a name.
std::shared_ptr<torch::nn::Module> group(torch::nn::Module& parent, const std::string& name) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>("Group"));
}

std::vector<ResidualBlock> blocks(torch::nn::Module& parent, int64_t count, int64_t in, int64_t out,
                                  bool from_hidden) {
  std::vector<ResidualBlock> made;
  for (int64_t i = 0; i < count; ++i)
    made.push_back(
        parent.register_module(std::to_string(i), ResidualBlock(i == 0 ? in : out, out, from_hidden)));
  return made;
}

std::vector<ResidualBlock> mid_blocks(torch::nn::Module& parent, int64_t channels, bool from_hidden) {
  const auto mid = group(parent, "mid");
  return {mid->register_module("block_1", ResidualBlock(channels, channels, from_hidden)),
          mid->register_module("block_2", ResidualBlock(channels, channels, from_hidden))};
}

}  // namespace

ResidualBlockImpl::ResidualBlockImpl(int64_t in, int64_t out, bool shortcut_from_hidden)
    : norm1(register_module("norm1", Norm(in))),
      norm2(register_module("norm2", Norm(out))),
      conv1(register_module("conv1", Conv(in, out, 3, false))),
      conv2(register_module("conv2", Conv(out, out, 3, false))),
      from_hidden_(shortcut_from_hidden) {
  if (in != out) nin_shortcut = register_module("nin_shortcut", Conv(from_hidden_ ? out : in, out, 1, false));
}

at::Tensor ResidualBlockImpl::forward(const at::Tensor& x) const {
  at::Tensor h = conv1->forward(at::silu(norm1->forward(x)));
  h = conv2->forward(at::silu(norm2->forward(h)));
  if (nin_shortcut.is_empty()) return x + h;
  return nin_shortcut->forward(from_hidden_ ? h : x) + h;
}

EncoderImpl::EncoderImpl(const TokenizerConfig& config) : unshuffle_(config.unshuffle) {
  const bool from_hidden = config.shortcut_from == "hidden";
  conv_in = register_module("conv_in", Conv(3 * unshuffle_ * unshuffle_, config.channels, 3, false));
  const auto down = group(*this, "down");
  int64_t width = config.channels;
  for (size_t l = 0; l < config.channel_multipliers.size(); ++l) {
    const int64_t out = config.channels * config.channel_multipliers[l];
    const auto block = group(*group(*down, std::to_string(l)), "block");
    down_.push_back(blocks(*block, config.residual_blocks, width, out, from_hidden));
    width = out;
  }
  mid_ = mid_blocks(*this, width, from_hidden);
  norm_out = register_module("norm_out", Norm(width));
  conv_out = register_module("conv_out", Conv(width, config.latent_channels, 1, true));
}

at::Tensor EncoderImpl::forward(const at::Tensor& images) const {
  at::Tensor h = conv_in->forward(unshuffle_ == 1 ? images : at::pixel_unshuffle(images, unshuffle_));
  for (size_t l = 0; l < down_.size(); ++l) {
    if (l > 0) h = at::avg_pool2d(h, {2, 2});
    for (const ResidualBlock& block : down_[l]) h = block->forward(h);
  }
  for (const ResidualBlock& block : mid_) h = block->forward(h);
  return conv_out->forward(at::silu(norm_out->forward(h)));
}

DecoderImpl::DecoderImpl(const TokenizerConfig& config) : unshuffle_(config.unshuffle) {
  const bool from_hidden = config.shortcut_from == "hidden";
  const size_t levels = config.channel_multipliers.size();
  int64_t width = config.channels * config.channel_multipliers.back();
  conv_in = register_module("conv_in", Conv(config.latent_channels, width, 3, true));
  mid_ = mid_blocks(*this, width, from_hidden);
  const auto up = group(*this, "up");
  up_.resize(levels);
  upsample_.assign(levels, Conv(nullptr));
  for (size_t l = levels; l-- > 0;) {
    const int64_t out = config.channels * config.channel_multipliers[l];
    const auto level = group(*up, std::to_string(l));
    up_[l] = blocks(*group(*level, "block"), config.residual_blocks, width, out, from_hidden);
    width = out;
    if (l > 0) upsample_[l] = group(*level, "upsample")->register_module("conv", Conv(width, width, 3, true));
  }
  norm_out = register_module("norm_out", Norm(width));
  conv_out = register_module("conv_out", Conv(width, 3 * unshuffle_ * unshuffle_, 3, true));
}

at::Tensor DecoderImpl::forward(const at::Tensor& codes) const {
  const bool half = conv_in->weight.scalar_type() == at::kBFloat16;
  at::Tensor h = conv_in->forward(half ? codes.to(at::kBFloat16) : codes);
  for (const ResidualBlock& block : mid_) h = block->forward(h);
  for (size_t l = up_.size(); l-- > 0;) {
    for (const ResidualBlock& block : up_[l]) h = block->forward(h);
    if (l > 0) h = upsample_[l]->forward(at::upsample_nearest2d(h, {h.size(2) * 2, h.size(3) * 2}));
  }
  if (half) h = h.to(at::kFloat);
  h = conv_out->forward(at::silu(norm_out->forward(h)));
  return unshuffle_ == 1 ? h : at::pixel_shuffle(h, unshuffle_);
}

void DecoderImpl::to_bfloat16() {
  for (const auto& part : children())
    if (part != norm_out.ptr() && part != conv_out.ptr()) part->to(at::kBFloat16);
  choose_layout(*this);
}

at::Tensor unit_length(const at::Tensor& x, int64_t dim) {
  return x / at::linalg_vector_norm(x, 2, {dim}, true).clamp_min(1e-12);
}

}  // namespace vqgan

TokenizerImpl::TokenizerImpl(TokenizerConfig config) : config_(std::move(config)) {
  config_.validate();
  encoder = register_module("encoder", vqgan::Encoder(config_));
  decoder = register_module("decoder", vqgan::Decoder(config_));
  const auto quantize = register_module("quantize", std::make_shared<torch::nn::Module>("Quantize"));
  const auto table = quantize->register_module("embedding", std::make_shared<torch::nn::Module>("Embedding"));
  embedding = table->register_parameter(
      "weight", at::empty({config_.codes, config_.latent_channels})
                    .uniform_(-1.0 / double(config_.codes), 1.0 / double(config_.codes)));
}

at::Tensor TokenizerImpl::latents(const at::Tensor& images) const {
  if (images.dim() != 4 || images.size(1) != 3 || images.size(2) != images.size(3) || images.size(2) == 0 ||
      images.size(2) % factor() != 0)
    throw InputError(cat("tokenizer: images must be (B, 3, S, S) with S a multiple of ", factor(), ", got ",
                         images.sizes()));
  const at::Tensor x = images.to(embedding.scalar_type());
  // The layout of the weights decides: a channels-last input with such weights needs no reordering between
  // layers.
  const bool channels_last = encoder->parameters()[0].is_contiguous(at::MemoryFormat::ChannelsLast);
  return encoder->forward(channels_last ? x.contiguous(at::MemoryFormat::ChannelsLast) : x);
}

at::Tensor TokenizerImpl::codebook() const {
  return config_.normalize_codes ? vqgan::unit_length(embedding, 1) : embedding;
}

at::Tensor TokenizerImpl::quantize_ids(const at::Tensor& latents) const {
  const at::NoGradGuard no_grad;
  at::Tensor rows = latents.permute({0, 2, 3, 1}).reshape({-1, latents.size(1)}).to(at::kFloat);
  if (config_.normalize_codes) rows = vqgan::unit_length(rows, 1);
  const at::Tensor ids = kernels::nearest_code(rows.contiguous(), codebook().to(at::kFloat).contiguous()).ids;
  return ids.view({latents.size(0), latents.size(2) * latents.size(3)});
}

at::Tensor TokenizerImpl::encode(const at::Tensor& images) const {
  return quantize_ids(latents(images));
}

at::Tensor TokenizerImpl::lookup(const at::Tensor& ids) const {
  const int64_t tokens = ids.dim() == 2 ? ids.size(1) : 0;
  const auto side = int64_t(std::llround(std::sqrt(double(tokens))));
  if (tokens == 0 || side * side != tokens)
    throw InputError(cat("tokenizer: ids must be (B, N) with N a square, got ", ids.sizes()));
  // (B, N, C) seen as (B, C, h, w) is channels-last already.
  return at::embedding(codebook(), ids)
      .view({ids.size(0), side, side, config_.latent_channels})
      .permute({0, 3, 1, 2});
}

at::Tensor TokenizerImpl::decode(const at::Tensor& ids) const {
  return decoder->forward(lookup(ids));
}

void TokenizerImpl::prepare_for_inference() {
  eval();
  for (at::Tensor& parameter : parameters()) parameter.set_requires_grad(false);
}

void save_tokenizer(const std::filesystem::path& path, const TokenizerImpl& tokenizer, at::ScalarType dtype) {
  TensorMap tensors = module_state(tokenizer);
  for (auto& [name, tensor] : tensors) tensor = tensor.to(dtype);
  write_tokenizer(path, tokenizer.config(), tensors);
}

void write_tokenizer(const std::filesystem::path& path, const TokenizerConfig& config,
                     const TensorMap& tensors) {
  write_tensors(path, tensors, {{"config", config_to_json(config).dump()}, {"format", kTokenizerFormat}});
}

}  // namespace adanat
