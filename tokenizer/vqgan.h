// The tokenizer: pictures <-> grids of code numbers. Convolutional encoder, codebook, convolutional decoder
// (VQGAN without attention). Source: docs/method.md section 2; the parameter names are those of the public
// weights.
//
// Legend: B batch, S image side, f = factor(), N = (S/f)^2 tokens in row-major order, C latent_channels, V
// codes. Goals: public weights load by name; small images train quickly on a CPU (the pixel-unshuffle stem
// keeps the wide convolutions at low resolution). Not here: losses and codebook training (quantizer.h,
// tokenizer_recipe.h).
#pragma once
#include <filesystem>
#include <vector>

#include "core/base/config.h"
#include "core/nn/tensor_file.h"
#include "tokenizer/layers.h"

namespace adanat {

// Defaults are the public vq-f16 tokenizer's sizes, except for shortcut_from (public weights need "hidden").
struct TokenizerConfig {
  int64_t image_size = 256;
  int64_t channels = 128;
  std::vector<int64_t> channel_multipliers = {1, 1, 2, 2, 4};
  int64_t residual_blocks = 2;
  int64_t latent_channels = 256;
  int64_t codes = 1024;
  std::string shortcut_from = "input";
  int64_t unshuffle = 1;
  bool normalize_codes = false;

  static constexpr auto fields() {
    using C = TokenizerConfig;
    return std::tuple{
        field("image_size", &C::image_size, "image side in pixels, a multiple of the factor"),
        field("channels", &C::channels, "channels of the first level, >= 1"),
        field("channel_multipliers", &C::channel_multipliers,
              "channels of each level as a multiple; every level after the first halves the side"),
        field("residual_blocks", &C::residual_blocks, "residual blocks per level, >= 1"),
        field("latent_channels", &C::latent_channels, "width of a code, >= 1"),
        field("codes", &C::codes, "size V of the codebook, >= 2"),
        field(
            "shortcut_from", &C::shortcut_from,
            "where a block that changes its channels takes its shortcut: input, or hidden (public weights)"),
        field("unshuffle", &C::unshuffle,
              "pixels per side folded into channels in front of the first level, >= 1"),
        field("normalize_codes", &C::normalize_codes,
              "latents and codes have length 1 (choose the code by angle)"),
    };
  }
  void validate() const;
  int64_t factor() const;  // f = unshuffle * 2^(levels - 1)
  bool operator==(const TokenizerConfig&) const = default;
};

namespace vqgan {

// x + conv2(swish(norm2(conv1(swish(norm1(x)))))); see TokenizerConfig::shortcut_from for `in` != `out`.
class ResidualBlockImpl : public torch::nn::Module {
 public:
  ResidualBlockImpl(int64_t in, int64_t out, bool shortcut_from_hidden);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  Norm norm1, norm2;
  Conv conv1, conv2, nin_shortcut{nullptr};
  bool from_hidden_;
};
TORCH_MODULE(ResidualBlock);

class EncoderImpl : public torch::nn::Module {
 public:
  explicit EncoderImpl(const TokenizerConfig& config);
  at::Tensor forward(const at::Tensor& images) const;  // (B, 3, S, S) -> (B, C, S/f, S/f)

 private:
  std::vector<std::vector<ResidualBlock>> down_;
  std::vector<ResidualBlock> mid_;
  Conv conv_in{nullptr}, conv_out{nullptr};
  Norm norm_out{nullptr};
  int64_t unshuffle_;
};
TORCH_MODULE(Encoder);

class DecoderImpl : public torch::nn::Module {
 public:
  explicit DecoderImpl(const TokenizerConfig& config);
  // (B, C, S/f, S/f) -> (B, 3, S, S).
  at::Tensor forward(const at::Tensor& codes) const;
  // Weights in bfloat16 and in the layout that suits them, but for the last norm and convolution, whose 8
  // bits would be seen in the picture.
  void to_bfloat16();
  // Weight of the last convolution: the adaptive GAN weight compares gradients there.
  const at::Tensor& last_weight() const { return conv_out->weight; }

 private:
  std::vector<std::vector<ResidualBlock>> up_;
  std::vector<Conv> upsample_;
  std::vector<ResidualBlock> mid_;
  Conv conv_in{nullptr}, conv_out{nullptr};
  Norm norm_out{nullptr};
  int64_t unshuffle_;
};
TORCH_MODULE(Decoder);

// Scales every vector of dimension `dim` to length 1 (vectors shorter than 1e-12 stay near 0).
at::Tensor unit_length(const at::Tensor& x, int64_t dim);

}  // namespace vqgan

// Not thread-safe while training; encode, decode and latents are safe from several threads under NoGradGuard.
class TokenizerImpl : public torch::nn::Module {
 public:
  // Validates the config; weights are drawn from torch's default generator.
  explicit TokenizerImpl(TokenizerConfig config);

  // Encoder output, not quantised and (even with normalize_codes) not normalised: images (B, 3, S, S) in [0,
  // 1], any float type -> (B, C, S/f, S/f). InputError unless square, with 3 channels and a side that f
  // divides (the side need not be config().image_size).
  at::Tensor latents(const at::Tensor& images) const;
  // Ids in [0, V) of the nearest codes, ties to the lower id: latents -> (B, N) i64, or images -> (B, N) i64.
  // Compared in float32, and not to be called under autocast.
  at::Tensor quantize_ids(const at::Tensor& latents) const;
  at::Tensor encode(const at::Tensor& images) const;
  // Codes by id, (B, N) integers in [0, V) with N a square -> (B, C, sqrt N, sqrt N). InputError for another
  // shape.
  at::Tensor lookup(const at::Tensor& ids) const;
  // (B, N) -> (B, 3, S, S) float, nominally in [0, 1] but not clamped.
  at::Tensor decode(const at::Tensor& ids) const;
  // decode from now on in bfloat16 (the decoder's weights too: its file is not to be written any more). For
  // GPUs: a CPU gains nothing.
  void decode_in_bfloat16() { decoder->to_bfloat16(); }

  // The codebook as it is compared and looked up: (V, C), of unit length with normalize_codes.
  at::Tensor codebook() const;

  const TokenizerConfig& config() const { return config_; }
  int64_t grid() const { return config_.image_size / config_.factor(); }  // tokens per side at image_size
  int64_t factor() const { return config_.factor(); }

  // No gradients, evaluation mode.
  void prepare_for_inference();

  vqgan::Encoder encoder{nullptr};
  vqgan::Decoder decoder{nullptr};
  // Parameter "quantize.embedding.weight", (V, C), as trained (not normalised).
  at::Tensor embedding;

 private:
  TokenizerConfig config_;
};
TORCH_MODULE(Tokenizer);

inline constexpr const char* kTokenizerFormat = "1";
// A tokenizer file: the module's state, metadata "config" = config JSON and "format" = kTokenizerFormat. Floating-point
// tensors are stored as `dtype`. Written atomically.
void save_tokenizer(const std::filesystem::path& path, const TokenizerImpl& tokenizer,
                    at::ScalarType dtype = at::kFloat);

}  // namespace adanat
