// Converting public tokenizers: spellings, sizes, and a folder that holds nothing else.
#include "pipeline/convert_fixture.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::procedural_weights;
using testing::PthValue;
using testing::write_pth;

class ConvertTokenizer : public testing::ConvertFixture {};

TEST_F(ConvertTokenizer, NamesAllThatATokenizerLacks) {
  const TensorMap weights = procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(32)));
  ConvertOptions o = options();
  o.tokenizer = dir_ / "vq.ckpt";
  for (const std::vector<std::string>& gone : std::vector<std::vector<std::string>>{
           {"decoder.conv_in.bias", "encoder.norm_out.weight", "quantize.embedding.weight"},
           {"encoder.down."},
           {"encoder.down.0.", "quantize."},
           {"encoder.down.2.", "decoder.up.2.block.0.conv"},
           {"decoder.up.2."},
           {"encoder.down.2.block.0.conv1.weight", "encoder.down.2.block.0.nin_shortcut.weight"},
           {"decoder.up.1.block.0.nin_shortcut.weight", "encoder.mid."}}) {
    SCOPED_TRACE(gone[0]);
    expect_all_named(o, o.tokenizer, weights, gone);
  }
  TensorMap short_of = weights;
  for (const char* level : {"0", "1", "2"})
    short_of.erase(cat("encoder.down.", level, ".block.0.conv1.weight"));
  write_pth(o.tokenizer, PthValue::dict(short_of));
  expect_error(o, {"vq.ckpt: lacks encoder.down.{0-2}.block.0.conv1.weight; is it the file of another part"});
  TensorMap stray = weights;
  for (const char* part : {"conv1", "conv2", "norm1"})
    stray[cat("encoder.down.63.block.63.", part, ".weight")] = at::zeros({1});
  write_pth(o.tokenizer, PthValue::dict(stray));
  expect_error(o, {"holds encoder.down.63.block.63.conv1.weight, encoder.down.63.block.63.conv2.weight",
                   "which the model does not have"});
}

TEST_F(ConvertTokenizer, ReadsTheTokenizerInBothSpellings) {
  const TokenizerConfig config = testing::tiny_tokenizer_config(32);
  const TensorMap weights = procedural_weights(tokenizer_shapes(config));
  // open-muse's names, spelled out here: the middle, and the upsampling convolutions.
  const std::map<std::string, std::string> renamed = {
      {".mid.block_1.", ".mid.0."}, {".mid.block_2.", ".mid.1."}, {".upsample.conv.", ".upsample_conv."}};
  TensorMap muse;
  for (const auto& [name, tensor] : weights) {
    std::string other = name;
    for (const auto& [from, to] : renamed)
      if (const size_t at = other.find(from); at != std::string::npos) other.replace(at, from.size(), to);
    muse.emplace(other, tensor);
  }
  EXPECT_TRUE(muse.contains("encoder.mid.0.norm1.weight"));
  EXPECT_TRUE(muse.contains("decoder.up.2.upsample_conv.bias"));
  ConvertOptions o = options();
  o.tokenizer = dir_ / "vq.ckpt";
  write_pth(o.tokenizer, PthValue::dict(muse));
  expect_part(o, "tokenizer.safetensors", weights);
  TensorMap with_loss = weights;
  with_loss["loss.discriminator.main.0.weight"] = at::zeros({3});
  write_pth(o.tokenizer,
            PthValue::dict({{"state_dict", PthValue::dict(with_loss)}, {"epoch", PthValue::of(int64_t{1})}}));
  expect_part(o, "tokenizer.safetensors", weights);
  convert(o);
  TokenizerConfig expected = config;
  EXPECT_EQ(read_model_config(o.out).tokenizer, expected);
  fs::remove_all(o.out);
  // The other form of the shortcut.
  expected.shortcut_from = "input";
  write_pth(o.tokenizer, PthValue::dict(procedural_weights(tokenizer_shapes(expected))));
  convert(o);
  EXPECT_EQ(read_model_config(o.out).tokenizer, expected);
  fs::remove_all(o.out);
  // Sizes that are no multiples, attention, both spellings at once.
  TensorMap bad = weights;
  bad["encoder.mid.attn_1.q.weight"] = at::zeros({16, 16, 1, 1});
  bad["encoder.conv_in.bias"] = at::zeros({8});
  write_pth(o.tokenizer, PthValue::dict(bad));
  expect_error(o, {"vq.ckpt", "holds encoder.conv_in.bias, encoder.mid.attn_1.q.weight"});
  bad = weights;
  bad["encoder.mid.0.norm1.weight"] = at::zeros({16});
  write_pth(o.tokenizer, PthValue::dict(bad));
  expect_error(o, {"in both spellings"});
  bad = weights;
  bad.erase("decoder.up.1.upsample.conv.bias");
  write_pth(o.tokenizer, PthValue::dict(bad));
  expect_error(o, {"lacks decoder.up.1.upsample.conv.bias"});
  // One residual block more in the decoder, as taming's own models have it.
  bad = weights;
  for (const auto& [name, tensor] : weights)
    if (name.starts_with("decoder.up.0.block.0.") && name.find("nin") == std::string::npos)
      bad["decoder.up.0.block.1." + name.substr(21)] = tensor;
  write_pth(o.tokenizer, PthValue::dict(bad));
  expect_error(o, {"holds decoder.up.0.block.1.conv1.weight"});
}

TEST_F(ConvertTokenizer, NamesWhatATokenizersTensorsContradict) {
  const TensorMap weights = procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(32)));
  ConvertOptions o = options();
  o.tokenizer = dir_ / "vq.ckpt";
  const auto refused = [&](const char* tensor, std::vector<int64_t> shape,
                           std::initializer_list<const char*> parts) {
    TensorMap changed = weights;
    changed[tensor] = at::zeros(shape);
    write_pth(o.tokenizer, PthValue::dict(changed));
    expect_error(o, parts);
  };
  refused("encoder.conv_in.weight", {8, 4, 3, 3}, {"vq.ckpt: encoder.conv_in.weight reads 4", "a square"});
  refused("encoder.down_blocks.0.resnets.0.conv1.weight", {8, 8, 3, 3}, {"vq.ckpt", "diffusers VQModel"});
  refused("encoder.down.2.block.0.conv1.weight", {12, 8, 3, 3},
          {"vq.ckpt: encoder.down.2.block.0.conv1.weight makes 12 channels", "the first level's 8"});
  refused("encoder.down.2.block.0.nin_shortcut.weight", {16, 8, 1, 1},
          {"vq.ckpt: encoder.down.2.block.0.nin_shortcut.weight", "elsewhere than the others"});
  refused("quantize.embedding.weight", {1, 6}, {"vq.ckpt: codes must be in 2..1048576, got 1"});
  TensorMap without = weights;
  std::erase_if(without, [](const auto& item) { return item.first.starts_with("encoder.down."); });
  write_pth(o.tokenizer, PthValue::dict(without));
  expect_error(o, {"vq.ckpt: lacks encoder.down.{0-2}.block.0.conv1.weight"});
}

TEST_F(ConvertTokenizer, ATokenizerAloneIsAModelFolderToo) {
  ConvertOptions o = options();
  o.generator.clear(), o.heads = 0;
  convert(o);
  const ModelConfig config = read_model_config(o.out);
  EXPECT_EQ(config.image_size, 256);
  EXPECT_EQ(config.tokenizer->image_size, 256);
  EXPECT_FALSE(config.generator.has_value());
  EXPECT_TRUE(verify_model(o.out, config).empty());
  fs::remove_all(o.out);
  // The preset's size, or else the multiple of the factor that 256 has room for.
  const auto size_of = [&](const ConvertOptions& of) {
    convert(of);
    const ModelConfig made = read_model_config(of.out);
    EXPECT_EQ(made.tokenizer->image_size, made.image_size);
    fs::remove_all(of.out);
    return made.image_size;
  };
  TokenizerConfig unshuffled = testing::tiny_tokenizer_config(32, {1, 1, 2}, 24);
  unshuffled.unshuffle = 3;
  ConvertOptions other = o;
  other.tokenizer = dir_ / "unshuffled.safetensors";
  write_tensors(other.tokenizer, procedural_weights(tokenizer_shapes(unshuffled)),
                {{"format", "pt"}, {"config", R"({"_class_name": "VQModel"})"}});
  EXPECT_EQ(size_of(other), 252);
  other.config = dir_ / "preset.json";
  std::ofstream(other.config) << R"({"image_size": 48})";
  EXPECT_EQ(size_of(other), 48);
  std::ofstream(other.config) << R"({"image_size": 50})";
  expect_error(other, {"preset.json", "image_size 50", "factor 12"});

  for (const auto& [flag, member] : {std::pair{"--text-encoder", &ConvertOptions::text_encoder},
                                     {"--class-names", &ConvertOptions::class_names}}) {
    other = o;
    other.*member = dir_ / "vq.safetensors";
    expect_error(other, {flag, "--generator"});
  }
  other = o, other.heads = 3;
  expect_error(other, {"--heads", "--generator"});
  o.policies = {{dir_ / "policy.pth", 8}};
  expect_error(o, {"--policy", "--generator"});
  o = options();
  o.tokenizer.clear();
  expect_error(o, {"--tokenizer: is missing"});
  o = options();
  write_tensors(o.tokenizer, procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(33))));
  expect_error(o, {"gen.safetensors", "32 codes", "vq.safetensors", "33"});
}

}  // namespace
}  // namespace adanat
