#include <algorithm>
#include <cmath>

#include "apps/pipeline/convert_parts.h"
#include "core/base/text.h"
#include "tokenizer/shapes.h"

namespace adanat {
namespace {

constexpr const char* kAnchor = "encoder.conv_in.weight";

// open-muse's spelling -> taming's, which is ours.
std::string our_spelling(const std::string& name) {
  const auto swap = [&](const std::string& from, const std::string& to) -> std::optional<std::string> {
    const size_t at = name.find(from);
    if (at == std::string::npos) return std::nullopt;
    return name.substr(0, at) + to + name.substr(at + from.size());
  };
  for (const auto& [from, to] : {std::pair{".mid.0.", ".mid.block_1."}, {".mid.1.", ".mid.block_2."}})
    if (const auto out = swap(from, to)) return *out;
  if (name.starts_with("decoder.up."))
    if (const auto out = swap(".upsample_conv.", ".upsample.conv.")) return *out;
  return name;
}

bool shortcut_from_hidden(const std::string& where, const ShapeMap& found) {
  std::optional<bool> hidden;
  for (const auto& [name, shape] : found) {
    constexpr std::string_view kTail = "nin_shortcut.weight";
    if (!name.ends_with(kTail)) continue;
    const std::string block = name.substr(0, name.size() - kTail.size());
    const int64_t out = size_of_tensor(where, found, block + "conv1.weight", 4, 0);
    const int64_t in = size_of_tensor(where, found, block + "conv1.weight", 4, 1);
    const int64_t reads = size_of_tensor(where, found, name, 4, 1);
    if (out == in) continue;  // left over: the comparison of names says so
    if (hidden && *hidden != (reads == out))
      throw InputError(
          cat(where, ": ", printable(name), " takes its shortcut from elsewhere than the others"));
    hidden = reads == out;
  }
  return hidden.value_or(false);
}

// Channels that a level makes, by any of its blocks that says so; 0 where none does.
int64_t width_of_level(const ShapeMap& found, int64_t level, int64_t blocks) {
  for (const char* half : {"encoder.down.", "decoder.up."})
    for (int64_t block = 0; block < blocks; ++block)
      for (const char* tensor : {"conv1.weight", "conv2.weight", "norm2.weight", "norm2.bias"}) {
        const auto it = found.find(cat(half, level, ".block.", block, ".", tensor));
        if (it != found.end() && !it->second.empty() && it->second[0] > 0) return it->second[0];
      }
  return 0;
}

// What fixes the names of a tokenizer's tensors: its levels and blocks, and where widths change (a shortcut
// is there). Sizes are any.
TokenizerConfig structure_of(const ShapeMap& found, int64_t channels) {
  constexpr int64_t kTensors = 6;                       // of a block, a shortcut not counted
  constexpr int64_t kMostLevels = 8, kMostBlocks = 64;  // TokenizerConfig's; what is beyond is left over
  const auto blocks_of = [&](const char* half, int64_t levels) {
    int64_t most = 0;
    for (int64_t l = 0; l < levels; ++l)
      most = std::max(most, count_layers(found, cat(half, l, ".block."), kTensors));
    return most;
  };
  TokenizerConfig config;
  const int64_t counted =
      std::max(count_layers(found, "encoder.down.", kTensors), count_layers(found, "decoder.up.", kTensors));
  const int64_t levels = std::clamp<int64_t>(counted, 1, kMostLevels);
  config.residual_blocks = blocks_of("encoder.down.", levels);
  if (config.residual_blocks == 0)
    config.residual_blocks = std::max<int64_t>(1, blocks_of("decoder.up.", levels));
  config.residual_blocks = std::min(config.residual_blocks, kMostBlocks);
  config.channel_multipliers.clear();
  int64_t multiplier = 1;
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t width = width_of_level(found, l, config.residual_blocks);
    if (width != 0 && width != channels) multiplier = 3 - multiplier, channels = width;
    config.channel_multipliers.push_back(multiplier);
  }
  return config;
}

// What the tensors tell. InputError: some are missing or left over, all of them named.
TokenizerConfig sizes_of(const std::string& where, const ShapeMap& found) {
  if (found.contains("encoder.down_blocks.0.resnets.0.conv1.weight"))
    throw InputError(cat(where,
                         ": is a diffusers VQModel (encoder.down_blocks...), whose layers are others than ",
                         "the MaskGIT VQGAN's (encoder.down...)"));
  const int64_t channels = size_of_tensor(where, found, kAnchor, 4, 0);
  TokenizerConfig config = structure_of(found, channels);
  check_names(where, found, tokenizer_shapes(config));
  config.channels = channels;
  const int64_t pixel = size_of_tensor(where, found, kAnchor, 4, 1);
  config.unshuffle = int64_t(std::llround(std::sqrt(double(pixel) / 3)));
  if (3 * config.unshuffle * config.unshuffle != pixel)
    throw InputError(cat(where, ": ", kAnchor, " reads ", pixel, " channels, which is not 3 times a square"));
  config.codes = size_of_tensor(where, found, "quantize.embedding.weight", 2, 0);
  config.latent_channels = size_of_tensor(where, found, "quantize.embedding.weight", 2, 1);
  for (size_t l = 0; l < config.channel_multipliers.size(); ++l) {
    const std::string first = cat("encoder.down.", l, ".block.0.conv1.weight");
    const int64_t out = size_of_tensor(where, found, first, 4, 0);
    if (out % config.channels != 0)
      throw InputError(cat(where, ": ", first, " makes ", out, " channels, no multiple of the first level's ",
                           config.channels));
    config.channel_multipliers[l] = out / config.channels;
  }
  config.shortcut_from = shortcut_from_hidden(where, found) ? "hidden" : "input";
  return config;
}

}  // namespace

TokenizerPart read_tokenizer(const WeightSource& source) {
  const std::string& where = source.where();
  auto names = find_model(source, kAnchor);
  if (!names) {
    const bool generator = find_model(source, "token_emb.word_embeddings.weight").has_value();
    throw InputError(cat(where, ": is no VQGAN: it lacks ", kAnchor, " (under any prefix)",
                         generator ? "; it is a generator, give it as --generator"
                                   : "; `adanat info` lists what is in the file"));
  }
  TokenizerPart part{{}, {names->prefix, {}, names->left_out}};
  for (const auto& [name, source_name] : names->names) {
    if (name.starts_with("loss."))
      part.weights.left_out.push_back(source_name);
    else if (!part.weights.names.emplace(our_spelling(name), source_name).second)
      throw InputError(cat(where, ": holds ", printable(name), " in both spellings"));
  }
  const ShapeMap found = part.weights.shapes(source);
  const Metadata& metadata = source.metadata();
  const bool own = metadata.contains("config") && metadata.contains("format") && metadata.at("format") == "1";
  try {
    if (own) {
      part.config =
          config_from_json<TokenizerConfig>(parse_json(metadata.at("config"), where), where + " (config)");
    } else {
      part.config = sizes_of(where, found);
      part.config.image_size = part.config.factor();  // any that fits: the caller knows it
      part.config.validate();
    }
  } catch (const InputError& e) {
    const std::string what = e.what();
    throw InputError(what.starts_with(where) ? what : cat(where, ": ", what));
  }
  check_weights(where, found, tokenizer_shapes(part.config));
  return part;
}

}  // namespace adanat
