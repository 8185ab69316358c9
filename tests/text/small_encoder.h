// A small CLIP text encoder with procedural weights: that of tests/golden/data (clip_text).
#pragma once
#include "core/nn/tensor_file.h"
#include "support/support.h"
#include "text/small_vocabulary.h"

namespace adanat::testing {

// The sizes of the golden file: 48 wide, 3 layers, 4 heads, MLP of 96, 77 positions, 600 tokens, projection
// to 40.
inline constexpr int64_t kWidth = 48, kLayers = 3, kHidden = 96, kPositions = 77, kTokens = 600,
                         kProjected = 40;

inline nlohmann::json golden_config(const std::string& activation) {
  return {
      {"model_type", "clip_text_model"}, {"hidden_size", kWidth},  {"num_hidden_layers", kLayers},
      {"num_attention_heads", 4},        {"vocab_size", kTokens},  {"intermediate_size", kHidden},
      {"hidden_act", activation},        {"layer_norm_eps", 1e-5}, {"max_position_embeddings", kPositions}};
}

inline TensorMap golden_weights() {
  TensorMap out;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    out[name] = procedural_weight(name, shape);
  };
  const auto pair = [&](const std::string& name, std::vector<int64_t> weight) {
    add(name + ".bias", {weight[0]});
    add(name + ".weight", std::move(weight));
  };
  const std::string model = "text_model.";
  add(model + "embeddings.token_embedding.weight", {kTokens, kWidth});
  add(model + "embeddings.position_embedding.weight", {kPositions, kWidth});
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = model + "encoder.layers." + std::to_string(i) + ".";
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"})
      pair(layer + "self_attn." + part, {kWidth, kWidth});
    pair(layer + "layer_norm1", {kWidth}), pair(layer + "layer_norm2", {kWidth});
    pair(layer + "mlp.fc1", {kHidden, kWidth}), pair(layer + "mlp.fc2", {kWidth, kHidden});
  }
  pair(model + "final_layer_norm", {kWidth});
  add("text_projection.weight", {kProjected, kWidth});
  return out;
}

// A folder with tokenizer and config, without weights.
inline void write_frame(const std::filesystem::path& folder,
                        const nlohmann::json& config = golden_config("quick_gelu")) {
  write_tokenizer(folder, {}, kTokens);
  write_text(folder / "config.json", config.dump());
}

// All of it: 77 states of width 48.
inline void write_small_encoder(const std::filesystem::path& folder) {
  write_frame(folder);
  write_tensors(folder / "model.safetensors", golden_weights());
}

}  // namespace adanat::testing
