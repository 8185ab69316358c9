// The masked-token generator: a bidirectional U-ViT-shaped transformer (NAT), docs/method.md section 3.
// Legend: B samples, N tokens of an image, V codes (id V = masked), D width, S condition tokens in front.
#pragma once
#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <atomic>

#include "core/base/config.h"

namespace adanat {

struct GeneratorConfig {
  int64_t width = 768;
  int64_t depth = 24;
  int64_t heads = 8;
  int64_t codes = 1024;
  int64_t grid_height = 16;
  int64_t grid_width = 16;
  std::string condition = "class";
  int64_t classes = 1000;
  int64_t text_width = 1280;
  int64_t text_tokens = 77;
  double dropout = 0.1;

  int64_t tokens() const { return grid_height * grid_width; }

  static constexpr auto fields() {
    using C = GeneratorConfig;
    return std::tuple{
        field("width", &C::width, "width D of the transformer, a multiple of heads"),
        field("depth", &C::depth, "blocks besides the middle one, even"),
        field("heads", &C::heads, "attention heads"),
        field("codes", &C::codes, "codebook size V of the tokenizer"),
        field("grid_height", &C::grid_height, "tokens down an image"),
        field("grid_width", &C::grid_width, "tokens across an image"),
        field("condition", &C::condition, "class or text"),
        field("classes", &C::classes, "number of classes (condition class); id `classes` is the empty class"),
        field("text_width", &C::text_width, "width of the text encoder's states (condition text)"),
        field("text_tokens", &C::text_tokens, "text tokens in front (condition text)"),
        field("dropout", &C::dropout, "dropout of the token embedding in training, 0..1"),
    };
  }
  void validate() const;
  bool operator==(const GeneratorConfig&) const = default;
};

// LayerNorm(word + position), dropout. Also the class condition's module (one position).
class TokenEmbeddingImpl : public torch::nn::Module {
 public:
  TokenEmbeddingImpl(int64_t vocabulary, int64_t positions, int64_t width, double dropout);
  // ids (B, L) i64, L <= positions -> (B, L, D)
  at::Tensor forward(const at::Tensor& ids);

  torch::nn::Embedding word_embeddings{nullptr}, position_embeddings{nullptr};
  torch::nn::LayerNorm LayerNorm{nullptr};  // public weights spell it so

 private:
  double dropout_;
};
TORCH_MODULE(TokenEmbedding);

class AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(int64_t width, int64_t heads);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear qkv{nullptr}, proj{nullptr};

 private:
  int64_t heads_;
};
TORCH_MODULE(Attention);

class MlpImpl : public torch::nn::Module {
 public:
  explicit MlpImpl(int64_t width);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
};
TORCH_MODULE(Mlp);

// x = Linear(concat(x, skip)) where it takes a skip; x += attn(LN(x)); x += mlp(LN(x)).
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(int64_t width, int64_t heads, bool takes_skip);
  at::Tensor forward(at::Tensor x, const at::Tensor& skip = {});
  torch::nn::Linear skip_linear{nullptr};
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  Attention attn{nullptr};
  Mlp mlp{nullptr};
};
TORCH_MODULE(Block);

// fc, GELU, LayerNorm, times the transposed word embedding (no gradient through the tied weight), plus a
// bias.
class TokenHeadImpl : public torch::nn::Module {
 public:
  TokenHeadImpl(int64_t width, int64_t codes);
  // x (..., D), word_embeddings (V+1, D) -> (..., V); the mask column is never computed.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& word_embeddings);
  torch::nn::Linear fc{nullptr};
  torch::nn::LayerNorm ln{nullptr};
  at::Tensor bias;  // (1, 1, V+1)
};
TORCH_MODULE(TokenHead);

// Parameter names are those of the public weights (docs/method.md section 3), so that their files load
// unchanged. Not thread-safe in training; forward passes under NoGradGuard may run concurrently.
class GeneratorImpl : public torch::nn::Module {
 public:
  explicit GeneratorImpl(GeneratorConfig config);

  // tokens (B, N) i64 in [0, V]; condition: class ids (B) i64 in [0, classes], or text states (B, S,
  // text_width) of any float type. Returns the final-norm features at the N image positions, (B, N, D): what
  // the policy reads.
  at::Tensor features(const at::Tensor& tokens, const at::Tensor& condition);
  // features (..., D) -> logits (..., V). Takes any subset of rows: only hidden positions need it.
  at::Tensor logits(const at::Tensor& features);

  const GeneratorConfig& config() const { return config_; }
  int64_t mask_id() const { return config_.codes; }
  // The condition that means "none", for `count` samples: class ids (count) filled with `classes`. Class
  // models only.
  at::Tensor empty_classes(int64_t count) const;
  // Rows (samples) that went through features() so far: what a test of the sampler's thrift reads.
  int64_t rows_computed() const { return rows_computed_; }

 private:
  GeneratorConfig config_;
  TokenEmbedding token_emb_{nullptr}, class_embed_{nullptr};
  torch::nn::Linear text_embed_{nullptr};
  torch::nn::ModuleList in_blocks_, out_blocks_;
  Block mid_block_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  TokenHead head_{nullptr};
  std::atomic<int64_t> rows_computed_{0};
};
TORCH_MODULE(Generator);

}  // namespace adanat
