// Converting public checkpoints: names, wrappers, sizes, settings, presets, what is refused.
#include "apps/pipeline/convert.h"

#include <ATen/ATen.h>

#include <fstream>

#include "apps/pipeline/convert_parts.h"
#include "apps/pipeline/pipeline.h"
#include "core/generator/generator_recipe.h"
#include "core/nn/module_state.h"
#include "support/checkpoints.h"
#include "text/small_encoder.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::procedural_actor;
using testing::procedural_weights;
using testing::PthValue;
using testing::published_actor_shapes;
using testing::TempDir;
using testing::write_pth;

GeneratorConfig small_generator(const std::string& condition = "class") {
  GeneratorConfig config = testing::uvit_class_config();
  config.width = 12, config.heads = 3, config.condition = condition;
  config.text_width = 20;
  return config;
}

// Hidden 8, channels 4, mlp 10, on the 4x4 grid of the small generator.
ShapeMap small_actor() {
  return published_actor_shapes(12, 8, 4, 10, 16);
}

// Tensors of these shapes, each a view of one and the same number: what torch makes of expand().
void write_hollow(const fs::path& file, const ShapeMap& shapes) {
  std::string pickle;
  const auto number = [](int32_t value) {
    return "J" + std::string(reinterpret_cast<const char*>(&value), 4);
  };
  const auto text = [&](const std::string& value) {
    const auto size = uint32_t(value.size());
    return "X" + std::string(reinterpret_cast<const char*>(&size), 4) + value;
  };
  for (const auto& [name, shape] : shapes) {
    pickle += text(name) + "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") +
              "ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(1) + "tQ" + number(0) + "(";
    for (const int64_t size : shape) pickle += number(int32_t(size));
    pickle += "t(";
    for (size_t i = 0; i < shape.size(); ++i) pickle += number(0);
    pickle += "t\x89}tR";
  }
  pickle = "\x80\x02}(" + pickle + "u.";
  const float one = 1;
  ZipWriter zip(file);
  const std::span<const std::byte> object[] = {std::as_bytes(std::span(pickle))};
  const std::span<const std::byte> storage[] = {std::as_bytes(std::span(&one, 1))};
  zip.add("a/data.pkl", object, false), zip.add("a/data/0", storage, false);
  zip.commit();
}

class Convert : public ::testing::Test {
 protected:
  Convert() {
    write_tensors(dir_ / "vq.safetensors",
                  procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(32))));
    write_tensors(dir_ / "gen.safetensors", procedural_weights(generator_shapes(small_generator())));
    write_pth(dir_ / "policy.pth",
              testing::policy_checkpoint(procedural_actor(small_actor()), testing::policy_args(1, 8)));
    write_pth(dir_ / "bare.pth", PthValue::dict(procedural_actor(small_actor())));
  }

  ConvertOptions options() const {
    ConvertOptions o;
    o.generator = dir_ / "gen.safetensors", o.tokenizer = dir_ / "vq.safetensors";
    o.heads = 3;
    o.out = dir_ / "out";
    return o;
  }
  // The message of the error that converting gives; nothing may be left then.
  std::string error(const ConvertOptions& o) {
    try {
      convert(o);
    } catch (const InputError& e) {
      std::string left;
      for (const auto& entry : fs::directory_iterator(dir_.path()))
        if (entry.path().filename().string().find("out") != std::string::npos) left += entry.path().string();
      EXPECT_EQ(left, "");
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      return e.what();
    }
    fs::remove_all(o.out);
    return "no error";
  }
  void expect_error(const ConvertOptions& o, std::initializer_list<const char*> parts) {
    const std::string message = error(o);
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
  }
  // Converts, checks that the part holds exactly `tensors`, and removes the folder again.
  void expect_part(const ConvertOptions& o, const char* part, const TensorMap& tensors) {
    convert(o);
    const TensorMap made = read_tensors(o.out / part);
    ASSERT_EQ(made.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      ASSERT_TRUE(made.contains(name)) << name;
      EXPECT_EQ(made.at(name).scalar_type(), tensor.scalar_type()) << name;
      EXPECT_TRUE(at::equal(made.at(name), tensor)) << name;
    }
    fs::remove_all(o.out);
  }

  TempDir dir_;
};

TEST_F(Convert, FindsTheGeneratorInEveryWrapper) {
  const TensorMap weights = procedural_weights(generator_shapes(small_generator()));
  const PthValue plain = PthValue::dict(weights),
                 other = PthValue::dict({{"x", PthValue::of(at::ones({2}))}});
  PthValue with_ids = plain;
  with_ids.items.emplace_back("token_emb.position_ids", PthValue::of(at::arange(16)));
  TensorMap moved;  // what another step of training holds
  for (const auto& [name, tensor] : weights) moved.emplace(name, tensor + 1);
  const std::vector<std::pair<const char*, PthValue>> wrapped = {
      {"plain", plain},
      {"position_ids", with_ids},
      {"module", PthValue::dict(weights, "module.")},
      {"model", PthValue::dict({{"model", plain}, {"optimizer", other}, {"step", PthValue::of(int64_t{7})}})},
      {"state_dict", PthValue::dict({{"epoch", PthValue::of(int64_t{3})}, {"state_dict", plain}})},
      {"deep", PthValue::dict({{"model", PthValue::dict(weights, "module._orig_mod.")}, {"ema", other}})},
      {"ema", PthValue::dict({{"nnet", PthValue::dict(moved)}, {"nnet_ema", plain}})},
  };
  for (const auto& [what, value] : wrapped) {
    SCOPED_TRACE(what);
    ConvertOptions o = options();
    o.generator = dir_ / "gen.pth";
    write_pth(o.generator, value);
    expect_part(o, "generator.safetensors", weights);
    testing::write_legacy_pth(o.generator, value);
    expect_part(o, "generator.safetensors", weights);
  }
}

TEST_F(Convert, ReadsHuggingFaceFolders) {
  const TensorMap weights = procedural_weights(generator_shapes(small_generator()));
  ConvertOptions o = options();
  o.generator = dir_ / "hf";
  fs::create_directory(o.generator);
  expect_error(o, {"hf", "holds no weights", "model.safetensors"});
  write_tensors(o.generator / "diffusion_pytorch_model.safetensors", weights,
                {{"format", "pt"}, {"config", R"({"_class_name": "UVit"})"}});  // theirs, not ours
  expect_part(o, "generator.safetensors", weights);
  fs::remove(o.generator / "diffusion_pytorch_model.safetensors");
  write_pth(o.generator / "pytorch_model.bin", PthValue::dict(weights));
  expect_part(o, "generator.safetensors", weights);
  fs::remove(o.generator / "pytorch_model.bin");

  TensorMap half[2];
  Json map = Json::object();
  size_t i = 0;
  for (const auto& [name, tensor] : weights) {
    half[i % 2].emplace(name, tensor);
    map[name] = cat("model-0000", i++ % 2 + 1, "-of-00002.safetensors");
  }
  const auto index = [&](const Json& weight_map) {
    std::ofstream(o.generator / "model.safetensors.index.json") << Json{{"weight_map", weight_map}}.dump();
  };
  write_tensors(o.generator / "model-00001-of-00002.safetensors", half[0]);
  index(map);
  expect_error(o, {"model.safetensors.index.json", "model-00002-of-00002.safetensors", "not there"});
  write_tensors(o.generator / "model-00002-of-00002.safetensors", half[1]);
  expect_part(o, "generator.safetensors", weights);
  const std::string second = read_file(o.generator / "model-00002-of-00002.safetensors");
  half[1].insert(*half[0].begin());
  write_tensors(o.generator / "model-00002-of-00002.safetensors", half[1]);
  expect_error(o, {"model-00002-of-00002.safetensors", half[0].begin()->first.c_str(), "in another file"});
  write_file_atomic(o.generator / "model-00002-of-00002.safetensors", second);
  index(Json::array({"model-00001-of-00002.safetensors"}));
  expect_error(o, {"index.json", "lacks the object \"weight_map\""});
  Json bad = map;
  bad["more"] = "model-00001-of-00002.safetensors";
  index(bad);
  expect_error(o, {"index.json", "more", "none of its files"});
  write_pth(o.generator / "more.bin", PthValue::dict({{"more", PthValue::of(at::ones({1}))}}));
  bad["more"] = "more.bin";
  index(bad);
  expect_error(o, {"index.json", "files are of two kinds"});
  for (const char* outside : {"../vq.safetensors", "/etc/passwd", ""}) {
    bad = map, bad["norm.bias"] = outside;
    index(bad);
    expect_error(o, {"weight_map.norm.bias", "beside it"});
  }
}

TEST_F(Convert, NamesWhatIsMissingAndLeftOver) {
  TensorMap weights = procedural_weights(generator_shapes(small_generator()));
  ConvertOptions o = options();
  o.generator = dir_ / "gen.pth";
  const auto refused = [&](const TensorMap& tensors, std::initializer_list<const char*> parts) {
    write_pth(o.generator, PthValue::dict(tensors));
    expect_error(o, parts);
  };
  TensorMap changed = weights;
  changed.erase("mid_block.attn.proj.bias");
  changed.erase("norm.weight");
  changed["mid_block.attn.qkv.bias"] = at::zeros({36});
  refused(changed,
          {"gen.pth", "lacks mid_block.attn.proj.bias, norm.weight", "holds mid_block.attn.qkv.bias"});
  changed = weights;
  changed["mlm_layer.fc.weight"] = at::zeros({12, 13});
  refused(changed, {"mlm_layer.fc.weight has shape [12, 13]", "[12, 12]"});
  changed = weights;
  for (int i = 0; i < 20; ++i) changed[cat("extra.", i)] = at::zeros({1});
  refused(changed, {"extra.0, extra.1, extra.10", "and 12 more"});
  changed = weights;
  changed["norm.bias"][3] = NAN;
  refused(changed, {"norm.bias holds NaN"});
  changed = weights;
  changed["norm.bias"] = at::zeros({12}, at::kLong);
  refused(changed, {"norm.bias holds I64"});
  changed = weights;
  changed["token_emb.position_embeddings.weight"] = at::zeros({15, 12});
  refused(changed, {"15 rows", "no square grid"});
  changed = weights;
  changed["token_emb.word_embeddings.weight"] = at::zeros({33});
  refused(changed, {"token_emb.word_embeddings.weight has shape [33]"});
  changed = weights;
  for (auto it = changed.begin(); it != changed.end();)
    it = it->first.starts_with("out_blocks.1.") ? changed.erase(it) : std::next(it);
  refused(changed, {"2 in_blocks and 1 out_blocks"});
  write_pth(o.generator, PthValue::dict({{"a", PthValue::dict(weights)}, {"b", PthValue::dict(weights)}}));
  expect_error(o, {"several models", "a.token_emb.word_embeddings.weight", "b.token_emb"});
}

TEST_F(Convert, SaysWhatAnotherModelIs) {
  ConvertOptions o = options();
  o.generator = dir_ / "gen.pth";
  const auto refused = [&](const char* tensor, std::initializer_list<const char*> parts) {
    write_pth(o.generator, PthValue::dict(TensorMap{{tensor, at::zeros({4, 4})}, {"y", at::zeros({1})}}));
    expect_error(o, parts);
  };
  refused("transformer.layers.0.ff.w1.weight", {"gen.pth", "Halton-MaskGIT", "SwiGLU", "token_emb"});
  refused("module.transformer.layers.0.attn.wq.weight", {"Halton-MaskGIT"});
  refused("tok_emb.weight", {"MaskGIT-pytorch"});
  refused("transformer_layers.0.attention.query.weight", {"open-muse"});
  refused("embed.embeddings.weight", {"aMUSEd"});
  refused("x", {"is no generator", "token_emb.word_embeddings.weight", "adanat info"});
  o.generator = dir_ / "vq.safetensors";
  expect_error(o, {"vq.safetensors", "a tokenizer; give it as --tokenizer"});
  o = options();
  o.tokenizer = dir_ / "gen.safetensors";
  expect_error(o, {"is no VQGAN", "give it as --generator"});
  o.tokenizer = dir_ / "nothing.ckpt";
  expect_error(o, {"nothing.ckpt"});
}

TEST_F(Convert, HeadsComeFromTheFlagThePresetOrAPublishedSize) {
  ConvertOptions o = options();
  o.heads = 0;
  expect_error(o, {"attention heads", "width 12, depth 4", "--heads"});
  o.heads = 5;
  expect_error(o, {"gen.safetensors", "width must be a multiple of heads (5), got 12"});
  o.heads = 0, o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"generator": {"heads": 6}, "sampling": {"steps": 5}})";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).generator->heads, 6);
  EXPECT_EQ(read_model_config(o.out).sampling.steps, 5);
  fs::remove_all(o.out);
  o.heads = 2;
  convert(o);
  EXPECT_EQ(read_model_config(o.out).generator->heads, 2);
  // Our own file says it itself.
  const fs::path first = dir_ / "first";
  fs::rename(o.out, first);
  o = options();
  o.heads = 0, o.generator = first / "generator.safetensors", o.tokenizer = first / "tokenizer.safetensors";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).generator, read_model_config(first).generator);
  EXPECT_EQ(read_model_config(o.out).tokenizer, read_model_config(first).tokenizer);
}

// Our own files hold more than tensors tell; the command line and a preset go before it.
TEST_F(Convert, OurOwnGeneratorSaysWhatItsTensorsDoNot) {
  GeneratorConfig config = small_generator("text");
  config.text_tokens = 9, config.dropout = 0.25;
  config.classes = GeneratorConfig().classes;  // it has none
  ConvertOptions o = options();
  o.heads = 0;
  const auto made = [&] {
    convert(o);
    const GeneratorConfig out = *read_model_config(o.out).generator;
    fs::remove_all(o.out);
    return out;
  };
  write_generator(o.generator, config, procedural_weights(generator_shapes(config)));
  EXPECT_EQ(made(), config);
  o.heads = 2;
  EXPECT_EQ(made().heads, 2);
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"generator": {"text_tokens": 5}})";
  EXPECT_EQ(made().text_tokens, 5);
  config.grid_height = 2, config.grid_width = 8;  // as many tokens, and no square of pixels
  write_generator(o.generator, config, procedural_weights(generator_shapes(config)));
  expect_error(o, {"gen.safetensors", "2x8 tokens", "square"});
}

TEST_F(Convert, ReadsTheTokenizerInBothSpellings) {
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

TEST_F(Convert, NamesWhatATokenizersTensorsContradict) {
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
  expect_error(o, {"vq.ckpt: lacks encoder.down.0.block.0.conv1.weight"});
}

TEST_F(Convert, ATokenizerAloneIsAModelFolderToo) {
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

TEST_F(Convert, TakesAPolicysSettingsFromItsNamespace) {
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 0}};
  convert(o);
  const PolicyFile policy = read_policy(o.out / "policy-T8.safetensors");
  EXPECT_EQ(policy.settings.residual, "heuristic");
  EXPECT_EQ(policy.settings.steps, 8);
  EXPECT_EQ(policy.settings.smoothing, 0);
  EXPECT_EQ(policy.settings.rule, "adanat");
  EXPECT_EQ(policy.settings.network.flat(), 16);
  EXPECT_EQ(policy.settings.network.codes, 32);
  const ModelConfig config = read_model_config(o.out);
  EXPECT_EQ(policy.settings.generator, config.files.at("generator.safetensors"));
  EXPECT_EQ(config.sampling.steps, 8);
  // policy_old acts.
  const TensorMap actor = procedural_actor(small_actor());
  for (const auto& [name, tensor] : module_state(*policy.actor))
    EXPECT_TRUE(at::equal(tensor, actor.at(name))) << name;
  fs::remove_all(o.out);

  o.policies = {{dir_ / "policy.pth", 4}};  // the command line wins
  o.policy_residual = false;
  convert(o);
  EXPECT_EQ(read_policy(o.out / "policy-T4.safetensors").settings.residual, "none");
  fs::remove_all(o.out);
  o.policies = {{dir_ / "policy.pth", 4}, {dir_ / "bare.pth", 4}};
  expect_error(o, {"bare.pth", "a second policy for 4 steps"});

  // `generate` takes the fewest steps by itself, or those of the preset.
  o.policies = {{dir_ / "policy.pth", 6}, {dir_ / "bare.pth", 4}};
  convert(o);
  EXPECT_EQ(read_model_config(o.out).sampling.steps, 4);
  fs::remove_all(o.out);
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"sampling": {"steps": 6, "table": {"guidance": 2.5}}})";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).sampling.steps, 6);
  EXPECT_EQ(read_model_config(o.out).sampling.table.guidance, 2.5);
}

TEST_F(Convert, OrdersAPolicysActionsByItsNamespace) {
  const TensorMap actor = procedural_actor(small_actor());
  PthValue::Items args = testing::policy_args(0, 6);
  const auto write = [&](const PthValue& names) {
    for (auto& [key, value] : args)
      if (key == "upd_set") value = names;
    write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  };
  write(PthValue::list({"manual_cfg", "manual_gen_ratios", "manual_samp_temp", "manual_temp"}));
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 6}};
  convert(o);
  const PolicyFile policy = read_policy(o.out / "policy-T6.safetensors");
  EXPECT_EQ(policy.settings.residual, "none");
  const TensorMap made = module_state(*policy.actor);
  const at::Tensor order = at::tensor({1, 3, 2, 0}, at::kLong);
  for (const char* name : {"linear3.weight", "linear3.bias"})
    EXPECT_TRUE(at::equal(made.at(name), actor.at(name).index_select(0, order))) << name;
  EXPECT_TRUE(at::equal(made.at("linear2.weight"), actor.at("linear2.weight")));
  fs::remove_all(o.out);
  for (const PthValue& bad :
       {PthValue::list({"manual_gen_ratios", "manual_temp"}),
        PthValue::list({"manual_cfg", "manual_cfg", "manual_samp_temp", "manual_temp"}),
        PthValue::list({"manual_cfg", "manual_gen_ratios", "manual_samp_temp", "manual_temp", "top_k"}),
        PthValue::list({"manual_cfg", "manual_gen_ratios", "manual_samp_temp", "top_k"})}) {
    write(bad);
    expect_error(o, {"policy.pth", "args.upd_set", "manual_gen_ratios"});
  }
  args = {{"heu", PthValue::of("yes")}};
  write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  expect_error(o, {"args.heu is no integer"});
  args = testing::policy_args(0, 1001);
  write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  expect_error(o, {"policy.pth", "args.gen_steps is 1001, it must be 1..1000"});
  args = {{"heu", PthValue::of(int64_t{0})}, {"gen_steps", PthValue{}}};  // None: not said
  write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  convert(o);
  EXPECT_EQ(read_policy(o.out / "policy-T6.safetensors").settings.residual, "none");
}

TEST_F(Convert, ABarePolicyNeedsItsSettings) {
  ConvertOptions o = options();
  o.policies = {{dir_ / "bare.pth", 8}};
  expect_error(o, {"bare.pth", "--policy-residual"});
  o.policies = {{dir_ / "bare.pth", 0}};
  o.policy_residual = true;
  expect_error(o, {"bare.pth", "how many steps", ":T"});
  const auto made = [&](const char* file, int64_t steps) {
    o.policies = {{dir_ / file, steps}};
    convert(o);
    const PolicySettings settings = read_policy(o.out / policy_file_name(steps)).settings;
    fs::remove_all(o.out);
    return settings;
  };
  // AdaGen's files: smoothed from 11 steps on.
  EXPECT_EQ(made("bare.pth", 16).smoothing, 0.8);
  EXPECT_EQ(made("bare.pth", 10).smoothing, 0);
  write_pth(dir_ / "actor.pth", PthValue::dict(procedural_actor(small_actor()), "actor."));
  EXPECT_EQ(made("actor.pth", 16).smoothing, 0);
  write_pth(dir_ / "wrapped.pth", PthValue::dict(procedural_actor(small_actor()), "module."));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(made("wrapped.pth", 11).smoothing, 0.8);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("wrapped.pth: names without \"actor.\" and more than 10 steps: taken for AdaGen's"),
            std::string::npos)
      << said;
  o.policy_residual = false;
  EXPECT_EQ(made("bare.pth", 16).smoothing, 0);
  EXPECT_EQ(made("bare.pth", 16).residual, "none");
  o.policy_residual.reset();
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"policy": {"residual": "heuristic", "smoothing": 0.5,
    "heuristic": {"remask_temperature": 4.5, "guidance": 2.5}}})";
  const PolicySettings settings = made("bare.pth", 32);
  EXPECT_EQ(settings.residual, "heuristic");
  EXPECT_EQ(settings.smoothing, 0.5);
  EXPECT_EQ(settings.heuristic, (HeuristicConfig{.remask_temperature = 4.5, .guidance = 2.5}));
  // None is a word, too; what the file says of its residual stands before the preset's.
  std::ofstream(o.config) << R"({"policy": {"residual": "heuristic", "smoothing": 0}})";
  EXPECT_EQ(made("bare.pth", 16).smoothing, 0);
  std::ofstream(o.config) << R"({"policy": {"residual": "none"}})";
  EXPECT_EQ(made("bare.pth", 8).residual, "none");
  EXPECT_EQ(made("policy.pth", 8).residual, "heuristic");
}

// The policy that acts, filled up from the one beside it; one policy of a file and no other program's.
TEST_F(Convert, OneActorIsTakenFromAFile) {
  const TensorMap actor = procedural_actor(small_actor());
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 8}};
  PthValue checkpoint = testing::policy_checkpoint(actor, testing::policy_args(1, 8));
  std::erase_if(checkpoint.items[0].second.items,
                [](const auto& item) { return item.first == "policy_old.actor.linear2.bias"; });
  write_pth(dir_ / "policy.pth", checkpoint);
  convert(o);
  const TensorMap made = module_state(*read_policy(o.out / "policy-T8.safetensors").actor);
  EXPECT_TRUE(at::equal(made.at("linear2.weight"), actor.at("linear2.weight")));
  EXPECT_TRUE(at::equal(made.at("linear2.bias"), actor.at("linear2.bias") + 1));
  const fs::path first = dir_ / "first";
  fs::rename(o.out, first);
  o.policies = {{first / "policy-T8.safetensors", 8}};
  expect_error(o, {"policy-T8.safetensors", "a policy of this program already", "generate --policy"});
  o.policies = {{dir_ / "policy.pth", 8}};
  write_pth(dir_ / "policy.pth",
            PthValue::dict({{"a", PthValue::dict(actor, "actor.")}, {"b", PthValue::dict(actor, "actor.")}}));
  o.policy_residual = true;
  expect_error(o, {"several policies", "a.actor.linear3.weight", "b.actor.linear3.weight"});
}

TEST_F(Convert, APolicyMustFitTheGenerator) {
  ConvertOptions o = options();
  o.policy_residual = false;
  const auto refused = [&](const ShapeMap& shapes, std::initializer_list<const char*> parts) {
    write_pth(dir_ / "p.pth", PthValue::dict(procedural_actor(shapes)));
    o.policies = {{dir_ / "p.pth", 8}};
    expect_error(o, parts);
  };
  refused(published_actor_shapes(13, 8, 4, 10, 16), {"p.pth", "width 13", "12 wide"});
  refused(published_actor_shapes(8, 8, 4, 10, 16), {"width 8", "12 wide"});
  refused(published_actor_shapes(12, 8, 4, 10, 64), {"linear1.weight reads 64", "4x4", "gives 16"});
  refused(published_actor_shapes(12, 8, 4, 10, 16, 3), {"linear3.bias has shape [3]", "[4]"});
  ShapeMap shapes = small_actor();
  shapes.erase("dw_conv.bias"), shapes["dw_conv2.bias"] = {3};
  refused(shapes, {"lacks dw_conv.bias", "holds dw_conv2.bias"});
  refused({{"linear3.weight", {4, 8}}}, {"lacks pw_conv.weight"});
  refused({{"critic.linear3.weight", {1, 8}}}, {"is no policy"});
  o.policies = {{dir_ / "gen.safetensors", 8}};
  expect_error(o, {"gen.safetensors", "is no policy"});
}

TEST_F(Convert, KeepsOrChangesTheType) {
  TensorMap half;
  for (const auto& [name, tensor] : procedural_weights(generator_shapes(small_generator())))
    half.emplace(name, tensor.to(at::kHalf));
  ConvertOptions o = options();
  o.generator = dir_ / "half.pth";
  write_pth(o.generator, PthValue::dict(half));
  expect_part(o, "generator.safetensors", half);
  TensorMap wide, bfloat;
  for (const auto& [name, tensor] : half) wide.emplace(name, tensor.to(at::kDouble));
  write_pth(dir_ / "wide.pth", PthValue::dict(wide));
  o.generator = dir_ / "wide.pth", o.dtype = at::kHalf;
  expect_part(o, "generator.safetensors", half);
  o.generator = dir_ / "half.pth";
  for (const auto& [name, tensor] : half) bfloat.emplace(name, tensor.to(at::kBFloat16));
  o.dtype = at::kBFloat16;
  o.policies = {{dir_ / "policy.pth", 8}};
  expect_part(o, "generator.safetensors", bfloat);
  convert(o);
  EXPECT_EQ(read_tensors(o.out / "tokenizer.safetensors").begin()->second.scalar_type(), at::kBFloat16);
  EXPECT_EQ(read_tensors(o.out / "policy-T8.safetensors").begin()->second.scalar_type(), at::kBFloat16);
  // Such a folder runs in either type.
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Pipeline pipeline = Pipeline::open(o.out, at::kCPU, dtype);
    EXPECT_EQ(pipeline.generator().parameters()[0].scalar_type(), dtype);
    EXPECT_EQ(pipeline.generate({{1}, 3, 0}, *pipeline.schedule("", 8, {})).tokens.sizes(),
              (std::vector<int64_t>{1, 16}));
  }
  fs::remove_all(o.out);
  // What float16 cannot hold.
  TensorMap large = procedural_weights(generator_shapes(small_generator()));
  large.at("norm.bias")[2] = 1e6;
  o.generator = dir_ / "large.pth", o.policies = {}, o.dtype = at::kHalf;
  write_pth(o.generator, PthValue::dict(large));
  expect_error(o, {"large.pth as F16", "norm.bias holds NaN or infinity"});
}

TEST_F(Convert, ClassNames) {
  ConvertOptions o = options();
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names.size(), 10u);
  EXPECT_EQ(read_model_config(o.out).class_names[9], "9");
  fs::remove_all(o.out);
  fs::path names;
  o.class_names = dir_ / "names.txt";
  std::ofstream(o.class_names) << "tench, Tinca tinca\r\n\xc3\xa9t\xc3\xa9\nc\nd\ne\nf\ng\nh\ni\nj";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names[0], "tench, Tinca tinca");
  EXPECT_EQ(read_model_config(o.out).class_names[1], "\xc3\xa9t\xc3\xa9");
  fs::remove_all(o.out);
  // A preset's, unless the flag gives others.
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"class_names": ["p", "q", "r", "s", "t", "u", "v", "w", "x", "y"]})";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names[9], "j");
  fs::remove_all(o.out);
  std::swap(o.class_names, names);
  convert(o);
  EXPECT_EQ(read_model_config(o.out).class_names[9], "y");
  fs::remove_all(o.out);
  std::swap(o.class_names, names), o.config.clear();
  std::ofstream(o.class_names) << "a\nb\n";
  expect_error(o, {"names.txt", "has 2 names", "10 classes"});
  std::ofstream(o.class_names) << "a\n\nb\n";
  expect_error(o, {"names.txt", "line 2"});
}

TEST_F(Convert, WritesTheFolderWholeOrNotAtAll) {
  ConvertOptions o = options();
  o.out = dir_ / "deep/er/out";
  o.heads = 5;
  error(o);
  EXPECT_FALSE(fs::exists(dir_ / "deep"));
  o.heads = 3;
  convert(o);
  const ModelConfig config = read_model_config(o.out);
  EXPECT_EQ(config.name, "out");
  EXPECT_TRUE(verify_model(o.out, config).empty());
  size_t entries = 0;
  for (const auto& entry : fs::directory_iterator(o.out.parent_path())) entries += entry.exists();
  EXPECT_EQ(entries, 1u);
  const std::string before = read_file(o.out / "config.json");
  for (const fs::path& taken : {o.out, o.out / "", fs::path(dir_ / "vq.safetensors"), dir_.path()}) {
    ConvertOptions again = options();
    again.out = taken;
    EXPECT_THROW(convert(again), InputError) << taken;
  }
  EXPECT_EQ(read_file(o.out / "config.json"), before);
}

TEST_F(Convert, HostileAndDamagedFilesAreRefusedInEveryRole) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(testing::golden_dir() / "checkpoints")) {
    if (entry.path().extension() != ".pth") continue;
    ++files;
    const std::string name = entry.path().filename().string();
    ConvertOptions o = options();
    o.generator = entry.path();
    expect_error(o, {name.c_str()});
    o = options();
    o.tokenizer = entry.path();
    expect_error(o, {name.c_str()});
    o = options();
    o.policies = {{entry.path(), 4}}, o.policy_residual = false;
    expect_error(o, {name.c_str()});
    EXPECT_FALSE(fs::exists("pwned"));
  }
  EXPECT_GE(files, 25u);
}

// One element that stands for terabytes: refused before memory is taken.
TEST_F(Convert, HugeTensorsFromLittleFilesAreRefused) {
  ConvertOptions o = options();
  o.generator = dir_ / "huge.pth";
  write_hollow(
      o.generator,
      generator_shapes(
          {.width = 65536, .depth = 2, .heads = 1, .codes = 1 << 20, .grid_height = 4, .grid_width = 4}));
  write_tensors(o.tokenizer, procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(1 << 20))));
  o.heads = 1;
  expect_error(o, {"huge.pth", "bytes of memory", "refused"});
}

TEST_F(Convert, TextGeneratorsAndTheirEncoder) {
  GeneratorConfig config = small_generator("text");
  ConvertOptions o = options();
  o.generator = dir_ / "narrow.pth";
  write_pth(o.generator, PthValue::dict(procedural_weights(generator_shapes(config))));
  o.text_encoder = dir_ / "clip";
  expect_error(o, {"--text-encoder", "clip", "no folder"});
  fs::create_directory(o.text_encoder);
  expect_error(o, {"clip", "no config.json"});
  testing::write_small_encoder(o.text_encoder);
  expect_error(o, {"--text-encoder", "clip", "48 wide", "reads 20"});
  config.text_width = testing::kWidth;
  o.generator = dir_ / "text.pth";
  write_pth(o.generator, PthValue::dict(procedural_weights(generator_shapes(config))));

  // The files that the encoder reads go along, from wherever they stand; no others.
  const auto files = [&] {
    convert(o);
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(o.out / "text_encoder"))
      names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    ClipTextEncoder::open(o.out / "text_encoder", at::kCPU);
    return names;
  };
  fs::create_directory(o.text_encoder / "tokenizer");
  for (const char* name : {"vocab.json", "merges.txt"})
    fs::rename(o.text_encoder / name, o.text_encoder / "tokenizer" / name);
  std::ofstream(o.text_encoder / "tokenizer/special_tokens_map.json") << R"({"pad_token": "!"})";
  std::ofstream(o.text_encoder / "readme.md") << "not copied";
  write_tensors(o.text_encoder / "model.fp16.safetensors", {{"a", at::zeros({1})}});
  EXPECT_EQ(files(), (std::vector<std::string>{"config.json", "merges.txt", "model.safetensors",
                                               "special_tokens_map.json", "vocab.json"}));
  EXPECT_EQ(read_file(o.out / "text_encoder/vocab.json"), read_file(o.text_encoder / "tokenizer/vocab.json"));
  fs::remove_all(o.out);
  fs::remove(o.text_encoder / "model.safetensors");
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"text_encoder": {"pad_token": "!"}})";
  write_pth(o.text_encoder / "pytorch_model.bin", PthValue::dict(testing::golden_weights()));
  EXPECT_EQ(files(), (std::vector<std::string>{"config.json", "merges.txt", "pytorch_model.bin",
                                               "special_tokens_map.json", "vocab.json"}));
  EXPECT_EQ(read_model_config(o.out).text_encoder.pad_token, "!");
  fs::remove_all(o.out);
  fs::remove(o.text_encoder / "pytorch_model.bin");
  expect_error(o, {"clip", "holds no weights"});

  // Every tensor is looked for, in its size.
  TensorMap weights = testing::golden_weights();
  const std::string layer = "text_model.encoder.layers.1.";
  weights.erase(layer + "layer_norm2.weight"), weights.erase(layer + "mlp.fc2.bias");
  weights[layer + "scale"] = at::zeros({1});
  write_tensors(o.text_encoder / "model.safetensors", weights);
  expect_error(o,
               {"clip/model.safetensors",
                "lacks the tensors text_model.encoder.layers.1.layer_norm2.weight, "
                "text_model.encoder.layers.1.mlp.fc2.bias; holds text_model.encoder.layers.1.scale, which"});
  weights = testing::golden_weights();
  weights[layer + "mlp.fc2.bias"] = at::zeros({47});
  write_tensors(o.text_encoder / "model.safetensors", weights);
  expect_error(o, {"mlp.fc2.bias has shape [47], must be [48]"});
  fs::resize_file(o.text_encoder / "model.safetensors", 90);
  expect_error(o, {"model.safetensors"});
  o.text_encoder.clear();
  o.class_names = dir_ / "vq.safetensors";
  expect_error(o, {"--class-names", "text"});
  o = options();
  o.text_encoder = dir_ / "clip";
  expect_error(o, {"--text-encoder", "classes"});
}

// 1024 tokens, a policy over 32x32, the f16 tokenizer's levels.
TEST_F(Convert, MakesImagesOf512Pixels) {
  GeneratorConfig generator = small_generator();
  generator.grid_height = generator.grid_width = 32;
  write_tensors(dir_ / "gen.safetensors", procedural_weights(generator_shapes(generator)));
  write_tensors(dir_ / "vq.safetensors",
                procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(32, {1, 1, 2, 2, 4}))));
  write_pth(dir_ / "policy.pth",
            testing::policy_checkpoint(procedural_actor(published_actor_shapes(12, 8, 4, 10, 4 * 16 * 16)),
                                       testing::policy_args(1, 3)));
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 3}};
  convert(o);
  const ModelConfig config = read_model_config(o.out);
  EXPECT_EQ(config.image_size, 512);
  EXPECT_EQ(config.generator->tokens(), 1024);
  Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
  const auto schedule = pipeline.schedule("", 0, {});
  EXPECT_EQ(schedule->name(), "adaptive");
  EXPECT_EQ(schedule->steps(), 3);
  const BatchResult made = pipeline.generate({{7}, 1, 0}, *schedule);
  EXPECT_EQ(made.tokens.sizes(), (std::vector<int64_t>{1, 1024}));
  EXPECT_EQ(made.images.sizes(), (std::vector<int64_t>{1, 3, 512, 512}));
}

GeneratorConfig config_of(const GeneratorSizes& s) {
  GeneratorConfig config;
  config.width = s.width, config.depth = s.depth, config.heads = s.heads, config.codes = s.codes;
  config.grid_height = config.grid_width = s.grid;
  if (s.classes > 0) config.classes = s.classes;
  if (s.text_width > 0) config.condition = "text", config.text_width = s.text_width;
  return config;
}

TEST(ConvertPresets, AllAreReadAndFitWhatTheyAreFor) {
  std::map<std::string, int64_t> parameters;
  for (const auto& entry : fs::directory_iterator(testing::source_dir() / "configs/public")) {
    SCOPED_TRACE(entry.path());
    const auto preset =
        config_from_json<ConvertPreset>(read_json_file(entry.path().string()), entry.path().string());
    EXPECT_FALSE(preset.description.empty());
    int64_t& count = parameters[entry.path().stem()];
    for (const auto& [name, shape] : generator_shapes(config_of(preset.generator)))
      count += c10::multiply_integers(shape);
    EXPECT_EQ(preset.image_size, preset.generator.grid * 16);
  }
  EXPECT_EQ(parameters.at("adanat-l-256"), 193'655'297);
  EXPECT_EQ(parameters.at("autonat-l-256"), 193'655'297);
  EXPECT_EQ(parameters.at("adagen-maskgit-l-256"), 193'655'297);
  EXPECT_EQ(parameters.at("adanat-l-512"), 193'655'297 + 768 * 768);  // as many positions more
  EXPECT_NEAR(double(parameters.at("adanat-s-256")), 45.55e6, 0.01e6);
  EXPECT_EQ(parameters.size(), 7u);
}

// A generator of a published size has its heads without the preset, too; the preset takes it and no other.
TEST(ConvertPresets, TakeTheirGeneratorAndNoOther) {
  const TempDir dir;
  for (const auto& entry : fs::directory_iterator(testing::source_dir() / "configs/public")) {
    SCOPED_TRACE(entry.path());
    const auto preset =
        config_from_json<ConvertPreset>(read_json_file(entry.path().string()), entry.path().string());
    const GeneratorSizes& sizes = preset.generator;
    const bool text = sizes.text_width > 0;
    write_hollow(dir / "g.pth", generator_shapes(config_of(sizes)));
    const WeightSource source = WeightSource::open(dir / "g.pth");
    const auto error = [&](const GeneratorSizes& other) -> std::string {
      try {
        read_generator(source, 0, other, "p.json");
      } catch (const InputError& e) {
        return e.what();
      }
      return "no error";
    };
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(read_generator(source, 0, {}, "").config, config_of(sizes));
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find(cat("g.pth: ", sizes.heads, " attention heads")), std::string::npos) << said;
    EXPECT_EQ(read_generator(source, 0, sizes, "p.json").config, config_of(sizes));
    const std::pair<const char*, int64_t GeneratorSizes::*> condition =
        text ? std::pair{"text width", &GeneratorSizes::text_width}
             : std::pair{"number of classes", &GeneratorSizes::classes};
    for (const auto& [what, size] : {std::pair{"width", &GeneratorSizes::width},
                                     {"depth", &GeneratorSizes::depth},
                                     {"codebook", &GeneratorSizes::codes},
                                     {"grid side", &GeneratorSizes::grid},
                                     condition}) {
      GeneratorSizes other = sizes;
      other.*size += 1;
      const std::string wanted =
          cat("its ", what, " is ", sizes.*size, ", p.json says ", other.*size, "; it is not");
      EXPECT_NE(error(other).find(wanted), std::string::npos) << wanted << "\n" << error(other);
    }
    GeneratorSizes other = sizes;
    other.classes = text ? 1000 : 0, other.text_width = text ? 0 : 1280;
    const std::string wanted = text ? "on text, p.json is for one conditioned on class"
                                    : "on class, p.json is for one conditioned on text";
    EXPECT_NE(error(other).find(wanted), std::string::npos) << error(other);
  }
}

TEST_F(Convert, APresetThatCannotBeIsRefused) {
  ConvertOptions o = options();
  o.config = dir_ / "preset.json";
  for (const auto& [preset, part] :
       {std::pair{R"({"image_size": -1})", "preset.json: image_size must be 0..16384, got -1"},
        {R"({"generator": {"depth": -2}})", "preset.json: generator.depth must be 0 or more, got -2"},
        {R"({"policy": {"residual": "yes"}})", "preset.json: policy.residual must be heuristic, none or"},
        {R"({"policy": {"smoothing": 1}})", "preset.json: policy.smoothing must be -1, or in [0, 1), got 1"},
        {R"({"policy": {"heuristic": {"guidance": 0}}})", "preset.json: policy.heuristic.guidance must be"},
        {R"({"sampling": {"steps": 0}})", "preset.json: sampling.steps must be 1..1000, got 0"},
        {R"({"table": {"steps": 2, "mask_ratio": [0.5]}})", "preset.json: table.mask_ratio has 1 entries"},
        {R"({"class_names": ["a", "b\u0007"]})", "preset.json: class_names must be made of names"}}) {
    std::ofstream(o.config) << preset;
    expect_error(o, {part});
  }
}

// What was left out, assumed or overruled stands on stderr, one line each, whatever a file's names hold.
TEST_F(Convert, SaysWhatItLeavesOutAndAssumes) {
  ConvertOptions o = options();
  const auto said = [&] {
    ::testing::internal::CaptureStderr();
    convert(o);
    fs::remove_all(o.out);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(said(), "");
  const TensorMap codec = procedural_weights(tokenizer_shapes(testing::tiny_tokenizer_config(32)));
  const PthValue one = PthValue::of(at::ones({1}));
  PthValue with_loss = PthValue::dict(codec);
  with_loss.items.emplace_back("loss.logvar", one);
  o.tokenizer = dir_ / "vq.ckpt";
  write_pth(o.tokenizer,
            PthValue::dict({{"state_dict", with_loss}, {"optimizer", PthValue::dict({{"m", one}})}}));
  o.generator = dir_ / "gen.pth";
  write_pth(
      o.generator,
      PthValue::dict({{"ema", PthValue::dict(procedural_weights(generator_shapes(small_generator("text"))))},
                      {"a\x1b[2J", one}}));
  EXPECT_EQ(said(), cat((dir_ / "vq.ckpt").string(), ": left out: optimizer.m, state_dict.loss.logvar\n",
                        (dir_ / "gen.pth").string(), ": left out: a?[2J\n",
                        "warning: the folder holds no text encoder: `generate` needs one; convert again ",
                        "with --text-encoder DIR\n"));
  o = options();
  o.policies = {{dir_ / "bare.pth", 1}}, o.policy_residual = false, o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"table": {"steps": 1, "mask_ratio": [0], "remask_temperature": [1],
    "sampling_temperature": [1], "guidance": [0]}})";
  EXPECT_EQ(said(), cat((dir_ / "preset.json").string(),
                        ": its table for 1 steps gives way to the policy for as many\n"));
}

TEST_F(Convert, APresetIsForOneCheckpoint) {
  ConvertOptions o = options();
  o.heads = 0;
  o.config = testing::source_dir() / "configs/public/adanat-l-256.json";
  expect_error(o, {"gen.safetensors", "width is 12", "adanat-l-256.json says 768"});
  o.config = testing::source_dir() / "configs/public/adanat-cc3m.json";
  expect_error(o, {"width is 12", "says 1152"});
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"image_size": 32, "generator": {"heads": 3}})";
  expect_error(o, {"preset.json", "image_size is 32", "is 16"});
  std::ofstream(o.config) << R"({"generator": {"heads": 3, "text_width": 20}})";
  expect_error(o, {"conditioned on class"});
  std::ofstream(o.config) << R"({"generator": {"hats": 3}})";
  expect_error(o, {"preset.json", "generator.hats"});
  std::ofstream(o.config) << R"({"class_names": ["a"], "generator": {"heads": 3}})";
  expect_error(o, {"preset.json", "1 names", "10 classes"});
}

// The published table, which the folder then uses by itself, is the one that --schedule autonat has.
TEST_F(Convert, APublishedTableBecomesThePolicyOfItsSteps) {
  ConvertOptions o = options();
  o.config = dir_ / "preset.json";
  Json preset = read_json_file((testing::source_dir() / "configs/public/autonat-l-256.json").string());
  const auto table = config_from_json<ScheduleTable>(preset["table"], "table");
  EXPECT_EQ(table, autonat_table(8));
  preset["generator"] = Json::object(), preset["image_size"] = 0;
  std::ofstream(o.config) << preset.dump();
  convert(o);
  Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
  const auto by_itself = pipeline.schedule("", 0, {}), named = pipeline.schedule("autonat", 0, {});
  EXPECT_EQ(by_itself->name(), "adaptive");
  const BatchRequest request{{0, 3, 9}, 11, 0};
  EXPECT_TRUE(
      at::equal(pipeline.generate(request, *by_itself).tokens, pipeline.generate(request, *named).tokens));
  const PolicyNetworkConfig network = read_policy(o.out / "policy-T8.safetensors").settings.network;
  EXPECT_EQ(std::tuple(network.codes, network.grid_height, network.grid_width, network.input_width),
            std::tuple(32, 4, 4, 12));
  const auto state = by_itself->begin(1, at::kCPU);
  for (int64_t t = 0; t < 8; ++t) {
    const Action action = by_itself->next(state.get(), t, at::zeros({1, 16, 12}));
    EXPECT_EQ(action.mask_ratio.item<double>(), table.mask_ratio[size_t(t)]);
    EXPECT_EQ(action.guidance.item<float>(), t < 3 ? 0.0f : float(table.guidance[size_t(t)]));
    EXPECT_EQ(by_itself->known_guidance(t), named->known_guidance(t));
  }
  fs::remove_all(o.out);
  o.policies = {{dir_ / "policy.pth", 8}};  // a policy for as many steps is what was asked for
  convert(o);
  EXPECT_FALSE(read_policy(o.out / "policy-T8.safetensors").settings.network.shared());
}

TEST(ConvertArguments, APolicyIsSplitAtTheLastColon) {
  const TempDir dir;
  EXPECT_EQ(parse_policy_argument("a.pth:8").file, "a.pth");
  EXPECT_EQ(parse_policy_argument("a.pth:8").steps, 8);
  EXPECT_EQ(parse_policy_argument("a:b:c.pth:16").file, "a:b:c.pth");
  EXPECT_EQ(parse_policy_argument("a.pth").steps, 0);
  const std::string odd = (dir / "x:y.pth").string();
  EXPECT_THROW(parse_policy_argument(odd), InputError);
  std::ofstream(odd) << "x";
  EXPECT_EQ(parse_policy_argument(odd).file, odd);
  EXPECT_EQ(parse_policy_argument(odd).steps, 0);
  for (const char* bad :
       {"a.pth:0", "a.pth:1001", "a.pth:99999999999999999999", "a.pth:", "a.pth:x", "a.pth:-4"})
    EXPECT_THROW(parse_policy_argument(bad), InputError) << bad;
}

}  // namespace
}  // namespace adanat
