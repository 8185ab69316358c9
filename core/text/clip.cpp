#include "core/text/clip.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sigmoid.h>

#include <algorithm>
#include <optional>
#include <set>

#include "core/base/config.h"
#include "core/base/list_names.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/text.h"
#include "core/io/atomic_file.h"
#include "core/nn/module_state.h"
#include "core/text/clip_files.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

// Where the tokenizer of an encoder lies: with it, or in tokenizer/ as pipelines of diffusers have it.
fs::path tokenizer_folder(const fs::path& folder) {
  for (const fs::path& place :
       {folder, folder / "tokenizer", fs::absolute(folder).parent_path() / "tokenizer"})
    if (fs::exists(place / "vocab.json") || fs::exists(place / "tokenizer.json")) return place;
  return folder;  // the reader says what is missing
}

std::vector<fs::path> existing(const fs::path& folder, std::initializer_list<const char*> names) {
  std::vector<fs::path> out;
  for (const char* name : names)
    if (fs::exists(folder / name)) out.push_back(folder / name);
  return out;
}

// The tensors of model.safetensors or pytorch_model.bin, or of the shards that the index beside it lists.
TensorMap read_weights(const fs::path& folder, std::vector<fs::path>& files) {
  for (const char* name : {"model.safetensors", "pytorch_model.bin"}) {
    const fs::path whole = folder / name, index = folder / (std::string(name) + ".index.json");
    if (fs::exists(whole)) {
      files.push_back(whole);
      return read_tensors(whole);
    }
    if (!fs::exists(index)) continue;
    files.push_back(index);
    const nlohmann::json j =
        nlohmann::json::parse(read_file(index, BpeTokenizer::kMaxFile), nullptr, /*allow_exceptions=*/false);
    const auto map = j.is_object() ? j.find("weight_map") : j.end();
    if (!j.is_object() || map == j.end() || !map->is_object() || map->empty())
      throw InputError(cat(index.string(), ": must hold {\"weight_map\": {tensor: file}}"));
    std::map<std::string, TensorMap> shards;
    TensorMap out;
    for (const auto& [key, value] : map->items()) {
      const std::string file = value.is_string() ? value.get<std::string>() : "";
      if (file.empty() || file.find('/') != std::string::npos || file == "..")
        throw InputError(cat(index.string(), ": weight_map.", printable(key), " must name a file beside it"));
      if (!shards.contains(file)) {
        if (!fs::exists(folder / file))
          throw InputError(
              cat((folder / printable(file)).string(), ": this shard of the text encoder is missing"));
        shards.emplace(file, read_tensors(folder / file));
        files.push_back(folder / file);
      }
      const auto found = shards.at(file).find(key);
      if (found == shards.at(file).end())
        throw InputError(cat((folder / file).string(), ": lacks the tensor ", printable(key),
                             ", which the index puts there"));
      out.emplace(key, found->second);
    }
    return out;
  }
  throw InputError(
      cat(folder.string(),
          ": holds no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards"));
}

// The keys of config.json that matter here, of the text tower of a whole CLIP where it describes both.
struct Settings {
  std::optional<int64_t> width, layers, heads, hidden, positions, vocabulary;
  std::string activation = "quick_gelu";
  double eps = 1e-5;
};

Settings read_settings(const fs::path& file) {
  const Json whole = read_json_file(file.string());
  if (!whole.is_object()) throw InputError(cat(file.string(), ": must hold one JSON object"));
  const bool both = whole.contains("text_config") && whole["text_config"].is_object();
  const Json& j = both ? whole["text_config"] : whole;
  const std::string kind = whole.value("model_type", Json("clip")).is_string()
                               ? whole.value("model_type", std::string("clip"))
                               : "";
  if (kind.find("clip") == std::string::npos)
    throw InputError(cat(file.string(), ": model_type is \"", printable(kind), "\", must be a CLIP"));
  Settings out;
  const auto integer = [&](const char* key, std::optional<int64_t>& value) {
    if (!j.contains(key) || j[key].is_null()) return;
    int64_t given = 0;
    config_detail::read_value(j[key], given, file.string(), key);
    if (given < 1 || given > (1 << 24))
      throw InputError(cat(file.string(), ": ", key, " must be 1..16777216, got ", given));
    value = given;
  };
  integer("hidden_size", out.width);
  integer("num_hidden_layers", out.layers);
  integer("num_attention_heads", out.heads);
  integer("intermediate_size", out.hidden);
  integer("max_position_embeddings", out.positions);
  integer("vocab_size", out.vocabulary);
  if (j.contains("hidden_act"))
    config_detail::read_value(j["hidden_act"], out.activation, file.string(), "hidden_act");
  if (j.contains("layer_norm_eps"))
    config_detail::read_value(j["layer_norm_eps"], out.eps, file.string(), "layer_norm_eps");
  if (out.activation != "quick_gelu" && out.activation != "gelu")
    throw InputError(
        cat(file.string(), ": hidden_act must be quick_gelu or gelu, got ", printable(out.activation)));
  if (!(out.eps > 0 && out.eps < 1))
    throw InputError(cat(file.string(), ": layer_norm_eps must be in (0, 1), got ", out.eps));
  return out;
}

// All of a folder but the numbers in its weights.
struct Parts {
  BpeTokenizer tokenizer;
  ClipTextConfig config;
  std::vector<fs::path> files;
  std::string where, prefix;  // the last file of weights, and what stands in front of the tower's names
  TensorMap tower;            // by the names of clip_text_shapes
  at::Tensor projection;      // which stands outside the tower; undefined if there is none
};

// Names and shapes of a tower.
ShapeMap clip_text_shapes(const ClipTextConfig& c) {
  ShapeMap out;
  const auto pair = [&](const std::string& name, std::vector<int64_t> weight) {
    out[name + ".bias"] = {weight[0]};
    out[name + ".weight"] = std::move(weight);
  };
  out["embeddings.token_embedding.weight"] = {c.vocabulary, c.width};
  out["embeddings.position_embedding.weight"] = {c.positions, c.width};
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = cat("encoder.layers.", i, ".");
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"})
      pair(cat(layer, "self_attn.", name), {c.width, c.width});
    pair(layer + "layer_norm1", {c.width}), pair(layer + "layer_norm2", {c.width});
    pair(layer + "mlp.fc1", {c.hidden, c.width}), pair(layer + "mlp.fc2", {c.width, c.hidden});
  }
  pair("final_layer_norm", {c.width});
  return out;
}

// The tower among all tensors of the files, and the projection.
void find_tower(const TensorMap& tensors, Parts& parts) {
  const auto holds = [&](const std::string& prefix) {
    return tensors.contains(prefix + "embeddings.token_embedding.weight");
  };
  parts.prefix = holds("text_model.") ? "text_model." : "";
  if (!holds(parts.prefix))
    throw InputError(
        cat(parts.where, ": holds no CLIP text encoder: lacks text_model.embeddings.token_embedding.weight"));
  const auto of_tower = [&](const std::string& name) {
    if (!parts.prefix.empty()) return name.starts_with(parts.prefix);
    return name.starts_with("embeddings.") || name.starts_with("encoder.") ||
           name.starts_with("final_layer_norm.");
  };
  for (const auto& [name, tensor] : tensors) {
    if (name == "text_projection.weight")
      parts.projection = tensor;
    else if (of_tower(name) && !name.ends_with("position_ids"))
      parts.tower.emplace(name.substr(parts.prefix.size()), tensor);
  }
}

// What the tensors say, where config.json says the same.
void read_sizes(const Settings& settings, const std::string& config_file, Parts& parts) {
  ClipTextConfig& c = parts.config;
  const auto size_of = [&](const std::string& name, int64_t dimension) {
    const at::Tensor& tensor = parts.tower.at(name);
    if (tensor.dim() != 2)
      throw InputError(cat(parts.where, ": ", parts.prefix, name, " has shape ", tensor.sizes(),
                           ", must have 2 dimensions"));
    return tensor.size(dimension);
  };
  constexpr int64_t kTensors = 16;  // of a layer
  ShapeMap found;
  for (const auto& [name, tensor] : parts.tower) found.emplace(parts.prefix + name, tensor.sizes().vec());
  c.layers = count_layers(found, parts.prefix + "encoder.layers.", kTensors);
  ShapeMap expected;
  for (auto& [name, shape] : clip_text_shapes(c)) expected.emplace(parts.prefix + name, shape);
  check_names(parts.where, found, expected);
  c.vocabulary = size_of("embeddings.token_embedding.weight", 0);
  c.width = size_of("embeddings.token_embedding.weight", 1);
  c.positions = size_of("embeddings.position_embedding.weight", 0);
  if (c.layers == 0 || c.vocabulary == 0 || c.width == 0 || c.positions < 2)
    throw InputError(cat(parts.where, ": holds no CLIP text encoder: ", c.layers, " layers, ", c.positions,
                         " positions, ", c.vocabulary, " tokens of width ", c.width));
  c.hidden = size_of("encoder.layers.0.mlp.fc1.weight", 0);
  c.heads = settings.heads.value_or(std::max<int64_t>(c.width / 64, 1));  // every published tower: 64 a head
  c.activation = settings.activation, c.eps = settings.eps;
  const auto agree = [&](const char* key, const std::optional<int64_t>& said, int64_t is) {
    if (said && *said != is)
      throw InputError(cat(config_file, ": ", key, " is ", *said, ", but the weights have ", is));
  };
  agree("hidden_size", settings.width, c.width);
  agree("num_hidden_layers", settings.layers, c.layers);
  agree("intermediate_size", settings.hidden, c.hidden);
  agree("max_position_embeddings", settings.positions, c.positions);
  agree("vocab_size", settings.vocabulary, c.vocabulary);
  if (c.width % c.heads != 0)
    throw InputError(
        cat(config_file, ": num_attention_heads must divide the width ", c.width, ", got ", c.heads));
}

void check_tensor(const std::string& where, const std::string& name, const at::Tensor& tensor,
                  at::IntArrayRef shape) {
  if (tensor.sizes() != shape)
    throw InputError(cat(where, ": ", name, " has shape ", tensor.sizes(), ", must be ", shape));
  if (!tensor.is_floating_point())
    throw InputError(
        cat(where, ": ", name, " must hold fractions, not ", name_of(dtype_of(tensor.scalar_type()))));
}

void check_tensors(Parts& parts) {
  for (const auto& [name, shape] : clip_text_shapes(parts.config))
    check_tensor(parts.where, parts.prefix + name, parts.tower.at(name), shape);
  if (!parts.projection.defined()) {
    parts.config.projected = parts.config.width;
    return;
  }
  parts.config.projected = parts.projection.dim() == 2 ? parts.projection.size(0) : 0;
  check_tensor(parts.where, "text_projection.weight", parts.projection,
               {parts.config.projected, parts.config.width});
}

Parts open_parts(const fs::path& folder, const std::string& pad) {
  if (!fs::is_directory(folder))
    throw InputError(cat(folder.string(),
                         ": is no text encoder (no such folder); a Hugging Face folder of a CLIP is wanted"));
  const fs::path config_file = folder / "config.json";
  if (!fs::exists(config_file))
    throw InputError(cat(folder.string(),
                         ": is no text encoder (no config.json); a Hugging Face folder of a CLIP is wanted"));
  const Settings settings = read_settings(config_file);
  const fs::path words = tokenizer_folder(folder);
  Parts out{BpeTokenizer::open(words, pad), {}, {config_file}, "", "", {}, {}};
  for (const fs::path& file : existing(words, {"vocab.json", "merges.txt", "tokenizer.json",
                                               "tokenizer_config.json", "special_tokens_map.json"}))
    out.files.push_back(file);
  const TensorMap tensors = read_weights(folder, out.files);
  out.where = out.files.back().string();
  find_tower(tensors, out);
  read_sizes(settings, config_file.string(), out);
  check_tensors(out);
  if (out.tokenizer.id_limit() > out.config.vocabulary)
    throw InputError(cat(words.string(), ": the tokenizer has ids up to ", out.tokenizer.id_limit() - 1,
                         ", but the encoder knows ", out.config.vocabulary,
                         " tokens; they belong to different models"));
  return out;
}

}  // namespace

ClipTextFiles check_clip_text(const fs::path& folder, const std::string& pad) {
  Parts parts = open_parts(folder, pad);
  for (const auto& [name, tensor] : parts.tower) check_finite({{parts.prefix + name, tensor}}, parts.where);
  if (parts.projection.defined()) check_finite({{"text_projection.weight", parts.projection}}, parts.where);
  return {std::move(parts.config), std::move(parts.files)};
}

ClipTextEncoder ClipTextEncoder::open(const fs::path& folder, at::Device device, const std::string& pad) {
  const at::NoGradGuard no_grad;
  Parts parts = open_parts(folder, pad);
  ClipTextEncoder out(std::move(parts.tokenizer), device);
  out.config_ = std::move(parts.config), out.files_ = std::move(parts.files);
  const auto put = [&](const at::Tensor& tensor, const std::string& name) {
    at::Tensor here = tensor.to(device, at::kFloat);
    check_finite({{name, here}}, parts.where);
    return here;
  };
  const auto take = [&](const std::string& name) { return put(parts.tower.at(name), parts.prefix + name); };
  const auto norm = [&](const std::string& name) {
    return Norm{take(name + ".weight"), take(name + ".bias")};
  };
  const auto linear = [&](const std::string& name) {
    return Linear{take(name + ".weight"), take(name + ".bias")};
  };
  out.token_embedding_ = take("embeddings.token_embedding.weight");
  out.position_embedding_ = take("embeddings.position_embedding.weight");
  for (int64_t i = 0; i < out.config_.layers; ++i) {
    const std::string at = cat("encoder.layers.", i, ".");
    out.layers_.push_back({norm(at + "layer_norm1"), norm(at + "layer_norm2"),
                           linear(at + "self_attn.q_proj"), linear(at + "self_attn.k_proj"),
                           linear(at + "self_attn.v_proj"), linear(at + "self_attn.out_proj"),
                           linear(at + "mlp.fc1"), linear(at + "mlp.fc2")});
  }
  out.final_norm_ = norm("final_layer_norm");
  if (parts.projection.defined()) out.projection_ = put(parts.projection, "text_projection.weight");
  return out;
}

std::string ClipTextEncoder::hash() const {
  // Names do not matter, the order of the files does: it is fixed by open().
  std::string all;
  for (const fs::path& file : files_) all += sha256_file(file.string());
  all += cat("pad ", tokenizer_.pad_id());
  return sha256_hex(all.data(), all.size());
}

at::Tensor ClipTextEncoder::run_layer(const Layer& layer, const at::Tensor& x) const {
  const int64_t b = x.size(0), l = x.size(1), c = x.size(2), heads = config_.heads;
  const auto normed = [&](const at::Tensor& y, const Norm& n) {
    return at::layer_norm(y, {c}, n.weight, n.bias, config_.eps);
  };
  const auto linear = [](const at::Tensor& y, const Linear& w) { return at::linear(y, w.weight, w.bias); };
  const auto split = [&](const at::Tensor& y) { return y.view({b, l, heads, c / heads}).transpose(1, 2); };
  const at::Tensor y = normed(x, layer.norm1);
  // The default scale is head_dim^-0.5. The mask is causal alone: padding comes behind what it could disturb.
  const at::Tensor attended =
      at::scaled_dot_product_attention(split(linear(y, layer.q)), split(linear(y, layer.k)),
                                       split(linear(y, layer.v)), {}, 0.0, /*is_causal=*/true);
  const at::Tensor mixed = x + linear(attended.transpose(1, 2).reshape({b, l, c}), layer.out);
  const at::Tensor inner = linear(normed(mixed, layer.norm2), layer.fc1);
  const at::Tensor active =
      config_.activation == "gelu" ? at::gelu(inner) : inner * at::sigmoid(inner * 1.702);
  return mixed + linear(active, layer.fc2);
}

ClipTextOutput ClipTextEncoder::forward(const at::Tensor& ids) const {
  TORCH_CHECK(ids.dim() == 2 && ids.size(1) >= 1 && ids.size(1) <= config_.positions,
              "clip: ids must be (B, 1..", config_.positions, "), got ", ids.sizes());
  const at::NoGradGuard no_grad;
  const at::Tensor here = ids.to(device_);
  at::Tensor x = at::embedding(token_embedding_, here) + position_embedding_.narrow(0, 0, ids.size(1));
  for (const Layer& layer : layers_) x = run_layer(layer, x);
  ClipTextOutput out;
  out.states = at::layer_norm(x, {config_.width}, final_norm_.weight, final_norm_.bias, config_.eps);
  const at::Tensor end = (here == tokenizer_.end_id()).to(at::kInt).argmax(1);  // the first of them
  const at::Tensor rows = end.view({-1, 1, 1}).expand({-1, 1, config_.width});
  out.pooled = out.states.gather(1, rows).squeeze(1);
  if (projection_.defined()) out.pooled = at::linear(out.pooled, projection_);
  return out;
}

at::Tensor ClipTextEncoder::tokenize(const std::vector<std::string>& texts, int64_t* cut) const {
  at::Tensor ids = at::empty({int64_t(texts.size()), config_.positions}, at::kLong);
  auto* row = ids.mutable_data_ptr<int64_t>();
  for (const std::string& text : texts) {
    const BpeTokenizer::Padded padded = tokenizer_.encode_padded(text, config_.positions);
    if (!padded.cut.empty() && cut != nullptr)
      ++*cut;
    else if (!padded.cut.empty())
      warning(cat("the text \"", printable(text), "\" is over ", config_.positions,
                  " tokens long, the rest was cut off: \"", printable(padded.cut), "\""));
    row = std::copy(padded.ids.begin(), padded.ids.end(), row);
  }
  return ids;
}

ClipTextOutput ClipTextEncoder::encode(const std::vector<std::string>& texts, int64_t batch_size,
                                       int64_t* cut) const {
  TORCH_CHECK(!texts.empty() && batch_size >= 1, "clip: no texts to encode");
  const at::Tensor ids = tokenize(texts, cut);
  std::vector<at::Tensor> states, pooled;
  for (int64_t begin = 0; begin < ids.size(0); begin += batch_size) {
    const ClipTextOutput part = forward(ids.narrow(0, begin, std::min(batch_size, ids.size(0) - begin)));
    states.push_back(part.states), pooled.push_back(part.pooled);
  }
  return {at::cat(states), at::cat(pooled)};
}

}  // namespace adanat
