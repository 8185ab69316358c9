#include "core/features/vit.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "core/base/error.h"
#include "support/golden_noise.h"
#include "support/message_of.h"
#include "support/vit_tensors.h"

namespace adanat {
namespace {
using at::indexing::Slice;
using testing::golden_tolerance;
using testing::message_of;
using testing::TempDir;
using testing::vit_tensors;
using testing::VitShape;

constexpr const char* kFile = "discriminator.safetensors";
constexpr VitShape kMini{.width = 16, .depth = 5, .patch = 4, .image = 16};

// Taps in the golden order: blocks, then the position embedding.
void expect_golden(FeatureNet& net, const std::string& name, const at::Tensor& images, int64_t channel_step) {
  const testing::Golden& g = testing::golden(kFile);
  const at::NoGradGuard no_grad;
  std::vector<std::string> taps = net.taps();
  std::rotate(taps.begin(), taps.begin() + 1, taps.end());
  const auto values = net.forward(images, taps);
  for (size_t i = 0; i < 5; ++i) {
    const std::string key = cat(name, ".tap", i);
    const at::Tensor tokens = values[i].flatten(2);
    EXPECT_CLOSE(tokens.index({Slice(), Slice(0, {}, channel_step), Slice(0, {}, 14)}), g[key + "_slice"],
                 golden_tolerance(kFile, key + "_slice"))
        << key;
    // An L2 norm sums over the whole tap: relative to its own size.
    const at::Tensor norms = at::linalg_vector_norm(tokens.to(at::kDouble).flatten(1), 2, {1});
    EXPECT_CLOSE(norms / g[key + "_l2"], at::ones_like(norms), 1e-5) << key;
  }
}

TEST(Vit, GoldenTiny) {
  const auto net = make_vit_features(vit_tensors({}, "dino.model.model."), {{"heads", "4"}}, "tiny");
  EXPECT_EQ(net->taps(), (std::vector<std::string>{"position", "block0", "block1", "block2", "block3"}));
  EXPECT_EQ(net->image_size(), 224);
  expect_golden(*net, "vit_tiny.img40", testing::input_u("vit.img40", {2, 3, 40, 40}), 4);
  expect_golden(*net, "vit_tiny.img256", testing::input_u("vit.img256", {1, 3, 256, 256}), 4);
  expect_golden(*net, "vit_tiny.img224", testing::input_u("vit.img224", {1, 3, 224, 224}), 4);
}

TEST(Vit, GoldenSmall) {
  // 384 channels: 6 heads of 64 without being told.
  const auto net =
      make_vit_features(vit_tensors({.width = 384, .depth = 12}, "dino.model.model."), {}, "small");
  EXPECT_EQ(net->taps(), (std::vector<std::string>{"position", "block2", "block5", "block8", "block11"}));
  expect_golden(*net, "vit_small.img256", testing::input_u("vit.img256", {1, 3, 256, 256}), 24);
}

TEST(Vit, BarePrefixAndClassifierHeadGiveTheSame) {
  TempDir dir;
  TensorMap bare, prefixed;
  for (const auto& [key, tensor] : vit_tensors(kMini, ""))
    bare[key] = prefixed["dino.model.model." + key] = tensor;
  bare["head.weight"] = at::zeros({10, 16});
  prefixed["heads.0.cls.bias"] = at::zeros({64});  // a whole discriminator's file
  write_tensors(dir / "bare.safetensors", bare, {{"heads", "2"}});
  write_tensors(dir / "prefixed.safetensors", prefixed, {{"heads", "2"}});
  const auto a = load_feature_net(dir / "bare.safetensors"),
             b = load_feature_net(dir / "prefixed.safetensors");
  EXPECT_EQ(a->kind(), "vit");
  EXPECT_EQ(a->taps(), (std::vector<std::string>{"position", "block0", "block1", "block2", "block4"}));
  EXPECT_EQ(a->image_size(), 16);
  EXPECT_FALSE(a->file_hash().empty());
  const at::NoGradGuard no_grad;
  const at::Tensor images = testing::input_u("vit_test.images", {2, 3, 20, 20});
  const auto some = a->forward(images, {"block4", "position"});
  EXPECT_EQ(some[0].sizes(), (at::IntArrayRef{2, 16, 4, 4}));
  EXPECT_CLOSE(some[0], b->forward(images, {"block4"})[0], 0);
  EXPECT_CLOSE(some[1], b->forward(images, {"position"})[0], 0);
  EXPECT_GT((some[0][0] - some[0][1]).abs().max().item<double>(), 1e-3)
      << "different images must look different";
}

TEST(Vit, LayerScaleMultipliesTheBranches) {
  TensorMap plain = vit_tensors(kMini, ""), scaled = plain;
  for (int64_t i = 0; i < kMini.depth; ++i) {
    scaled[cat("blocks.", i, ".ls1.gamma")] = at::tensor({0.5f}).expand({16});
    scaled[cat("blocks.", i, ".ls2.gamma")] = at::tensor({0.25f}).expand({16});
    for (const char* part : {"weight", "bias"}) {
      plain[cat("blocks.", i, ".attn.proj.", part)] = plain[cat("blocks.", i, ".attn.proj.", part)] * 0.5;
      plain[cat("blocks.", i, ".mlp.fc2.", part)] = plain[cat("blocks.", i, ".mlp.fc2.", part)] * 0.25;
    }
  }
  const at::Tensor images = testing::input_u("vit_test.images", {2, 3, 16, 16});
  const auto a = make_vit_features(scaled, {{"heads", "2"}}, "a"),
             b = make_vit_features(plain, {{"heads", "2"}}, "b");
  // Powers of two: the same up to the order of the multiplications.
  EXPECT_CLOSE(a->forward(images, {"block4"})[0], b->forward(images, {"block4"})[0], 1e-5);
}

// Taps of all five places, as one tensor.
at::Tensor all_taps(const TensorMap& tensors, const at::Tensor& images) {
  const auto net = make_vit_features(tensors, {{"heads", "2"}}, "mini");
  const at::NoGradGuard no_grad;
  return at::stack(net->forward(images, net->taps()));
}

// Positions of the patches alone are those of all tokens with nothing added to the class token.
TEST(Vit, PositionsMayBeOfThePatchesAlone) {
  const at::Tensor images = testing::input_u("vit_test.images", {2, 3, 16, 16});
  TensorMap all = vit_tensors(kMini, ""), patches = all;
  patches["cls_token"] = all["cls_token"] + all["pos_embed"].narrow(1, 0, 1);
  patches["pos_embed"] = all["pos_embed"].narrow(1, 1, 16);
  EXPECT_CLOSE(all_taps(patches, images), all_taps(all, images), 1e-5);  // sums of 16 floats, in 5 blocks
}

TEST(Vit, RegistersAreTokensThatNoTapShows) {
  const at::Tensor images = testing::input_u("vit_test.images", {2, 3, 16, 16});
  TensorMap plain = vit_tensors(kMini, ""), with = plain;
  const at::Tensor registers = testing::input_u("vit_test.registers", {1, 4, 16}) - 0.5;
  const at::Tensor positions = testing::input_u("vit_test.positions", {1, 4, 16}) - 0.5;
  const at::Tensor of_class = plain["pos_embed"].narrow(1, 0, 1),
                   of_patches = plain["pos_embed"].narrow(1, 1, 16);
  // With a position each, or with those added beforehand.
  with["reg_token"] = registers;
  with["pos_embed"] = at::cat({of_class, positions, of_patches}, 1);
  const at::Tensor made = all_taps(with, images);
  TensorMap added = plain;
  added["cls_token"] = plain["cls_token"] + of_class;
  added["reg_token"] = registers + positions;
  added["pos_embed"] = of_patches;
  EXPECT_CLOSE(all_taps(added, images), made, 1e-5);
  // They stand in no order.
  TensorMap turned = with;
  turned["reg_token"] = registers.flip(1);
  turned["pos_embed"] = at::cat({of_class, positions.flip(1), of_patches}, 1);
  EXPECT_CLOSE(all_taps(turned, images), made, 1e-5);
  // The embedding does not see them, the blocks do.
  const at::Tensor without = all_taps(plain, images);
  EXPECT_CLOSE(made[0], without[0], 0);
  EXPECT_GT((made[1] - without[1]).abs().max().item<double>(), 1e-4);
}

TEST(Vit, GradientsReachTheImagesOnly) {
  const auto net = make_vit_features(vit_tensors(kMini, ""), {{"heads", "2"}}, "mini");
  const at::Tensor images = testing::input_u("vit_test.images", {2, 3, 20, 20}).requires_grad_();
  net->forward(images, {"block4"})[0].square().sum().backward();
  EXPECT_GT(images.grad().abs().min().item<double>(), 0);
}

TEST(Vit, RefusesWhatDoesNotFit) {
  const TensorMap good = vit_tensors(kMini, "");
  const auto message = [](const TensorMap& tensors, const Metadata& metadata) -> std::string {
    return message_of([&] { make_vit_features(tensors, metadata, "some.safetensors"); });
  };
  const Metadata heads{{"heads", "2"}};
  const auto expect = [&](const std::string& got, const std::string& part) {
    EXPECT_NE(got.find("some.safetensors"), std::string::npos) << got;
    EXPECT_NE(got.find(part), std::string::npos) << got;
  };
  TensorMap bad = good;
  bad.erase("blocks.1.attn.qkv.bias");
  expect(message(bad, heads), "lacks the tensor blocks.1.attn.qkv.bias");
  bad = good;
  bad["blocks.2.mlp.fc2.weight"] = at::zeros({16, 63});
  expect(message(bad, heads), "blocks.2.mlp.fc2.weight has shape [16, 63], wanted [16, 64]");
  bad = good;
  bad["pos_embed"] = at::zeros({1, 15, 16});
  expect(message(bad, heads), "15 positions, wanted a square number, or 1 more than one");
  bad = good;
  bad["reg_token"] = at::zeros({1, 4, 16});
  expect(message(bad, heads), "17 positions, wanted a square number, or 5 more than one");
  bad = good;
  bad["register_token"] = at::zeros({1, 4, 16});
  expect(message(bad, heads), "register_token");
  bad = good;
  bad["cls_token"] = at::zeros({1, 1, 16}, at::kLong);
  expect(message(bad, heads), "cls_token");
  expect(message(good, {}), "attention heads");
  expect(message(good, {{"heads", "3"}}), "3 attention heads");
  expect(message(good, {{"heads", "many"}}), "0 attention heads");
  expect(message(vit_tensors({.width = 16, .depth = 3, .patch = 4, .image = 16}, ""), heads), "3 blocks");
  EXPECT_THROW(make_vit_features(good, heads, "x")->forward(at::zeros({1, 3, 16, 16}), {"pool"}), InputError);
}

}  // namespace
}  // namespace adanat
