// Vision transformers in timm's layout as frozen feature networks: the backbone of the projected
// discriminator. Source: docs/method.md section 6; timm vision_transformer.py (VisionTransformer), StyleGAN-T
// networks/discriminator.py.
#pragma once
#include "core/features/feature_net.h"
#include "core/nn/tensor_file.h"

namespace adanat {

// Whether the keys are those of a timm VisionTransformer, bare or behind "dino.model.model.".
bool has_vit_layout(const TensorMap& tensors);

// Width, depth, patch size and image size (a square grid) are read from the tensors:
// patch_embed.proj.{weight,bias}, cls_token, optionally reg_token (registers, as DINOv2 has them), pos_embed
// (of all tokens, or of the patches alone as in DeiT III),
// blocks.{i}.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}.{weight,bias}, optionally
// blocks.{i}.ls{1,2}.gamma; norm.*, fc_norm.* and head.* are not needed and ignored. Heads: metadata "heads",
// else width / 64 (every published size of timm).
//
// forward: images (B, 3, H, W) in [0, 1] are area-resized to the network's size (each pixel the mean of the
// whole input pixels it touches), normalised with ImageNet's mean and deviation. Taps, each (B, width, grid,
// grid) with the class token added to every patch token: "position" (after the position embedding) and
// "block<i>" for the last block of each quarter of the depth (12: block2, block5, block8, block11; 4:
// block0..block3). InputError naming `where` and the key: missing, surplus or misshapen tensors; a depth
// below 4.
std::unique_ptr<FeatureNet> make_vit_features(const TensorMap& tensors, const Metadata& metadata,
                                              const std::string& where);

}  // namespace adanat
