// CLIP's text encoder: the text tower of ViT-L/14, ViT-bigG and their like, from a Hugging Face folder.
// Inference only. Source: transformers, modeling_clip.py, CLIPTextModelWithProjection.
// Legend: B texts, L tokens of a text, C width.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/nn/tensor_file.h"
#include "core/text/bpe.h"

namespace adanat {

// Sizes follow from the tensors; what tensors cannot tell comes from config.json.
struct ClipTextConfig {
  int64_t width = 0, layers = 0, heads = 0, hidden = 0;  // C; hidden: of the MLP
  int64_t positions = 0, vocabulary = 0;
  int64_t projected = 0;                  // width of `pooled`
  std::string activation = "quick_gelu";  // or "gelu"
  double eps = 1e-5;
};

struct ClipTextOutput {
  at::Tensor states;  // (B, L, C) f32: the last hidden states, after the final layer norm
  at::Tensor pooled;  // (B, P) f32: the state at the first end token, times the projection where there is one
};

// Weights are float32 on `device`; on a CPU float32 files stay mapped and cost no memory of their own.
// Immutable and thread-safe.
class ClipTextEncoder {
 public:
  // Reads config.json (a text tower's, or a whole CLIP's with "text_config"), the weights (model.safetensors,
  // its shards by model.safetensors.index.json, pytorch_model.bin or its shards; a vision tower beside them
  // is left alone) and the tokenizer's files (in the folder, in tokenizer/ in it or beside it). `pad`: see
  // BpeTokenizer::open. InputError naming file, key and both sides: missing, damaged, of another kind.
  static ClipTextEncoder open(const std::filesystem::path& folder, at::Device device,
                              const std::string& pad = "");

  const ClipTextConfig& config() const { return config_; }
  const BpeTokenizer& tokenizer() const { return tokenizer_; }
  // SHA-256 over what fixes the states of a text: settings, tokenizer and weights. Reads all of the files.
  std::string hash() const;
  // The files that were read.
  const std::vector<std::filesystem::path>& files() const { return files_; }

  // ids (B, L) i64 in [0, vocabulary), 1 <= L <= positions, each row with an end token.
  ClipTextOutput forward(const at::Tensor& ids) const;
  // Token ids of texts, padded to `positions`: (B, positions) i64 on the CPU. A warning names each text that
  // does not fit and what of it was cut; where `cut` is given, their number is added to it instead.
  at::Tensor tokenize(const std::vector<std::string>& texts, int64_t* cut = nullptr) const;
  // forward(tokenize(texts)), `batch_size` texts at a time; on the device.
  ClipTextOutput encode(const std::vector<std::string>& texts, int64_t batch_size = 16,
                        int64_t* cut = nullptr) const;

 private:
  struct Norm {
    at::Tensor weight, bias;
  };
  struct Linear {
    at::Tensor weight, bias;  // bias undefined: none
  };
  struct Layer {
    Norm norm1, norm2;
    Linear q, k, v, out, fc1, fc2;
  };

  ClipTextEncoder(BpeTokenizer tokenizer, at::Device device)
      : tokenizer_(std::move(tokenizer)), device_(device) {}
  at::Tensor run_layer(const Layer& layer, const at::Tensor& x) const;

  ClipTextConfig config_;
  BpeTokenizer tokenizer_;
  at::Device device_;
  std::vector<std::filesystem::path> files_;
  at::Tensor token_embedding_, position_embedding_;
  std::vector<Layer> layers_;
  Norm final_norm_;
  at::Tensor projection_;  // undefined: none
};

}  // namespace adanat
