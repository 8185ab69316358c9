// The parts of convert(): each reads one kind of checkpoint into what a model folder holds.
#pragma once
#include "apps/pipeline/convert.h"
#include "apps/pipeline/weight_source.h"
#include "policy/policy_schedule.h"
#include "tokenizer/vqgan.h"

namespace adanat {

// AdaNAT, AutoNAT, AdaGen (MaskGIT-L) and text-conditional generators of the same make: `nnet_ema.pth`, or
// our own generator.safetensors. Sizes come from the tensors; heads from `heads` (0 = not given), else
// `sizes`, else the published ones of this width and depth. InputError: another kind of model, missing or
// left over tensors, sizes that contradict `sizes`, heads unknown.
struct GeneratorPart {
  GeneratorConfig config;
  WeightNames weights;
};
GeneratorPart read_generator(const WeightSource& source, int64_t heads, const GeneratorSizes& sizes,
                             const std::string& preset);

// The MaskGIT VQGAN in both spellings of its keys (open-muse's `mid.0`, `upsample_conv`; taming's
// `mid.block_1`, `upsample.conv`), or our own tokenizer.safetensors. `loss.*`, the training networks of a
// tokenizer, is left out. shortcut_from becomes "hidden" where nin_shortcut is (out, out, 1, 1) with out !=
// in. The config's image_size is left at its default.
struct TokenizerPart {
  TokenizerConfig config;
  WeightNames weights;
};
TokenizerPart read_tokenizer(const WeightSource& source);

// A policy: AdaNAT's training checkpoint (`model.policy_old.actor.*`, settings in `args`), its bare state
// (`actor.*`), or AdaGen's (`x_embedder.*` and so on without a prefix). policy_old wins over policy where
// they differ. Grid, width and codes are the generator's. InputError: no settings and neither `residual` nor
// the preset says what they are; no number of steps; actions that are not the four.
struct PolicyPart {
  PolicySettings settings;
  TensorMap actor;                    // without "actor."
  std::vector<std::string> left_out;  // names of the file
};
PolicyPart read_published_policy(const WeightSource& source, int64_t steps, std::optional<bool> residual,
                                 const PolicyPreset& preset, const GeneratorConfig& generator);

// A schedule for all images as a policy that repeats the table to the last bit.
PolicyPart policy_of_table(const ScheduleTable& table, const GeneratorConfig& generator);

// The files that ClipTextEncoder::open reads of `folder`, wherever they stand. InputError: what it would
// refuse with this padding token, all tensors that are missing or left over named, or other states than the
// generator reads.
std::vector<std::filesystem::path> read_text_encoder(const std::filesystem::path& folder,
                                                     const GeneratorConfig& generator,
                                                     const std::string& pad);

}  // namespace adanat
