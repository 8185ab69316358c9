// A tokenizer out of its file, by the pieces that a model folder is opened with.
#pragma once
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/nn/module_state.h"
#include "tokenizer/vqgan.h"

namespace adanat::testing {

inline Tokenizer read_back(const std::filesystem::path& file) {
  Metadata metadata;
  const TensorMap tensors = read_tensors(file, &metadata);
  EXPECT_EQ(metadata["format"], kTokenizerFormat);
  Tokenizer tokenizer(
      config_from_json<TokenizerConfig>(parse_json(metadata["config"], file.string()), file.string()));
  const at::NoGradGuard no_grad;
  load_module_state(*tokenizer, tensors, file.string());
  return tokenizer;
}

}  // namespace adanat::testing
