#include "core/features/vit.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/base/error.h"

namespace adanat {
namespace {

constexpr const char* kPrefix = "dino.model.model.";
constexpr double kNormEpsilon = 1e-6;

struct Affine {
  at::Tensor weight, bias;
};

struct Block {
  Affine norm1, qkv, proj, norm2, fc1, fc2;
  at::Tensor scale1, scale2;  // undefined in networks without layer scale
};

// The root of a square number >= 1, else 0.
int64_t side_of(int64_t square) {
  if (square < 1) return 0;
  const auto side = int64_t(std::llround(std::sqrt(double(square))));
  return side * side == square ? side : 0;
}

class VitFeatures : public FeatureNet {
 public:
  VitFeatures(const TensorMap& tensors, const Metadata& metadata, const std::string& where) {
    const std::string prefix = tensors.contains("patch_embed.proj.weight") ? "" : kPrefix;
    TensorMap left;
    for (const auto& [name, tensor] :
         tensors)  // what stands beside the network in a discriminator's file is skipped
      if (name.starts_with(prefix)) left.emplace(name.substr(prefix.size()), tensor);
    const auto find = [&](const std::string& key, int64_t dim) {
      const auto found = left.find(key);
      if (found == left.end()) throw InputError(cat(where, ": lacks the tensor ", prefix, key));
      if (found->second.dim() != dim || !found->second.is_floating_point())
        throw InputError(cat(where, ": ", prefix, key, " has shape ", found->second.sizes(), " and type ",
                             found->second.scalar_type(), ", wanted ", dim, " dimensions of floats"));
      return found->second;
    };
    const auto take = [&](const std::string& key, at::IntArrayRef shape) {
      const at::Tensor value = find(key, int64_t(shape.size()));
      if (value.sizes() != shape)
        throw InputError(cat(where, ": ", prefix, key, " has shape ", value.sizes(), ", wanted ", shape));
      left.erase(key);
      return value.to(at::kFloat);
    };
    const auto affine = [&](const std::string& key, int64_t out, int64_t in) {
      return in > 0 ? Affine{take(key + ".weight", {out, in}), take(key + ".bias", {out})}
                    : Affine{take(key + ".weight", {out}), take(key + ".bias", {out})};
    };

    const at::Tensor patches = find("patch_embed.proj.weight", 4);
    width_ = patches.size(0), patch_ = patches.size(2);
    patch_weight_ = take("patch_embed.proj.weight", {width_, 3, patch_, patch_});
    patch_bias_ = take("patch_embed.proj.bias", {width_});
    prefix_ = take("cls_token", {1, 1, width_});
    if (left.contains("reg_token")) {
      const int64_t registers = find("reg_token", 3).size(1);
      prefix_ = at::cat({prefix_, take("reg_token", {1, registers, width_})}, 1);
    }
    // Positions are learned for every token, or (DeiT III, DINOv2 with registers) for the patches alone.
    const int64_t positions = find("pos_embed", 3).size(1), before = prefix_.size(1);
    grid_ = std::max(side_of(positions - before), side_of(positions));
    if (grid_ < 1)
      throw InputError(cat(where, ": ", prefix, "pos_embed has ", positions,
                           " positions, wanted a square number, or ", before, " more than one"));
    position_ = take("pos_embed", {1, positions, width_});
    if (positions == grid_ * grid_)
      position_ = at::cat({at::zeros({1, before, width_}), position_}, 1);  // adds nothing to the others

    heads_ = width_ / 64;
    if (const auto found = metadata.find("heads"); found != metadata.end()) {
      const std::string& text = found->second;
      heads_ = 0;
      std::from_chars(text.data(), text.data() + text.size(), heads_);
    }
    if (heads_ < 1 || width_ % heads_ != 0)
      throw InputError(cat(where, ": ", width_, " channels do not divide among ", heads_,
                           " attention heads; set the metadata key heads (default: channels / 64)"));

    for (int64_t i = 0; left.contains(cat("blocks.", i, ".norm1.weight")); ++i) {
      const std::string base = cat("blocks.", i, ".");
      Block& block = blocks_.emplace_back();
      block.norm1 = affine(base + "norm1", width_, 0);
      block.qkv = affine(base + "attn.qkv", 3 * width_, width_);
      block.proj = affine(base + "attn.proj", width_, width_);
      block.norm2 = affine(base + "norm2", width_, 0);
      const int64_t hidden = find(base + "mlp.fc1.weight", 2).size(0);
      block.fc1 = affine(base + "mlp.fc1", hidden, width_);
      block.fc2 = affine(base + "mlp.fc2", width_, hidden);
      if (left.contains(base + "ls1.gamma")) {
        block.scale1 = take(base + "ls1.gamma", {width_});
        block.scale2 = take(base + "ls2.gamma", {width_});
      }
    }
    const int64_t depth = int64_t(blocks_.size());
    if (depth < 4) throw InputError(cat(where, ": has ", depth, " blocks, wanted at least 4"));
    for (const auto& [key, tensor] : left)
      if (!key.starts_with("norm.") && !key.starts_with("fc_norm.") && !key.starts_with("head."))
        throw InputError(cat(where, ": holds a tensor that a timm ViT does not have: ", prefix, key));
    taps_ = {"position"};
    for (int64_t quarter = 1; quarter <= 4; ++quarter) {
      hooks_.push_back(quarter * depth / 4 - 1);
      taps_.push_back(cat("block", hooks_.back()));
    }
    mean_ = at::tensor({0.485, 0.456, 0.406}, at::kFloat).view({1, 3, 1, 1});
    deviation_ = at::tensor({0.229, 0.224, 0.225}, at::kFloat).view({1, 3, 1, 1});
  }

  std::string kind() const override { return "vit"; }
  std::vector<std::string> taps() const override { return taps_; }
  int64_t image_size() const override { return grid_ * patch_; }

  std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps) override {
    std::vector<at::Tensor> out(taps.size());
    size_t deepest = 0;
    for (const std::string& tap : taps) {
      const auto found = std::find(taps_.begin(), taps_.end(), tap);
      if (found == taps_.end()) {
        std::string known;
        for (const std::string& name : taps_) known += (known.empty() ? "" : ", ") + name;
        throw InputError(cat("no tap ", tap, "; this network has ", known));
      }
      deepest = std::max(deepest, size_t(found - taps_.begin()));
    }
    const int64_t b = images.size(0), side = grid_ * patch_;
    at::Tensor x = images;
    if (x.size(2) != side || x.size(3) != side) x = at::adaptive_avg_pool2d(x, {side, side});
    x = (x - mean_) / deviation_;
    x = at::conv2d(x, patch_weight_, patch_bias_, at::IntArrayRef({patch_, patch_}));
    x = x.flatten(2).transpose(1, 2);  // (B, positions, width)
    const int64_t before = prefix_.size(1);
    x = at::cat({prefix_.expand({b, before, width_}), x}, 1) + position_;
    const auto keep = [&](size_t index) {
      for (size_t i = 0; i < taps.size(); ++i)
        if (taps[i] == taps_[index])
          out[i] = (x.narrow(1, before, grid_ * grid_) + x.narrow(1, 0, 1))
                       .transpose(1, 2)
                       .reshape({b, width_, grid_, grid_});
      return index >= deepest;
    };
    if (keep(0)) return out;
    size_t next = 0;
    for (int64_t i = 0; i < int64_t(blocks_.size()); ++i) {
      x = run(blocks_[size_t(i)], x);
      if (i == hooks_[next] && keep(++next)) return out;
    }
    return out;
  }

  void to(at::Device device) override {
    const auto move = [&](at::Tensor& tensor) {
      if (tensor.defined()) tensor = tensor.to(device);
    };
    for (at::Tensor* tensor : {&patch_weight_, &patch_bias_, &prefix_, &position_, &mean_, &deviation_})
      move(*tensor);
    for (Block& block : blocks_) {
      for (Affine* part : {&block.norm1, &block.qkv, &block.proj, &block.norm2, &block.fc1, &block.fc2})
        move(part->weight), move(part->bias);
      move(block.scale1), move(block.scale2);
    }
  }

 private:
  at::Tensor run(const Block& block, const at::Tensor& x) const {
    const int64_t b = x.size(0), n = x.size(1);
    const auto norm = [&](const at::Tensor& v, const Affine& a) {
      return at::layer_norm(v, {width_}, a.weight, a.bias, kNormEpsilon);
    };
    const auto scaled = [](const at::Tensor& v, const at::Tensor& scale) {
      return scale.defined() ? v * scale : v;
    };
    const auto qkv = at::linear(norm(x, block.norm1), block.qkv.weight, block.qkv.bias)
                         .view({b, n, 3, heads_, width_ / heads_})
                         .permute({2, 0, 3, 1, 4})
                         .unbind(0);
    const at::Tensor mixed =
        at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape({b, n, width_});
    const at::Tensor h = x + scaled(at::linear(mixed, block.proj.weight, block.proj.bias), block.scale1);
    const at::Tensor inner = at::gelu(at::linear(norm(h, block.norm2), block.fc1.weight, block.fc1.bias));
    return h + scaled(at::linear(inner, block.fc2.weight, block.fc2.bias), block.scale2);
  }

  int64_t width_, patch_, grid_, heads_;
  at::Tensor patch_weight_, patch_bias_, prefix_, position_, mean_, deviation_;
  std::vector<Block> blocks_;
  std::vector<int64_t> hooks_;
  std::vector<std::string> taps_;
};

}  // namespace

bool has_vit_layout(const TensorMap& tensors) {
  return tensors.contains("patch_embed.proj.weight") ||
         tensors.contains(std::string(kPrefix) + "patch_embed.proj.weight");
}

std::unique_ptr<FeatureNet> make_vit_features(const TensorMap& tensors, const Metadata& metadata,
                                              const std::string& where) {
  return std::make_unique<VitFeatures>(tensors, metadata, where);
}

}  // namespace adanat
