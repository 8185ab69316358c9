// Converting public checkpoints: generators, and what holds for every part: names, wrappers, sizes, what is
// said and what is refused.
#include "core/generator/generator_recipe.h"
#include "pipeline/convert_fixture.h"
#include "support/message_of.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::message_of;
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

TEST_F(Convert, AFileInAFoldersPlaceIsToBeConvertedFirst) {
  const auto message = [](const fs::path& folder) -> std::string {
    return message_of([&] { read_model_config(folder); });
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
