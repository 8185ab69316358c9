#include "core/generator/shapes.h"

namespace adanat {
namespace {

void add_layer(ShapeMap& shapes, const std::string& name, std::vector<int64_t> weight, bool bias = true) {
  if (bias) shapes[name + ".bias"] = {weight[0]};
  shapes[name + ".weight"] = std::move(weight);
}

void add_embedding(ShapeMap& shapes, const std::string& name, int64_t vocabulary, int64_t positions,
                   int64_t width) {
  shapes[name + ".word_embeddings.weight"] = {vocabulary, width};
  shapes[name + ".position_embeddings.weight"] = {positions, width};
  add_layer(shapes, name + ".LayerNorm", {width});
}

void add_block(ShapeMap& shapes, const std::string& name, int64_t width, bool takes_skip) {
  if (takes_skip) add_layer(shapes, name + ".skip_linear", {width, 2 * width});
  add_layer(shapes, name + ".norm1", {width});
  add_layer(shapes, name + ".attn.qkv", {3 * width, width}, /*bias=*/false);
  add_layer(shapes, name + ".attn.proj", {width, width});
  add_layer(shapes, name + ".norm2", {width});
  add_layer(shapes, name + ".mlp.fc1", {4 * width, width});
  add_layer(shapes, name + ".mlp.fc2", {width, 4 * width});
}

}  // namespace

ShapeMap generator_shapes(const GeneratorConfig& config) {
  config.validate();
  const int64_t d = config.width;
  ShapeMap shapes;
  add_embedding(shapes, "token_emb", config.codes + 1, config.tokens(), d);
  if (config.condition == "class")
    add_embedding(shapes, "context_embed", config.classes + 1, 1, d);
  else
    add_layer(shapes, "context_embed", {d, config.text_width});
  for (int64_t i = 0; i < config.depth / 2; ++i) {
    add_block(shapes, "in_blocks." + std::to_string(i), d, false);
    add_block(shapes, "out_blocks." + std::to_string(i), d, true);
  }
  add_block(shapes, "mid_block", d, false);
  add_layer(shapes, "norm", {d});
  add_layer(shapes, "mlm_layer.fc", {d, d});
  add_layer(shapes, "mlm_layer.ln", {d});
  shapes["mlm_layer.bias"] = {1, 1, config.codes + 1};
  return shapes;
}

}  // namespace adanat
