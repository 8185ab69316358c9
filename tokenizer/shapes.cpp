#include "tokenizer/shapes.h"

namespace adanat {
namespace {

void add_norm(ShapeMap& shapes, const std::string& name, int64_t channels) {
  shapes[name + ".weight"] = {channels};
  shapes[name + ".bias"] = {channels};
}

void add_conv(ShapeMap& shapes, const std::string& name, int64_t in, int64_t out, int64_t kernel, bool bias) {
  shapes[name + ".weight"] = {out, in, kernel, kernel};
  if (bias) shapes[name + ".bias"] = {out};
}

void add_block(ShapeMap& shapes, const std::string& name, int64_t in, int64_t out, bool from_hidden) {
  add_norm(shapes, name + ".norm1", in);
  add_norm(shapes, name + ".norm2", out);
  add_conv(shapes, name + ".conv1", in, out, 3, false);
  add_conv(shapes, name + ".conv2", out, out, 3, false);
  if (in != out) add_conv(shapes, name + ".nin_shortcut", from_hidden ? out : in, out, 1, false);
}

}  // namespace

ShapeMap tokenizer_shapes(const TokenizerConfig& config) {
  config.validate();
  const bool from_hidden = config.shortcut_from == "hidden";
  const int64_t pixel = 3 * config.unshuffle * config.unshuffle;
  const size_t levels = config.channel_multipliers.size();
  const auto width_of = [&](size_t level) { return config.channels * config.channel_multipliers[level]; };
  ShapeMap shapes;
  const auto add_level = [&](const std::string& name, int64_t in, int64_t out) {
    for (int64_t i = 0; i < config.residual_blocks; ++i)
      add_block(shapes, name + ".block." + std::to_string(i), i == 0 ? in : out, out, from_hidden);
  };
  for (size_t l = 0; l < levels; ++l) {
    const std::string level = std::to_string(l);
    add_level("encoder.down." + level, l == 0 ? config.channels : width_of(l - 1), width_of(l));
    add_level("decoder.up." + level, l + 1 == levels ? width_of(l) : width_of(l + 1), width_of(l));
    if (l > 0) add_conv(shapes, "decoder.up." + level + ".upsample.conv", width_of(l), width_of(l), 3, true);
  }
  const int64_t top = width_of(levels - 1), bottom = width_of(0);
  for (const std::string part : {"encoder", "decoder"})
    for (const char* block : {".mid.block_1", ".mid.block_2"})
      add_block(shapes, part + block, top, top, from_hidden);
  add_conv(shapes, "encoder.conv_in", pixel, config.channels, 3, false);
  add_norm(shapes, "encoder.norm_out", top);
  add_conv(shapes, "encoder.conv_out", top, config.latent_channels, 1, true);
  add_conv(shapes, "decoder.conv_in", config.latent_channels, top, 3, true);
  add_norm(shapes, "decoder.norm_out", bottom);
  add_conv(shapes, "decoder.conv_out", bottom, pixel, 3, true);
  shapes["quantize.embedding.weight"] = {config.codes, config.latent_channels};
  return shapes;
}

}  // namespace adanat
