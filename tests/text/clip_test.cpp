// The text encoder against transformers' (tests/golden/data/README.md: clip_text), and the files it reads.
#include "core/text/clip.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/base/error.h"
#include "support/support.h"
#include "text/small_encoder.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::golden;
using testing::golden_config;
using testing::golden_weights;
using testing::kPositions;
using testing::kProjected;
using testing::kTokens;
using testing::kWidth;
using testing::procedural_weight;
using testing::TempDir;
using testing::write_frame;
using testing::write_text;
using testing::write_tokenizer;

ClipTextEncoder open(const TempDir& dir) {
  return ClipTextEncoder::open(dir.path(), at::kCPU);
}

std::string refusal(const TempDir& dir) {
  try {
    open(dir);
  } catch (const InputError& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e.what();
  }
  return "read it";
}

#define EXPECT_SAYS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << text

TEST(ClipText, MatchesReference) {
  const auto& g = golden("clip_text.safetensors");
  for (const std::string activation : {"quick_gelu", "gelu"}) {
    const TempDir dir;
    write_frame(dir.path(), golden_config(activation));
    write_tensors(dir / "model.safetensors", golden_weights());
    const ClipTextOutput out = open(dir).forward(g["ids"]);
    // The reference itself, float32 against float64: 2e-6 in the states, 9e-7 in the pooled ones. 1e-5 is
    // promised.
    EXPECT_CLOSE(out.states, g[activation + ".states"], 1e-5);
    EXPECT_CLOSE(out.pooled, g[activation + ".pooled"], 1e-5);
  }
}

TEST(ClipText, EncodesTexts) {
  const TempDir dir;
  write_frame(dir.path());
  write_tensors(dir / "model.safetensors", golden_weights());
  const ClipTextEncoder encoder = open(dir);
  const std::vector<std::string> texts = {"a cat", "", "a dog with a long tail", "a cat"};
  const at::Tensor ids = encoder.tokenize(texts);
  EXPECT_EQ(ids.sizes(), at::IntArrayRef({4, kPositions}));
  EXPECT_EQ(ids[1][0].item<int64_t>(), kTokens - 2);
  EXPECT_TRUE((ids[1].narrow(0, 1, kPositions - 1) == kTokens - 1).all().item<bool>());
  const ClipTextOutput all = encoder.encode(texts, 3);
  EXPECT_EQ(all.states.sizes(), at::IntArrayRef({4, kPositions, kWidth}));
  EXPECT_EQ(all.pooled.sizes(), at::IntArrayRef({4, kProjected}));
  EXPECT_CLOSE(all.states[3], all.states[0], 1e-6);  // whatever batch it stands in
  EXPECT_CLOSE(encoder.encode({"a dog with a long tail"}).states[0], all.states[2], 1e-6);
  // What comes behind does not reach what came before; what came before does reach what comes behind.
  at::Tensor other = ids.clone();
  other.select(1, 10).fill_(7);
  const at::Tensor changed = encoder.forward(other).states;
  EXPECT_CLOSE(changed.narrow(1, 0, 10), all.states.narrow(1, 0, 10), 1e-6);
  EXPECT_GT(
      (changed.narrow(1, 10, 67) - all.states.narrow(1, 10, 67)).abs().amax({0, 2}).min().item<double>(),
      1e-4);
  // Pooled at the first end token, whatever stands behind it.
  other = ids.clone();
  other[1][1] = 3, other[1][2] = 4, other[1][3] = kTokens - 1;
  const ClipTextOutput moved = encoder.forward(other);
  EXPECT_CLOSE(moved.pooled[1],
               moved.states[1][3].matmul(procedural_weight("text_projection.weight", {40, 48}).t()), 1e-5);
}

TEST(ClipText, ReadsEveryLayoutOfFiles) {
  const TempDir dir;
  write_frame(dir.path());
  const TensorMap weights = golden_weights();
  write_tensors(dir / "model.safetensors", weights);
  const at::Tensor expected = open(dir).encode({"a cat"}).states;
  const std::string hash = open(dir).hash();
  EXPECT_EQ(hash.size(), 64u);
  EXPECT_EQ(open(dir).hash(), hash);
  EXPECT_NE(ClipTextEncoder::open(dir.path(), at::kCPU, "!").hash(), hash);

  // A whole CLIP: a vision tower and old keys beside, the text tower's settings inside.
  TensorMap whole = weights;
  whole["vision_model.embeddings.class_embedding"] = at::zeros({8});
  whole["visual_projection.weight"] = at::zeros({8, 8});
  whole["logit_scale"] = at::zeros({});
  whole["text_model.embeddings.position_ids"] = at::arange(kPositions).view({1, kPositions});
  write_tensors(dir / "model.safetensors", whole);
  write_text(
      dir / "config.json",
      json{{"model_type", "clip"}, {"hidden_size", 9}, {"text_config", golden_config("quick_gelu")}}.dump());
  EXPECT_CLOSE(open(dir).encode({"a cat"}).states, expected, 0);
  EXPECT_NE(open(dir).hash(), hash);

  // Names without the prefix; no projection: pooled is the state itself.
  TensorMap bare;
  for (const auto& [name, tensor] : weights)
    if (name.starts_with("text_model.")) bare[name.substr(11)] = tensor;
  write_tensors(dir / "model.safetensors", bare);
  EXPECT_CLOSE(open(dir).encode({"a cat"}).states, expected, 0);
  EXPECT_EQ(open(dir).config().projected, kWidth);

  // Half precision: as the rounded weights in float32.
  TensorMap half;
  for (const auto& [name, tensor] : weights) half[name] = tensor.to(at::kHalf);
  write_tensors(dir / "model.safetensors", half);
  EXPECT_CLOSE(open(dir).encode({"a cat"}).states, expected, 0.02);

  // Shards, and the tokenizer in a folder of its own.
  fs::remove(dir / "model.safetensors");
  TensorMap shards[2];
  json map;
  size_t i = 0;
  for (const auto& [name, tensor] : weights) {
    shards[i % 2][name] = tensor;
    map[name] = "model-0000" + std::to_string(1 + i++ % 2) + "-of-00002.safetensors";
  }
  write_tensors(dir / "model-00001-of-00002.safetensors", shards[0]);
  write_tensors(dir / "model-00002-of-00002.safetensors", shards[1]);
  write_text(dir / "model.safetensors.index.json", json{{"weight_map", map}}.dump());
  fs::create_directory(dir / "tokenizer");
  for (const char* file : {"vocab.json", "merges.txt"}) fs::rename(dir / file, dir / "tokenizer" / file);
  EXPECT_CLOSE(open(dir).encode({"a cat"}).states, expected, 0);
  EXPECT_EQ(open(dir).files().size(), 6u);  // config, vocab, merges, index, two shards

  fs::remove(dir / "model-00002-of-00002.safetensors");
  EXPECT_SAYS(refusal(dir), "model-00002-of-00002.safetensors: this shard of the text encoder is missing");
  write_tensors(dir / "model-00002-of-00002.safetensors", shards[0]);
  EXPECT_SAYS(refusal(dir), "which the index puts there");
  for (const char* file : {"../model.safetensors", "/etc/passwd", "..", ""}) {
    write_text(dir / "model.safetensors.index.json", json{{"weight_map", {{"a", file}}}}.dump());
    EXPECT_SAYS(refusal(dir), "weight_map.a must name a file beside it");
  }
  write_text(dir / "model.safetensors.index.json", "[]");
  EXPECT_SAYS(refusal(dir), "must hold {\"weight_map\"");
}

TEST(ClipText, NamesWhatDoesNotFit) {
  const TempDir dir;
  EXPECT_SAYS(refusal(dir), "no config.json");
  write_frame(dir.path());
  EXPECT_SAYS(refusal(dir), "holds no weights");
  TensorMap weights = golden_weights();
  const auto with = [&](const std::function<void(TensorMap&)>& change) {
    TensorMap changed = weights;
    change(changed);
    write_tensors(dir / "model.safetensors", changed);
    return refusal(dir);
  };
  const std::string fc2 = "text_model.encoder.layers.1.mlp.fc2.weight";
  EXPECT_SAYS(with([&](TensorMap& w) { w.erase(fc2); }), "lacks " + fc2);
  EXPECT_SAYS(with([&](TensorMap& w) {
                w.erase(fc2), w.erase("text_model.final_layer_norm.bias");
                w["text_model.encoder.layers.3.mlp.fc3.weight"] = at::zeros({1});
              }),
              "lacks " + fc2 +
                  ", text_model.final_layer_norm.bias; holds "
                  "text_model.encoder.layers.3.mlp.fc3.weight, which the model does not have");
  EXPECT_SAYS(with([&](TensorMap& w) {
                const std::string last = "text_model.encoder.layers.2.";
                for (const auto& [name, tensor] : weights)
                  if (name.starts_with(last))
                    w["text_model.encoder.layers.3." + name.substr(last.size())] = tensor;
              }),
              "num_hidden_layers is 3, but the weights have 4");
  EXPECT_SAYS(with([&](TensorMap& w) {
                w.erase(fc2), w.erase("text_model.final_layer_norm.bias");
                w["text_model.encoder.layers.0.mlp.fc3.weight"] = at::zeros({1});
              }),
              "lacks " + fc2 +
                  ", text_model.final_layer_norm.bias; holds "
                  "text_model.encoder.layers.0.mlp.fc3.weight, which the model does not have");
  EXPECT_SAYS(with([&](TensorMap& w) {
                w["text_projection.weight"] = at::zeros({40, 47});
              }),
              "text_projection.weight has shape [40, 47], must be [40, 48]");
  EXPECT_SAYS(with([&](TensorMap& w) {
                w[fc2] = at::zeros({48, 95});
              }),
              fc2 + " has shape [48, 95], must be [48, 96]");
  EXPECT_SAYS(with([&](TensorMap& w) { w[fc2] = at::zeros({48, 96}, at::kLong); }), "must hold fractions");
  EXPECT_SAYS(with([&](TensorMap& w) { w[fc2][3][3] = NAN; }), "holds NaN or infinity");
  EXPECT_SAYS(with([](TensorMap& w) { w = {{"x", at::zeros({1})}}; }), "holds no CLIP text encoder");
  weights = golden_weights();
  write_tensors(dir / "model.safetensors", weights);
  const auto config = [&](const std::function<void(json&)>& change) {
    json changed = golden_config("gelu");
    change(changed);
    write_text(dir / "config.json", changed.dump());
    return refusal(dir);
  };
  EXPECT_SAYS(config([](json& c) { c["num_hidden_layers"] = 12; }),
              "num_hidden_layers is 12, but the weights have 3");
  EXPECT_SAYS(config([](json& c) { c["hidden_size"] = 40; }), "hidden_size is 40, but the weights have 48");
  EXPECT_SAYS(config([](json& c) { c["intermediate_size"] = 4; }),
              "intermediate_size is 4, but the weights have 96");
  EXPECT_SAYS(config([](json& c) { c["max_position_embeddings"] = 70; }),
              "max_position_embeddings is 70, but the weights have 77");
  EXPECT_SAYS(config([](json& c) { c["vocab_size"] = 700; }), "vocab_size is 700, but the weights have 600");
  EXPECT_SAYS(config([](json& c) { c["num_attention_heads"] = 5; }), "must divide the width 48, got 5");
  EXPECT_SAYS(config([](json& c) { c["hidden_act"] = "relu"; }),
              "hidden_act must be quick_gelu or gelu, got relu");
  EXPECT_SAYS(config([](json& c) { c["layer_norm_eps"] = -1; }), "layer_norm_eps must be in (0, 1)");
  EXPECT_SAYS(config([](json& c) { c["vocab_size"] = -4; }), "vocab_size must be 1..");
  EXPECT_SAYS(config([](json& c) { c["model_type"] = "t5"; }), "model_type is \"t5\"");
  EXPECT_SAYS(config([](json& c) { c["hidden_size"] = "wide"; }), "hidden_size");
  write_frame(dir.path());
  write_tokenizer(dir.path(), {}, kTokens + 1);
  EXPECT_SAYS(refusal(dir), "ids up to 600, but the encoder knows 600 tokens");
}

}  // namespace
}  // namespace adanat
