// Whether a part of a model folder is the one that its config.json lists.
#pragma once
#include <filesystem>
#include <string>

#include "apps/pipeline/model_folder.h"

namespace adanat {

// InputError that names `file` where `config` lists another SHA-256 for its name than `actual`; what it does
// not list passes.
void check_part_hash(const ModelConfig& config, const std::filesystem::path& file, const std::string& actual);
// The same, hashing the file where it is there and at most 64 MiB large, as at every start.
void check_part_hash(const ModelConfig& config, const std::filesystem::path& file);

}  // namespace adanat
