// Converting generators of texts, and the text encoders beside them.
#include "pipeline/convert_fixture.h"
#include "text/small_encoder.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::procedural_weights;
using testing::PthValue;
using testing::small_generator;
using testing::write_pth;

class ConvertText : public testing::ConvertFixture {};

TEST_F(ConvertText, TextGeneratorsAndTheirEncoder) {
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
TEST_F(ConvertText, ATextEncoderMustBeWholeAndFit) {
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

}  // namespace
}  // namespace adanat
