// Converting public checkpoints: names, wrappers, sizes, what is said and what is refused.
#include "core/generator/generator_recipe.h"
#include "pipeline/convert_fixture.h"
#include "text/small_encoder.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::procedural_actor;
using testing::procedural_weights;
using testing::PthValue;
using testing::published_actor_shapes;
using testing::small_generator;
using testing::write_hollow;
using testing::write_pth;

class Convert : public testing::ConvertFixture {};

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
  refused(changed, {"gen.pth: holds extra.{0-19}, which the model does not have; `adanat info` lists"});
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
  write_pth(o.generator, PthValue::dict({{"a", PthValue::dict(weights)}, {"b", PthValue::dict(weights)}}));
  expect_error(o, {"several models", "a.token_emb.word_embeddings.weight", "b.token_emb"});
}

// Sizes cannot be told without some of these: names come first.
TEST_F(Convert, NamesAllThatAGeneratorLacks) {
  const TensorMap weights = procedural_weights(generator_shapes(small_generator()));
  ConvertOptions o = options();
  o.generator = dir_ / "gen.pth";
  for (const std::vector<std::string>& gone :
       std::vector<std::vector<std::string>>{{"context_embed.word_embeddings.", "norm."},
                                             {"context_embed."},
                                             {"token_emb.position_embeddings.", "mid_block."},
                                             {"in_blocks.0."},  // the layers behind a gap are not left over
                                             {"out_blocks.1."},
                                             {"in_blocks."},
                                             {"out_blocks.0.", "out_blocks.1.attn."},
                                             {"in_blocks.0.mlp.", "in_blocks.1.norm", "out_blocks.0."}}) {
    SCOPED_TRACE(gone[0]);
    expect_all_named(o, o.generator, weights, gone);
  }
  const TensorMap of_texts = procedural_weights(generator_shapes(small_generator("text")));
  expect_all_named(o, o.generator, of_texts, {"context_embed.weight", "mlm_layer.bias"});
  TensorMap short_of = weights;
  for (const char* block : {"in_blocks.0.", "in_blocks.1."}) short_of.erase(cat(block, "attn.qkv.weight"));
  short_of.erase("norm.bias");
  write_pth(o.generator, PthValue::dict(short_of));
  expect_error(o, {"gen.pth: lacks in_blocks.{0,1}.attn.qkv.weight, norm.bias; is it the file of another"});
}

// What lies far above the layers, or is no layer, does not make them more.
TEST_F(Convert, StrayLayersAreLeftOver) {
  const TensorMap weights = procedural_weights(generator_shapes(small_generator()));
  ConvertOptions o = options();
  o.generator = dir_ / "gen.pth";
  for (const char* stray : {"in_blocks.2.norm1.weight", "in_blocks.7.norm1.weight",
                            "in_blocks.99999999999999999999.norm1.weight", "in_blocks.02.norm1.weight",
                            "in_blocks.-1.norm1.weight", "in_blocks.2", "in_blocks.", "in_blocks.x.y"}) {
    TensorMap more = weights;
    more[stray] = at::zeros({12});
    write_pth(o.generator, PthValue::dict(more));
    EXPECT_EQ(error(o), cat(o.generator.string(), ": holds ", stray,
                            ", which the model does not have; `adanat info` lists what is in the file"));
  }
  TensorMap more = weights;  // a whole layer, but none that a model could have
  for (const auto& [name, tensor] : weights)
    if (name.starts_with("in_blocks.0.")) more.emplace("in_blocks.123456789." + name.substr(12), tensor);
  write_pth(o.generator, PthValue::dict(more));
  expect_error(o,
               {"gen.pth: holds in_blocks.123456789.attn.proj.bias, in_blocks.123456789.attn.proj.weight"});
}

TEST_F(Convert, NamesAllThatATokenizerLacks) {
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

TEST_F(Convert, AFileInAFoldersPlaceIsToBeConvertedFirst) {
  const auto message = [](const fs::path& folder) -> std::string {
    try {
      read_model_config(folder);
    } catch (const InputError& e) {
      return e.what();
    }
    return "no error";
  };
  const std::string file = (dir_ / "gen.safetensors").string(), nothing = (dir_ / "nothing").string();
  EXPECT_EQ(message(file), file +
                               ": is no model folder but a file; give the folder that it is in, or convert "
                               "it first (`adanat convert`)");
  EXPECT_EQ(message(nothing), nothing +
                                  ": is no model folder (no such folder); give one that `adanat train` "
                                  "or `adanat convert` wrote");
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
  expect_error(o, {"vq.ckpt: lacks encoder.down.{0-2}.block.0.conv1.weight"});
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
  expect_error(o, {"large.pth: norm.bias holds values up to 1e+06, more than float16 can hold (65504); use "
                   "--dtype bfloat16 or float32"});
  large.at("norm.bias")[2] = -3.4e38;
  o.dtype = at::kBFloat16;
  write_pth(o.generator, PthValue::dict(large));
  expect_error(o, {"large.pth: norm.bias holds values up to 3.4e+38, more than bfloat16 can hold (3.39e38); "
                   "use --dtype float32"});
  o.dtype = at::kFloat;
  convert(o);
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
  expect_error(o, {"--text-encoder",
                   "clip: gives 77 states of width 48, the generator wants 77 of width 20; "
                   "it was trained with another encoder"});
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
  std::ofstream(o.config) << R"({"text_encoder": {"pad_token": "<unheard>"}})";  // `generate` would refuse it
  expect_error(o, {"<unheard>"});
  std::ofstream(o.config) << "{}";
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
                "lacks text_model.encoder.layers.1.layer_norm2.weight, "
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

// What `generate` would refuse about an encoder, `convert` does.
TEST_F(Convert, ATextEncoderMustBeWholeAndFit) {
  GeneratorConfig config = small_generator("text");
  config.text_width = testing::kWidth;
  write_pth(dir_ / "text.pth", PthValue::dict(procedural_weights(generator_shapes(config))));
  ConvertOptions o = options();
  o.generator = dir_ / "text.pth", o.text_encoder = dir_ / "clip";
  fs::create_directory(o.text_encoder);
  testing::write_small_encoder(o.text_encoder);
  const TensorMap whole = testing::golden_weights();
  const auto with = [&](const TensorMap& weights) {
    fs::remove(o.text_encoder / "model.safetensors");
    write_tensors(o.text_encoder / "model.safetensors", weights);
  };
  const auto without = [&](std::initializer_list<const char*> gone) {
    TensorMap weights = whole;
    for (const char* prefix : gone)
      std::erase_if(weights, [&](const auto& item) { return item.first.starts_with(prefix); });
    with(weights);
  };
  const std::string advice = "; is it the file of another part, or a damaged download?";
  without({"text_model.embeddings.position_embedding.", "text_model.final_layer_norm.weight"});
  expect_error(o, {cat("clip/model.safetensors: lacks text_model.embeddings.position_embedding.weight, "
                       "text_model.final_layer_norm.weight",
                       advice)
                       .c_str()});
  without({"text_model.encoder.layers.0.", "text_model.encoder.layers.1."});  // a gap below the third layer
  expect_error(o, {"lacks text_model.encoder.layers.{0,1}.layer_norm1.bias, ",
                   cat(", text_model.encoder.layers.{0,1}.self_attn.v_proj.weight", advice).c_str()});
  TensorMap bare;  // as CLIPTextModel's inner model is saved
  for (const auto& [name, tensor] : whole)
    if (name.starts_with("text_model.") && name != "text_model.encoder.layers.2.mlp.fc1.bias")
      bare.emplace(name.substr(11), tensor);
  bare.erase("final_layer_norm.bias"), bare["vision.x"] = at::zeros({1});
  with(bare);
  expect_error(o, {cat("lacks encoder.layers.2.mlp.fc1.bias, final_layer_norm.bias", advice).c_str()});

  for (const char* name : {"text_model.final_layer_norm.weight", "text_projection.weight"}) {
    TensorMap bad = whole;
    bad[name] = whole.at(name).clone();
    bad[name].view(-1)[1] = NAN;
    with(bad);
    expect_error(o, {cat("clip/model.safetensors: ", name, " holds NaN or infinity").c_str()});
  }
  TensorMap both = whole;  // a vision tower stays unread
  both["vision_model.post_layernorm.bias"] = at::full({4}, NAN);
  both["text_model.embeddings.position_ids"] = at::arange(77);
  with(both);
  convert(o);
  fs::remove_all(o.out);

  nlohmann::json settings = testing::golden_config("quick_gelu");
  settings["max_position_embeddings"] = 60;
  testing::write_text(o.text_encoder / "config.json", settings.dump());
  TensorMap fewer = whole;
  const std::string positions = "text_model.embeddings.position_embedding.weight";
  fewer[positions] = whole.at(positions).narrow(0, 0, 60).clone();
  with(fewer);
  expect_error(o, {"--text-encoder", "clip: gives 60 states of width 48, the generator wants 77 of width 48",
                   "--config must say another generator.text_tokens"});
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"generator": {"text_tokens": 60}})";
  convert(o);
  Pipeline::open(o.out, at::kCPU, at::kFloat).set_prompts({"a cat"});
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
  EXPECT_EQ(
      said(),
      cat((dir_ / "preset.json").string(), ": its table for 1 steps gives way to the policy for as many\n",
          (dir_ / "preset.json").string(),
          ": sampling.steps is 8, for which there is no policy: ", "`generate` takes 1 steps by itself\n"));
  // Each of them, however many: numbers are written together.
  o = options();
  o.generator = dir_ / "gen.pth";
  PthValue kept = PthValue::dict(procedural_weights(generator_shapes(small_generator())));
  PthValue state = PthValue::dict(PthValue::Items{});
  for (const char* what : {"exp_avg", "exp_avg_sq"})
    for (int i = 0; i < 12; ++i) state.items.emplace_back(cat("state.", i, ".", what), one);
  write_pth(o.generator, PthValue::dict({{"nnet_ema", kept}, {"optimizer", state}}));
  EXPECT_EQ(said(), cat(o.generator.string(), ": left out: optimizer.state.{0-11}.exp_avg, ",
                        "optimizer.state.{0-11}.exp_avg_sq\n"));
}

}  // namespace
}  // namespace adanat
