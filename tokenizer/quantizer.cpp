#include "tokenizer/quantizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/nearest_code.h"

namespace adanat {

void QuantizerConfig::validate() const {
  require(codebook == "ema" || codebook == "gradient", "quantizer.codebook", "ema or gradient", codebook);
  require(decay >= 0 && decay < 1, "quantizer.decay", "in [0, 1)", decay);
  require(epsilon > 0, "quantizer.epsilon", "> 0", epsilon);
  require(commitment >= 0, "quantizer.commitment", ">= 0", commitment);
  require(revive_after >= 0, "quantizer.revive_after", ">= 0", revive_after);
}

at::Tensor straight_through(const at::Tensor& z, const at::Tensor& z_q) {
  return z + (z_q - z).detach();
}

at::Tensor codebook_loss(const at::Tensor& z, const at::Tensor& z_q, double commitment) {
  return at::mse_loss(z_q, z.detach()) + commitment * at::mse_loss(z, z_q.detach());
}

Quantizer::Quantizer(Tokenizer tokenizer, QuantizerConfig config)
    : tokenizer_(std::move(tokenizer)), config_(std::move(config)) {
  config_.validate();
  at::Tensor& codes = tokenizer_->embedding;
  if (config_.codebook == "ema") codes.set_requires_grad(false);
  const auto options = codes.options().requires_grad(false);
  size_ = at::ones({codes.size(0)}, options);
  sum_ = codes.detach().clone();
  age_ = at::zeros({codes.size(0)}, options.dtype(at::kLong));
  started_ = at::zeros({}, options.dtype(at::kLong).device(at::kCPU));
}

Quantized Quantizer::quantize(const at::Tensor& latents) {
  const bool unit = tokenizer_->config().normalize_codes;
  const at::Tensor z = unit ? vqgan::unit_length(latents, 1) : latents;
  Quantized out;
  out.rows = z.detach().permute({0, 2, 3, 1}).reshape({-1, z.size(1)}).contiguous();
  if (started_.item<int64_t>() == 0) {
    const at::NoGradGuard no_grad;
    const int64_t codes = size_.size(0), rows = out.rows.size(0);
    const auto options = age_.options();
    const at::Tensor chosen =
        rows >= codes ? at::randperm(rows, options).slice(0, 0, codes) : at::randint(rows, {codes}, options);
    tokenizer_->embedding.copy_(out.rows.index_select(0, chosen));
    sum_.copy_(tokenizer_->embedding);
    started_.fill_(1);
  }
  const at::Tensor codebook = tokenizer_->codebook();
  const at::Tensor ids = kernels::nearest_code(out.rows, codebook.detach().contiguous()).ids;
  out.ids = ids.view({z.size(0), z.size(2) * z.size(3)});
  const at::Tensor z_q =
      at::embedding(codebook, ids.view({z.size(0), z.size(2), z.size(3)})).permute({0, 3, 1, 2});
  out.loss = config_.codebook == "ema" ? config_.commitment * at::mse_loss(z, z_q.detach())
                                       : codebook_loss(z, z_q, config_.commitment);
  out.codes = straight_through(z, z_q);
  return out;
}

at::Tensor Quantizer::counts_of(const at::Tensor& flat_ids) const {
  return at::zeros_like(size_).index_add_(0, flat_ids, at::ones({flat_ids.size(0)}, size_.options()));
}

void Quantizer::update(const Quantized& batch) {
  const at::NoGradGuard no_grad;
  at::Tensor& codes = tokenizer_->embedding;
  const at::Tensor ids = batch.ids.flatten(), count = counts_of(ids);
  if (config_.codebook == "ema") {
    const double fresh = 1 - config_.decay;
    size_.mul_(config_.decay).add_(count, fresh);
    sum_.mul_(config_.decay).add_(at::zeros_like(sum_).index_add_(0, ids, batch.rows), fresh);
    const at::Tensor n = size_.sum();
    const at::Tensor smoothed = (size_ + config_.epsilon) / (n + double(size_.size(0)) * config_.epsilon) * n;
    const at::Tensor mean = sum_ / smoothed.unsqueeze(1);
    codes.copy_(tokenizer_->config().normalize_codes ? vqgan::unit_length(mean, 1) : mean);
  }
  age_.copy_(at::where(count > 0, at::zeros_like(age_), age_ + 1));
  if (config_.revive_after == 0) return;
  const at::Tensor dead = age_ >= config_.revive_after, dead_rows = dead.unsqueeze(1);
  const at::Tensor drawn =
      batch.rows.index_select(0, at::randint(batch.rows.size(0), {codes.size(0)}, age_.options()));
  codes.copy_(at::where(dead_rows, drawn, codes));
  sum_.copy_(at::where(dead_rows, drawn, sum_));
  size_.copy_(at::where(dead, at::ones_like(size_), size_));
  age_.masked_fill_(dead, 0);
}

at::Tensor Quantizer::usage() const {
  return (age_ < kUsageWindow).to(at::kFloat).mean();
}

at::Tensor Quantizer::perplexity(const at::Tensor& ids) const {
  const at::NoGradGuard no_grad;
  const at::Tensor share = counts_of(ids.flatten()) / double(ids.numel());
  return (-at::xlogy(share, share).sum()).exp();
}

NamedTensors Quantizer::state() const {
  return {{"size", size_}, {"sum", sum_}, {"age", age_}, {"started", started_}};
}

void Quantizer::save(TensorMap& out, const std::string& prefix) const {
  for (const auto& [name, tensor] : state()) out[prefix + name] = tensor;
}

void Quantizer::load(const TensorMap& in, const std::string& prefix, const std::string& where) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : state()) {
    const auto it = in.find(prefix + name);
    if (it == in.end()) throw InputError(cat(where, ": lacks the quantizer's tensor ", prefix, name));
    if (it->second.sizes() != tensor.sizes())
      throw InputError(
          cat(where, ": ", prefix, name, " has shape ", it->second.sizes(), ", wanted ", tensor.sizes()));
    tensor.copy_(it->second);
  }
}

}  // namespace adanat
