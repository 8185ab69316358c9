// Tensors of a vision transformer in timm's layout, filled by the rule of the golden files.
#pragma once
#include <string>

#include "support/support.h"

namespace adanat::testing {

struct VitShape {
  int64_t width = 64, depth = 4, patch = 16, image = 224;
};

inline TensorMap vit_tensors(const VitShape& shape, const std::string& prefix) {
  TensorMap out;
  const auto add = [&](const std::string& key, at::IntArrayRef sizes) {
    out[prefix + key] = procedural_weight(prefix + key, sizes);
  };
  const int64_t d = shape.width, grid = shape.image / shape.patch;
  const auto affine = [&](const std::string& key, int64_t rows, int64_t columns) {
    if (columns > 0)
      add(key + ".weight", {rows, columns});
    else
      add(key + ".weight", {rows});
    add(key + ".bias", {rows});
  };
  add("patch_embed.proj.weight", {d, 3, shape.patch, shape.patch});
  add("patch_embed.proj.bias", {d});
  add("cls_token", {1, 1, d});
  add("pos_embed", {1, grid * grid + 1, d});
  for (int64_t i = 0; i < shape.depth; ++i) {
    const std::string base = "blocks." + std::to_string(i) + ".";
    affine(base + "norm1", d, 0);
    affine(base + "attn.qkv", 3 * d, d);
    affine(base + "attn.proj", d, d);
    affine(base + "norm2", d, 0);
    affine(base + "mlp.fc1", 4 * d, d);
    affine(base + "mlp.fc2", d, 4 * d);
  }
  affine("norm", d, 0);
  return out;
}

}  // namespace adanat::testing
