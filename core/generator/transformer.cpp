#include "core/generator/transformer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/init.h>

#include "core/generator/inference.h"
#include "core/nn/linear.h"
#include "core/nn/undrawn.h"

namespace adanat {
namespace nn = torch::nn;

void GeneratorConfig::validate() const {
  require(heads >= 1 && heads <= 1024, "heads", "1..1024", heads);
  require(width >= 1 && width <= 65536, "width", "1..65536", width);
  require(width % heads == 0, "width", cat("a multiple of heads (", heads, ")").c_str(), width);
  require(depth >= 0 && depth % 2 == 0 && depth <= 1024, "depth", "even, 0..1024", depth);
  require(codes >= 1 && codes <= (1 << 24), "codes", "1..16777216", codes);
  require(grid_height >= 1 && grid_height <= 1024, "grid_height", "1..1024", grid_height);
  require(grid_width >= 1 && grid_width <= 1024, "grid_width", "1..1024", grid_width);
  require(condition == "class" || condition == "text", "condition", "class or text", condition);
  require(classes >= 1 && classes <= (1 << 24), "classes", "1..16777216", classes);
  require(text_width >= 1 && text_width <= 65536, "text_width", "1..65536", text_width);
  require(text_tokens >= 1 && text_tokens <= 4096, "text_tokens", "1..4096", text_tokens);
  require(dropout >= 0 && dropout < 1, "dropout", "in [0, 1)", dropout);
}

namespace {

constexpr double kInitStd = 0.02;

nn::LayerNorm layer_norm(int64_t width, double eps) {
  return nn::LayerNorm(nn::LayerNormOptions({width}).eps(eps));
}

// Normal draws outside two standard deviations of the *unit* scale (-2..2, as timm does it) practically never
// occur at std 0.02, so the plain normal law is the same law.
nn::Linear new_linear(int64_t in, int64_t out, bool bias = true) {
  if (UndrawnWeights::active()) {
    nn::Linear layer(nn::LinearOptions(1, 1).bias(bias));  // draws what it is made with
    layer->options.in_features(in).out_features(out);
    layer->weight.set_data(at::empty({out, in}));
    if (bias) layer->bias.set_data(at::empty({out}));
    return layer;
  }
  nn::Linear layer(nn::LinearOptions(in, out).bias(bias));
  nn::init::normal_(layer->weight, 0, kInitStd);
  if (bias) nn::init::zeros_(layer->bias);
  return layer;
}

nn::Embedding embedding(int64_t rows, int64_t width) {
  if (UndrawnWeights::active())
    return nn::Embedding(nn::EmbeddingOptions(rows, width)._weight(at::empty({rows, width})));
  nn::Embedding layer(rows, width);
  nn::init::normal_(layer->weight, 0, kInitStd);
  return layer;
}

// qkv (B, L, 3D) -> (B, L, D).
at::Tensor attend(const at::Tensor& qkv, int64_t heads) {
  const int64_t b = qkv.size(0), l = qkv.size(1), d = qkv.size(2) / 3;
  const at::Tensor parts =
      qkv.view({b, l, 3, heads, d / heads}).permute({2, 0, 3, 1, 4});  // (3, B, H, L, D/H)
  // The default scale is head_dim^-0.5. Without dropout the flash kernels apply, on the CPU too.
  const at::Tensor y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
  return y.transpose(1, 2).reshape({b, l, d});
}

}  // namespace

TokenEmbeddingImpl::TokenEmbeddingImpl(int64_t vocabulary, int64_t positions, int64_t width, double dropout)
    : dropout_(dropout) {
  word_embeddings = register_module("word_embeddings", embedding(vocabulary, width));
  position_embeddings = register_module("position_embeddings", embedding(positions, width));
  LayerNorm = register_module("LayerNorm", layer_norm(width, 1e-6));
}

at::Tensor TokenEmbeddingImpl::forward(const at::Tensor& ids) {
  const at::Tensor positions = position_embeddings->weight.narrow(0, 0, ids.size(1));
  const at::Tensor x = LayerNorm(word_embeddings(ids) + positions);
  return dropout_ > 0 && is_training() ? at::dropout(x, dropout_, true) : x;
}

AttentionImpl::AttentionImpl(int64_t width, int64_t heads) : heads_(heads) {
  qkv = register_module("qkv", new_linear(width, 3 * width, /*bias=*/false));
  proj = register_module("proj", new_linear(width, width));
}

at::Tensor AttentionImpl::forward(const at::Tensor& x) {
  const at::Tensor y = attend(linear(*qkv, x), heads_);  // queries, keys and values are gone by now
  return linear(*proj, y);
}

MlpImpl::MlpImpl(int64_t width) {
  fc1 = register_module("fc1", new_linear(width, 4 * width));
  fc2 = register_module("fc2", new_linear(4 * width, width));
}

at::Tensor MlpImpl::forward(const at::Tensor& x) {
  return linear(*fc2, linear_gelu(*fc1, x));
}

BlockImpl::BlockImpl(int64_t width, int64_t heads, bool takes_skip) {
  if (takes_skip) skip_linear = register_module("skip_linear", new_linear(2 * width, width));
  norm1 = register_module("norm1", layer_norm(width, 1e-5));
  attn = register_module("attn", Attention(width, heads));
  norm2 = register_module("norm2", layer_norm(width, 1e-5));
  mlp = register_module("mlp", Mlp(width));
}

at::Tensor BlockImpl::forward(at::Tensor x, const at::Tensor& skip) {
  if (!skip_linear.is_empty()) x = linear(*skip_linear, at::cat({x, skip}, -1));
  if (at::GradMode::is_enabled()) {
    x = x + attn(norm1(x));
    return x + mlp(norm2(x));
  }
  // The same sums, in memory that is taken before the wide layers take theirs: what outlives them must not
  // lie where they were, or the heap has holes too small for the next ones and grows to twice what is in use.
  at::Tensor sum = at::empty_like(x);
  at::add_out(sum, x, attn(norm1(x)));
  return sum.add_(mlp(norm2(sum)));
}

TokenHeadImpl::TokenHeadImpl(int64_t width, int64_t codes) {
  fc = register_module("fc", new_linear(width, width));
  ln = register_module("ln", layer_norm(width, 1e-5));
  bias = register_parameter("bias", at::zeros({1, 1, codes + 1}));
}

at::Tensor TokenHeadImpl::forward(const at::Tensor& x, const at::Tensor& word_embeddings) {
  const int64_t codes = word_embeddings.size(0) - 1;
  const at::Tensor h = ln(linear_gelu(*fc, x));
  return linear(h, word_embeddings.detach().narrow(0, 0, codes), bias.view({-1}).narrow(0, 0, codes));
}

GeneratorImpl::GeneratorImpl(GeneratorConfig config) : config_(std::move(config)) {
  config_.validate();
  const int64_t d = config_.width;
  token_emb_ =
      register_module("token_emb", TokenEmbedding(config_.codes + 1, config_.tokens(), d, config_.dropout));
  if (config_.condition == "class") {
    class_embed_ = register_module("context_embed", TokenEmbedding(config_.classes + 1, 1, d, 0.0));
  } else {
    text_embed_ = register_module("context_embed", new_linear(config_.text_width, d));
  }
  for (int64_t i = 0; i < config_.depth / 2; ++i) in_blocks_->push_back(Block(d, config_.heads, false));
  register_module("in_blocks", in_blocks_);
  mid_block_ = register_module("mid_block", Block(d, config_.heads, false));
  for (int64_t i = 0; i < config_.depth / 2; ++i) out_blocks_->push_back(Block(d, config_.heads, true));
  register_module("out_blocks", out_blocks_);
  norm_ = register_module("norm", layer_norm(d, 1e-5));
  head_ = register_module("mlm_layer", TokenHead(d, config_.codes));
}

at::Tensor GeneratorImpl::features(const at::Tensor& tokens, const at::Tensor& condition) {
  const int64_t b = tokens.size(0), n = config_.tokens();
  TORCH_CHECK(tokens.dim() == 2 && tokens.size(1) == n, "generator: tokens must be (B, ", n, "), got ",
              tokens.sizes());
  TORCH_CHECK(condition.size(0) == b, "generator: ", b, " samples, but ", condition.size(0), " conditions");
  rows_computed_ += b;
  const at::Tensor front = class_embed_.is_empty()
                               ? text_embed_(condition.to(text_embed_->weight.scalar_type()))
                               : class_embed_(condition.view({b, 1}));
  at::Tensor x = at::cat({front, token_emb_(tokens)}, 1);
  std::vector<at::Tensor> skips;
  for (const auto& block : *in_blocks_) {
    x = block->as<BlockImpl>()->forward(x);
    skips.push_back(x);
  }
  x = mid_block_(x);
  for (const auto& block : *out_blocks_) {
    x = block->as<BlockImpl>()->forward(x, skips.back());
    skips.pop_back();
  }
  return norm_(x.narrow(1, front.size(1), n));
}

at::Tensor GeneratorImpl::logits(const at::Tensor& features) {
  return head_(features, token_emb_->word_embeddings->weight);
}

at::Tensor GeneratorImpl::empty_classes(int64_t count) const {
  TORCH_CHECK(config_.condition == "class", "generator: a text-conditional model has no empty class");
  return at::full({count}, config_.classes,
                  at::TensorOptions().dtype(at::kLong).device(token_emb_->word_embeddings->weight.device()));
}

void prepare_generator(GeneratorImpl& generator, at::Device device, at::ScalarType dtype) {
  generator.eval();
  for (at::Tensor& parameter : generator.parameters()) parameter.set_requires_grad(false);
  generator.to(device, dtype == at::kChar ? at::kFloat : dtype);
  if (dtype != at::kChar) return;
  for (const auto& part : generator.named_children())
    if (part.key() == "in_blocks" || part.key() == "mid_block" || part.key() == "out_blocks")
      quantize_linears(*part.value());
}

}  // namespace adanat
