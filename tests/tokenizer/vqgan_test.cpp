#include "tokenizer/vqgan.h"

#include <ATen/ATen.h>

#include "core/nn/module_state.h"
#include "kernels/nearest_code.h"
#include "support/support.h"
#include "tokenizer/quantizer.h"
#include "tokenizer/read_back.h"
#include "tokenizer/shapes.h"

namespace adanat {
namespace {

using testing::fill_procedural;
using testing::golden;
using testing::Golden;

TokenizerConfig small_config() {
  TokenizerConfig config;
  config.image_size = 16;
  config.channels = 32;
  config.channel_multipliers = {1, 1, 2};
  config.latent_channels = 32;
  config.codes = 64;
  config.shortcut_from = "hidden";
  return config;
}

TokenizerConfig tiny_config() {
  TokenizerConfig config;
  config.image_size = 16;
  config.channels = 8;
  config.channel_multipliers = {1, 2};
  config.residual_blocks = 1;
  config.latent_channels = 6;
  config.codes = 11;
  return config;
}

class Vqgan : public ::testing::Test {
 protected:
  const at::NoGradGuard no_grad;
};

// Tolerances: tests/golden/data/README.md.
TEST_F(Vqgan, GoldenSmall) {
  const Golden& g = golden("vqgan.safetensors");
  Tokenizer tokenizer(small_config());
  EXPECT_EQ(parameter_count(*tokenizer), 806979);
  fill_procedural(*tokenizer);
  EXPECT_CLOSE(testing::input_u("vqgan.image", {2, 3, 16, 16}), g["image"], 0);

  const at::Tensor z = tokenizer->latents(g["image"]);
  EXPECT_CLOSE(z, g["z"], 1e-4);
  EXPECT_CLOSE(tokenizer->encode(g["image"]), g["ids"], 0);
  const at::Tensor rows = g["z"].permute({0, 2, 3, 1}).reshape({-1, 32}).contiguous();
  const auto nearest = kernels::nearest_code(rows, tokenizer->codebook());
  EXPECT_CLOSE(nearest.ids.view({2, 16}), g["ids"], 0);
  EXPECT_CLOSE(nearest.distance.view({2, 16}), g["nearest_distance"], 1e-4);
  EXPECT_CLOSE(tokenizer->decode(g["codes"].view({2, 16})), g["decoded"], 1e-4);
  EXPECT_CLOSE(tokenizer->decode(g["ids"]), g["decoded_from_encoded"], 1e-4);
}

// The layout that inference uses must give the same pictures.
TEST_F(Vqgan, PreparedForInferenceGivesTheSame) {
  const Golden& g = golden("vqgan.safetensors");
  Tokenizer tokenizer(small_config());
  fill_procedural(*tokenizer);
  tokenizer->prepare_for_inference();
  EXPECT_CLOSE(tokenizer->latents(g["image"]), g["z"], 1e-4);
  EXPECT_CLOSE(tokenizer->encode(g["image"]), g["ids"], 0);
  EXPECT_CLOSE(tokenizer->decode(g["ids"]), g["decoded_from_encoded"], 1e-4);
  for (const at::Tensor& parameter : tokenizer->parameters()) EXPECT_FALSE(parameter.requires_grad());
}

TEST_F(Vqgan, GoldenF16) {
  const Golden& g = golden("vqgan_f16.safetensors");
  TokenizerConfig config;
  config.shortcut_from = "hidden";
  Tokenizer tokenizer(config);
  EXPECT_EQ(parameter_count(*tokenizer), 54515587);
  EXPECT_EQ(tokenizer->factor(), 16);
  EXPECT_EQ(tokenizer->grid(), 16);
  fill_procedural(*tokenizer);

  const at::Tensor image = testing::input_u("vqgan_f16.image", {1, 3, 64, 64});
  const at::Tensor z = tokenizer->latents(image);
  ASSERT_EQ(z.sizes(), at::IntArrayRef({1, 256, 4, 4}));
  EXPECT_CLOSE(z.slice(1, 0, 256, 16), g["z_slice"], 1e-4);
  EXPECT_NEAR(z.norm().item<double>(), g["z_l2"].item<double>(), 1e-3);
  EXPECT_CLOSE(tokenizer->encode(image), g["ids"], 0);
  const at::Tensor decoded = tokenizer->decode(g["codes"].view({1, 16}));
  EXPECT_CLOSE(decoded.slice(2, 0, 64, 2).slice(3, 0, 64, 2), g["decoded_slice"], 2e-4);
  EXPECT_CLOSE(decoded.to(at::kDouble).mean({2, 3}), g["decoded_mean"], 1e-5);
  const at::Tensor again = tokenizer->decode(g["ids"]);
  EXPECT_CLOSE(again.slice(2, 0, 64, 4).slice(3, 0, 64, 4), g["decoded_from_encoded_slice"], 2e-4);
}

TEST_F(Vqgan, PublicNames) {
  const TensorMap state = module_state(*Tokenizer(small_config()));
  for (const char* name :
       {"encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight",
        "encoder.down.2.block.0.nin_shortcut.weight", "encoder.down.2.block.1.conv2.weight",
        "encoder.mid.block_1.norm1.bias", "encoder.norm_out.bias", "encoder.conv_out.bias",
        "decoder.conv_in.bias", "decoder.mid.block_2.conv1.weight",
        "decoder.up.1.block.0.nin_shortcut.weight", "decoder.up.2.upsample.conv.bias",
        "decoder.norm_out.weight", "decoder.conv_out.bias", "quantize.embedding.weight"})
    EXPECT_TRUE(state.contains(name)) << name;
  EXPECT_FALSE(state.contains("encoder.conv_in.bias"));
  EXPECT_FALSE(state.contains("decoder.up.0.upsample.conv.weight"));
  EXPECT_EQ(state.at("encoder.conv_out.weight").sizes(), at::IntArrayRef({32, 64, 1, 1}));
}

// Where the shortcut of a block that changes its channels comes from, against the formula.
TEST_F(Vqgan, BothShortcutForms) {
  for (const bool hidden : {true, false}) {
    vqgan::ResidualBlock block(8, 24, hidden);
    fill_procedural(*block);
    const TensorMap w = module_state(*block);
    EXPECT_EQ(w.at("nin_shortcut.weight").size(1), hidden ? 24 : 8);
    const at::Tensor x = testing::input_float("block", {2, 8, 5, 5}, 1.0);
    const auto swish = [](const at::Tensor& t) { return t * t.sigmoid(); };
    at::Tensor h = at::group_norm(x, 8, w.at("norm1.weight"), w.at("norm1.bias"), 1e-6);
    h = at::conv2d(swish(h), w.at("conv1.weight"), {}, 1, 1);
    h = at::group_norm(h, 8, w.at("norm2.weight"), w.at("norm2.bias"), 1e-6);  // gcd(32, 24)
    h = at::conv2d(swish(h), w.at("conv2.weight"), {}, 1, 1);
    EXPECT_CLOSE(block->forward(x), h + at::conv2d(hidden ? h : x, w.at("nin_shortcut.weight")), 1e-5)
        << hidden;
  }
}

TEST_F(Vqgan, UnshuffleStem) {
  TokenizerConfig config = tiny_config();
  config.unshuffle = 2;
  config.image_size = 28;
  Tokenizer tokenizer(config);
  EXPECT_EQ(tokenizer->factor(), 4);
  EXPECT_EQ(tokenizer->grid(), 7);
  EXPECT_EQ(module_state(*tokenizer).at("encoder.conv_in.weight").size(1), 12);
  EXPECT_EQ(module_state(*tokenizer).at("decoder.conv_out.bias").size(0), 12);
  const at::Tensor image = testing::input_u("stem", {3, 3, 28, 28});
  const at::Tensor ids = tokenizer->encode(image);
  EXPECT_EQ(ids.sizes(), at::IntArrayRef({3, 49}));
  EXPECT_EQ(ids.scalar_type(), at::kLong);
  EXPECT_EQ(tokenizer->decode(ids).sizes(), image.sizes());
  // Pixels of one 2x2 cell go to the channels of one place, so a change there stays local in the stem.
  const at::Tensor folded = at::pixel_unshuffle(image, 2);
  EXPECT_CLOSE(at::pixel_shuffle(folded, 2), image, 0);
}

TEST_F(Vqgan, DecodesInBfloat16) {
  Tokenizer tokenizer(tiny_config());
  tokenizer->prepare_for_inference();
  const at::Tensor ids = tokenizer->encode(testing::input_u("half", {3, 3, 16, 16}));
  const at::Tensor exact = tokenizer->decode(ids);
  tokenizer->decode_in_bfloat16();
  const at::Tensor half = tokenizer->decode(ids);
  EXPECT_EQ(half.scalar_type(), at::kFloat);
  EXPECT_GT((half - exact).abs().max().item<double>(), 0);
  EXPECT_CLOSE(half, exact, 0.03 * exact.abs().max().item<double>());  // a few roundings to 8 bits in a row
}

TEST_F(Vqgan, AwkwardSizesAndWidths) {
  for (const int64_t size : {2, 6, 10, 32}) {
    Tokenizer tokenizer(tiny_config());
    tokenizer->prepare_for_inference();
    const at::Tensor image = testing::input_u("awkward", {1, 3, size, size});
    const at::Tensor ids = tokenizer->encode(image);
    EXPECT_EQ(ids.size(1), size * size / 4);
    EXPECT_EQ(tokenizer->decode(ids).sizes(), image.sizes());
  }
  TokenizerConfig odd = tiny_config();
  odd.channels = 13;  // one group of 13
  Tokenizer tokenizer(odd);
  EXPECT_TRUE(
      at::isfinite(tokenizer->decode(tokenizer->encode(at::rand({2, 3, 16, 16})))).all().item<bool>());
  // An image's ids do not depend on its batch mates, nor on how the batch lies in memory.
  const at::Tensor images = testing::input_u("batch", {4, 3, 16, 16});
  const at::Tensor all = tokenizer->encode(images);
  EXPECT_CLOSE(tokenizer->encode(images.slice(0, 2, 3)), all.slice(0, 2, 3), 0);
  EXPECT_CLOSE(tokenizer->encode(images.flip(3).contiguous().flip(3)), all, 0);
}

TEST_F(Vqgan, RefusesWhatDoesNotFit) {
  Tokenizer tokenizer(tiny_config());
  EXPECT_THROW(tokenizer->encode(at::rand({1, 3, 15, 15})), InputError);
  EXPECT_THROW(tokenizer->encode(at::rand({1, 3, 16, 18})), InputError);
  EXPECT_THROW(tokenizer->encode(at::rand({1, 1, 16, 16})), InputError);
  EXPECT_THROW(tokenizer->encode(at::rand({3, 16, 16})), InputError);
  EXPECT_THROW(tokenizer->decode(at::zeros({1, 63}, at::kLong)), InputError);
  EXPECT_THROW(tokenizer->decode(at::zeros({64}, at::kLong)), InputError);
  EXPECT_THROW(tokenizer->decode(at::zeros({1, 0}, at::kLong)), InputError);
  const auto refused = [](auto change) {
    TokenizerConfig config = tiny_config();
    change(config);
    EXPECT_THROW(Tokenizer{config}, InputError);
  };
  refused([](TokenizerConfig& c) { c.image_size = 15; });
  refused([](TokenizerConfig& c) { c.channel_multipliers = {}; });
  refused([](TokenizerConfig& c) { c.channel_multipliers = {1, 0}; });
  refused([](TokenizerConfig& c) { c.shortcut_from = "x"; });
  refused([](TokenizerConfig& c) { c.codes = 1; });
  refused([](TokenizerConfig& c) { c.unshuffle = 0; });
}

// With unit-length codes the scale of latents and codes has no say, only the angle.
TEST_F(Vqgan, NormalizedCodes) {
  TokenizerConfig config = tiny_config();
  config.normalize_codes = true;
  Tokenizer tokenizer(config);
  tokenizer->embedding.copy_(testing::input_float("codes", {11, 6}, 1.0));
  EXPECT_CLOSE(tokenizer->codebook().norm(2, 1), at::ones({11}), 1e-6);
  const at::Tensor z = testing::input_float("latents", {2, 6, 3, 3}, 2.0);
  const at::Tensor ids = tokenizer->quantize_ids(z);
  const at::Tensor cosine = at::matmul(z.permute({0, 2, 3, 1}), tokenizer->codebook().t());
  EXPECT_CLOSE(ids, cosine.argmax(-1).flatten(1), 0);
  const at::Tensor picture = tokenizer->decode(ids);
  tokenizer->embedding.mul_(at::arange(1, 12).view({11, 1}));
  EXPECT_CLOSE(tokenizer->quantize_ids(z * 7), ids, 0);
  EXPECT_CLOSE(tokenizer->decode(ids), picture, 1e-5);
}

TEST_F(Vqgan, FileRoundTrip) {
  const testing::TempDir folder;
  TokenizerConfig config = tiny_config();
  config.normalize_codes = true;
  Tokenizer tokenizer(config);
  const at::Tensor image = testing::input_u("file", {1, 3, 16, 16});
  save_tokenizer(folder / "tokenizer.safetensors", *tokenizer);
  const Tokenizer back = testing::read_back(folder / "tokenizer.safetensors");
  EXPECT_TRUE(back->config() == config);
  EXPECT_CLOSE(back->decode(back->encode(image)), tokenizer->decode(tokenizer->encode(image)), 0);

  save_tokenizer(folder / "half.safetensors", *tokenizer, at::kHalf);
  EXPECT_EQ(read_tensors(folder / "half.safetensors").at("encoder.conv_in.weight").scalar_type(), at::kHalf);
  EXPECT_CLOSE(testing::read_back(folder / "half.safetensors")->latents(image), tokenizer->latents(image),
               1e-2);
}

// ---- quantiser, golden
// ---------------------------------------------------------------------------------------------

TEST(VqganQuantizer, GoldenLossesAndGradients) {
  const Golden& g = golden("vqgan.safetensors");
  Tokenizer tokenizer(small_config());
  fill_procedural(*tokenizer);
  QuantizerConfig config;
  config.codebook = "gradient";
  Quantizer quantizer(tokenizer, config);
  quantizer.keep_codebook();

  const at::Tensor z = g["z"].clone().requires_grad_();
  const Quantized q = quantizer.quantize(z);
  EXPECT_CLOSE(q.ids, g["ids"], 0);
  const double mse = g["quantize_mse"].item<double>();
  EXPECT_NEAR(at::mse_loss(q.codes.detach(), z.detach()).item<double>(), mse, 2e-6);
  EXPECT_NEAR(q.loss.item<double>(), g["quantize_loss_paper"].item<double>(), 5e-6);
  const at::Tensor z_q = tokenizer->lookup(q.ids);
  const at::Tensor legacy = at::mse_loss(z, z_q.detach()) + 0.25 * at::mse_loss(z_q, z.detach());
  EXPECT_NEAR(legacy.item<double>(), g["quantize_loss_legacy"].item<double>(), 5e-6);

  (q.codes * g["quant_grad.upstream"]).sum().backward({}, /*retain_graph=*/true);
  EXPECT_CLOSE(z.grad(), g["quant_grad.z_from_upstream"], 1e-6);

  // The golden gradients are the legacy loss's: the factor 0.25 stands at the other term there.
  z.mutable_grad().reset();
  tokenizer->embedding.mutable_grad().reset();
  legacy.backward();
  EXPECT_CLOSE(z.grad(), g["quant_grad.z_from_loss"], 1e-6);
  EXPECT_CLOSE(tokenizer->embedding.grad(), g["quant_grad.codebook_from_loss"], 1e-6);
  z.mutable_grad().reset();
  tokenizer->embedding.mutable_grad().reset();
  q.loss.backward();
  EXPECT_CLOSE(z.grad(), 0.25 * g["quant_grad.z_from_loss"], 1e-6);
  EXPECT_CLOSE(tokenizer->embedding.grad(), 4 * g["quant_grad.codebook_from_loss"], 1e-6);
}

TEST(Tokenizer, ItsShapesFollowFromItsConfig) {
  TokenizerConfig config;
  config.image_size = 16, config.channels = 8, config.latent_channels = 4, config.codes = 9,
  config.residual_blocks = 2;
  const auto check = [&] {
    ShapeMap registered;
    for (const auto& [name, tensor] : module_state(*Tokenizer(config)))
      registered[name] = tensor.sizes().vec();
    EXPECT_EQ(tokenizer_shapes(config), registered);
  };
  config.channel_multipliers = {1, 1, 2};
  check();
  config.channel_multipliers = {2, 1}, config.shortcut_from = "hidden", config.unshuffle = 2;
  check();
  config.channel_multipliers = {3}, config.residual_blocks = 1;
  check();
}

}  // namespace
}  // namespace adanat
