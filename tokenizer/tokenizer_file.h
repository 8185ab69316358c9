// What stands in a tokenizer's file, for those who have its weights without having built it.
#pragma once
#include <filesystem>

#include "core/nn/tensor_file.h"
#include "tokenizer/vqgan.h"

namespace adanat {

// The same file as save_tokenizer makes from a module, from its state: names as tokenizer_shapes(config)
// lists them, each tensor in its own type. Written atomically.
void write_tokenizer(const std::filesystem::path& path, const TokenizerConfig& config,
                     const TensorMap& tensors);

}  // namespace adanat
