// Public checkpoints -> model folders: what `adanat convert` does. docs/public-models.md lists what is read.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "apps/pipeline/model_folder.h"
#include "core/sampling/schedule_table.h"
#include "policy/actions.h"

namespace adanat {

// What a generator must be for a preset to fit; 0 = whatever the file holds. Heads and text tokens cannot be
// told from tensors: the preset supplies them.
struct GeneratorSizes {
  int64_t width = 0;
  int64_t depth = 0;
  int64_t heads = 0;
  int64_t codes = 0;
  int64_t grid = 0;
  int64_t classes = 0;
  int64_t text_width = 0;
  int64_t text_tokens = 0;

  static constexpr auto fields() {
    using C = GeneratorSizes;
    return std::tuple{
        field("width", &C::width, "width D of the transformer"),
        field("depth", &C::depth, "blocks besides the middle one"),
        field("heads", &C::heads, "attention heads"),
        field("codes", &C::codes, "codebook size V"),
        field("grid", &C::grid, "tokens down and across an image"),
        field("classes", &C::classes, "number of classes, the empty one not counted"),
        field("text_width", &C::text_width, "width of the text encoder's states"),
        field("text_tokens", &C::text_tokens, "text tokens in front of an image's"),
    };
  }
  void validate() const;
  bool operator==(const GeneratorSizes&) const = default;
};

// What the files of policies do not say.
struct PolicyPreset {
  std::string residual;
  HeuristicConfig heuristic;
  double smoothing = -1;

  static constexpr auto fields() {
    using C = PolicyPreset;
    return std::tuple{
        field("residual", &C::residual, "heuristic, none, or empty: the file or --policy-residual says it"),
        field("heuristic", &C::heuristic, "the schedule of residual heuristic"),
        field("smoothing", &C::smoothing, "AdaGen's beta, 0 = none, -1 = as the kind of file has it"),
    };
  }
  void validate() const;
  bool operator==(const PolicyPreset&) const = default;
};

// A preset of --config: configs/public/*.json.
struct ConvertPreset {
  std::string description;
  int64_t image_size = 0;
  GeneratorSizes generator;
  std::vector<std::string> class_names;
  PolicyPreset policy;
  ScheduleTable table;
  SamplingDefaults sampling;
  TextEncoderConfig text_encoder;

  static constexpr auto fields() {
    using C = ConvertPreset;
    return std::tuple{
        field("description", &C::description, "which checkpoint this is for"),
        field("image_size", &C::image_size, "side of the images; 0 = the grid times the tokenizer's factor"),
        field("generator", &C::generator, "sizes that the file must have, and what it cannot say"),
        field("class_names", &C::class_names, "one per class; empty: --class-names, or the numbers"),
        field("policy", &C::policy, "what policy files do not say"),
        // Before the table: one of no steps would pass for what refuses sampling.steps 0.
        field("sampling", &C::sampling, "what `generate` does by itself"),
        field("table", &C::table, "a schedule that was published with the weights; steps 0 = none"),
        field("text_encoder", &C::text_encoder, "how the generator's texts were prepared"),
    };
  }
  void validate() const;
  bool operator==(const ConvertPreset&) const = default;
};

struct PolicyArgument {
  std::filesystem::path file;
  int64_t steps = 0;  // 0 = not given: the file must say it
};

// FILE:T, split at the last colon; FILE alone where nothing that looks like a T stands behind one.
// InputError: T is out of 1..1000.
PolicyArgument parse_policy_argument(const std::string& text);

struct ConvertOptions {
  std::filesystem::path generator;  // empty: a tokenizer alone
  std::filesystem::path tokenizer;
  std::vector<PolicyArgument> policies;
  std::optional<bool> policy_residual;
  std::filesystem::path text_encoder;  // Hugging Face folder; empty = none
  int64_t heads = 0;                   // 0 = not given
  std::filesystem::path class_names;   // empty = none
  std::filesystem::path config;        // preset; empty = none
  std::optional<at::ScalarType> dtype;
  std::filesystem::path out;
};

// Writes the folder `out`, whole or not at all; what was left out of the files and what was assumed is noted
// on stderr. InputError: a file that cannot be used (which, what in it, both sides of a mismatch), `out`
// exists.
void convert(const ConvertOptions& options);

}  // namespace adanat
