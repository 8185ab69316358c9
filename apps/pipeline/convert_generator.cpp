#include <algorithm>
#include <cmath>

#include "apps/pipeline/convert_parts.h"
#include "core/base/log.h"
#include "core/generator/shapes.h"

namespace adanat {
namespace {

constexpr const char* kAnchor = "token_emb.word_embeddings.weight";

// Heads of published generators by width and depth: tensors do not tell them.
struct PublishedSize {
  int64_t width, depth, heads;
};
constexpr PublishedSize kPublished[] = {{768, 24, 8}, {512, 12, 8}, {1152, 28, 16}};

// Models that people may take for the right ones: a tensor that only they have, and what they are.
struct Foreign {
  const char *tensor, *what;
};
constexpr Foreign kForeign[] = {
    {"transformer.layers.0.ff.w1.weight",
     "a Halton-MaskGIT transformer (adaptive RMS norms, SwiGLU, separate wq, wk, wv, register tokens)"},
    {"transformer.layers.0.attn.wq.weight",
     "a Halton-MaskGIT transformer (adaptive RMS norms, separate wq, wk, wv)"},
    {"tok_emb.weight", "a MaskGIT-pytorch transformer (tok_emb, pos_emb, no skips)"},
    {"transformer_layers.0.attention.query.weight", "an open-muse transformer (no U-shaped skips)"},
    {"embed.embeddings.weight", "an aMUSEd transformer (UVit2D: convolutions, micro-conditions)"},
    {"encoder.conv_in.weight", "a tokenizer; give it as --tokenizer"},
};

[[noreturn]] void throw_no_generator(const WeightSource& source) {
  const auto is_there = [&](std::string_view tensor) {
    for (const auto& [name, entry] : source.entries())
      if (name == tensor || name.ends_with("." + std::string(tensor))) return true;
    return false;
  };
  for (const Foreign& foreign : kForeign)
    if (is_there(foreign.tensor))
      throw InputError(cat(source.where(), ": holds ", foreign.tensor, " but not ", kAnchor, ": it is ",
                           foreign.what, ", not the U-shaped generator that this program runs"));
  throw InputError(cat(source.where(), ": is no generator: it lacks ", kAnchor,
                       " (under any prefix); `adanat info` lists what is in the file"));
}

int64_t grid_side(const std::string& where, int64_t tokens) {
  const auto side = int64_t(std::llround(std::sqrt(double(tokens))));
  if (side * side != tokens)
    throw InputError(cat(where, ": token_emb.position_embeddings.weight has ", tokens,
                         " rows, which is no square grid of tokens"));
  return side;
}

// What fixes the names of a generator's tensors; sizes are any. A file without a condition is taken for one
// of classes, one with more blocks on one side of the U for one that lacks them on the other.
GeneratorConfig structure_of(const ShapeMap& found) {
  constexpr int64_t kTensors = 11;  // of a block, a skip not counted
  GeneratorConfig config;
  if (found.contains("context_embed.weight") || found.contains("context_embed.bias"))
    config.condition = "text";
  config.depth =
      2 * std::max(count_layers(found, "in_blocks.", kTensors), count_layers(found, "out_blocks.", kTensors));
  return config;
}

// What the tensors tell. InputError: some are missing or left over, all of them named.
GeneratorConfig sizes_of(const std::string& where, const ShapeMap& found) {
  GeneratorConfig config = structure_of(found);
  check_names(where, found, generator_shapes(config));
  config.width = size_of_tensor(where, found, kAnchor, 2, 1);
  config.codes = size_of_tensor(where, found, kAnchor, 2, 0) - 1;
  config.grid_height = config.grid_width =
      grid_side(where, size_of_tensor(where, found, "token_emb.position_embeddings.weight", 2, 0));
  if (config.condition == "text")
    config.text_width = size_of_tensor(where, found, "context_embed.weight", 2, 1);
  else
    config.classes = size_of_tensor(where, found, "context_embed.word_embeddings.weight", 2, 0) - 1;
  return config;
}

int64_t known_heads(const GeneratorConfig& config) {
  for (const PublishedSize& size : kPublished)
    if (config.width == size.width && config.depth == size.depth) return size.heads;
  return 0;
}

void compare_sizes(const std::string& where, const GeneratorConfig& is, const GeneratorSizes& wanted,
                   const std::string& preset) {
  const auto compare = [&](const char* name, int64_t value, int64_t expected) {
    if (expected != 0 && value != expected)
      throw InputError(cat(where, ": its ", name, " is ", value, ", ", preset, " says ", expected,
                           "; it is not the checkpoint that this preset is for"));
  };
  compare("width", is.width, wanted.width);
  compare("depth", is.depth, wanted.depth);
  compare("codebook", is.codes, wanted.codes);
  compare("grid side", is.grid_height, wanted.grid);
  const bool text = is.condition == "text";
  if (text ? wanted.classes != 0 : wanted.text_width != 0)
    throw InputError(cat(where, ": is conditioned on ", is.condition, ", ", preset,
                         " is for one conditioned on ", text ? "class" : "text"));
  if (text)
    compare("text width", is.text_width, wanted.text_width);
  else
    compare("number of classes", is.classes, wanted.classes);
}

}  // namespace

GeneratorPart read_generator(const WeightSource& source, int64_t heads, const GeneratorSizes& sizes,
                             const std::string& preset) {
  const std::string& where = source.where();
  auto names = find_model(source, kAnchor);
  if (!names) throw_no_generator(source);
  GeneratorPart part{{}, std::move(*names)};
  const ShapeMap found = part.weights.shapes(source);
  part.config = sizes_of(where, found);
  // Our own files say what tensors cannot.
  const Metadata& metadata = source.metadata();
  if (metadata.contains("config") && metadata.contains("format") &&
      metadata.at("format") == "adanat-generator-1") {
    const auto said = config_from_json<GeneratorConfig>(parse_json(metadata.at("config"), where), where);
    part.config.heads = said.heads, part.config.text_tokens = said.text_tokens;
    if (said.grid_height != part.config.grid_height || said.grid_width != part.config.grid_width)
      throw InputError(cat(where, ": its grid is ", said.grid_height, "x", said.grid_width,
                           " tokens; a model folder's images are square"));
    part.config.dropout = said.dropout;
    if (heads == 0) heads = said.heads;
  }
  compare_sizes(where, part.config, sizes, preset);
  if (sizes.text_tokens != 0) part.config.text_tokens = sizes.text_tokens;
  if (heads == 0) heads = sizes.heads;
  if (heads == 0) {
    heads = known_heads(part.config);
    if (heads == 0)
      throw InputError(cat(where, ": the number of attention heads cannot be told from its tensors (width ",
                           part.config.width, ", depth ", part.config.depth, "); give --heads or --config"));
    note(cat(where, ": ", heads, " attention heads, as the published model of width ", part.config.width,
             " and depth ", part.config.depth, " has; --heads says otherwise"));
  }
  part.config.heads = heads;
  try {
    part.config.validate();
  } catch (const InputError& e) {
    throw InputError(cat(where, ": ", e.what()));
  }
  check_weights(where, found, generator_shapes(part.config));
  return part;
}

}  // namespace adanat
