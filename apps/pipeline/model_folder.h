// Model folders: what training writes and every other command reads.
//   config.json            format number, sizes, class names, sampling defaults, hash of each file
//   tokenizer.safetensors, generator.safetensors, features.safetensors, measure.safetensors
//   policy-T{steps}.safetensors, policy-any.safetensors, card.md
//   text_encoder/          models of texts: a Hugging Face folder of a CLIP (core/text/clip.h), as it is
// A folder may hold some parts only (a tokenizer that no generator was trained for yet).
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/config.h"
#include "core/generator/transformer.h"
#include "core/io/safetensors.h"
#include "core/sampling/schedule.h"
#include "tokenizer/vqgan.h"

namespace adanat {

// The number this program writes, and the newest that it reads.
inline constexpr int64_t kModelFormat = 1;

// What `generate` does where the command line says nothing.
struct SamplingDefaults {
  int64_t steps = 8;
  TableOptions table;

  static constexpr auto fields() {
    return std::tuple{
        field("steps", &SamplingDefaults::steps, "generation steps"),
        field("table", &SamplingDefaults::table, "guidance and temperatures of hand-made schedules")};
  }
  void validate() const;
  bool operator==(const SamplingDefaults&) const = default;
};

// How texts are prepared for the encoder in text_encoder/.
struct TextEncoderConfig {
  std::string pad_token;

  static constexpr auto fields() {
    return std::tuple{field("pad_token", &TextEncoderConfig::pad_token,
                            "token that fills up short texts; empty = what the encoder's folder says")};
  }
  void validate() const {}
  bool operator==(const TextEncoderConfig&) const = default;
};

inline constexpr const char* kTextEncoderFolder = "text_encoder";

struct ModelConfig {
  int64_t format = kModelFormat;
  std::string name;     // the folder's own idea of it: "signs"
  std::string program;  // version that wrote the folder
  int64_t image_size = 0;
  std::string preprocessing = "adm-center-crop";
  std::vector<std::string> class_names;
  SamplingDefaults sampling;
  std::optional<TokenizerConfig> tokenizer;
  std::optional<GeneratorConfig> generator;
  TextEncoderConfig text_encoder;
  // Whether images are made from texts.
  bool from_texts() const { return generator && generator->condition == "text"; }
  std::map<std::string, std::string> files;  // name -> SHA-256
};

// Reads config.json. InputError: no such folder or file, a newer format (names both numbers), unknown keys,
// bad values.
ModelConfig read_model_config(const std::filesystem::path& folder);

// Writes config.json for the parts that stand in `folder`: their configs are read from the files' metadata
// and their hashes taken; format and program are set. Name, image size, classes and sampling come from
// `config`.
void write_model_config(const std::filesystem::path& folder, ModelConfig config);

// The folder's policy for this many steps: policy-T{steps}.safetensors, else policy-any.safetensors where it
// covers them.
std::optional<std::filesystem::path> policy_for(const std::filesystem::path& folder, int64_t steps);

// Copies the parts of `from` that `to` does not have: a stage of training adds its own part to those it was
// given. A generator stays where `to` has a tokenizer of its own, policies where it has that or a generator.
// A text encoder is linked where the file system can, for it is large and never changed.
void copy_missing_parts(const std::filesystem::path& from, const std::filesystem::path& to);

// Files up to this size are compared with their hash at every start: some hundredths of a second. Larger ones
// by `adanat info --verify`.
inline constexpr uint64_t kHashedAtStart = uint64_t{64} << 20;

// Opens a part's file and compares it with its hash in config.json, up to kHashedAtStart bytes. InputError:
// damaged, missing, not the file that config.json was written for, or of a format that this program does not
// read.
SafetensorsFile open_part(const std::filesystem::path& folder, const ModelConfig& config,
                          const std::string& name);

// InputError that names `file` where `config` lists another SHA-256 for its name than `actual`; what it does
// not list passes.
void check_part_hash(const ModelConfig& config, const std::filesystem::path& file, const std::string& actual);
// The same, hashing the file where it is there and not larger than kHashedAtStart.
void check_part_hash(const ModelConfig& config, const std::filesystem::path& file);

// Files whose hash differs from config.json's, or that are missing; empty = all is well.
std::vector<std::string> verify_model(const std::filesystem::path& folder, const ModelConfig& config);

// The id of a class given by name or by number (an integer is always an id). InputError that names close
// matches.
int64_t class_id(const ModelConfig& config, const std::string& text);

// "signs" of ".../models/signs/".
std::string folder_name(const std::filesystem::path& folder);

}  // namespace adanat
