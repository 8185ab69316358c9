// A model folder of random weights, small enough for milliseconds: 16-pixel images of 4x4 tokens, 3 classes.
#pragma once
#include <filesystem>

#include "apps/pipeline/model_folder.h"
#include "core/generator/generator_recipe.h"
#include "core/nn/module_state.h"
#include "support/support.h"
#include "text/small_encoder.h"

namespace adanat::testing {

inline void write_small_model(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  TokenizerConfig tokenizer_config;
  tokenizer_config.image_size = 16, tokenizer_config.channels = 8,
  tokenizer_config.channel_multipliers = {1, 1, 1};
  tokenizer_config.residual_blocks = 1, tokenizer_config.latent_channels = 4, tokenizer_config.codes = 32;
  Tokenizer tokenizer(tokenizer_config);
  save_tokenizer(folder / "tokenizer.safetensors", *tokenizer);
  const GeneratorConfig config{.width = 32,
                               .depth = 2,
                               .heads = 2,
                               .codes = 32,
                               .grid_height = 4,
                               .grid_width = 4,
                               .condition = "class",
                               .classes = 3};
  Generator generator(config);
  write_generator(folder / "generator.safetensors", config, module_state(*generator));
  ModelConfig model;
  model.name = "small", model.image_size = 16, model.class_names = {"cat", "dog", "fox"};
  write_model_config(folder, model);
}

// The same for texts, with the small encoder: 77 states of width 48.
inline void write_small_text_model(const std::filesystem::path& folder) {
  write_small_model(folder);
  GeneratorConfig config = *read_model_config(folder).generator;
  config.condition = "text", config.text_width = 48, config.text_tokens = 77;
  Generator generator(config);
  fill_procedural(*generator);
  write_generator(folder / "generator.safetensors", config, module_state(*generator));
  write_small_encoder(folder / "text_encoder");
  ModelConfig model;
  model.name = "texts", model.image_size = 16;
  write_model_config(folder, model);
}

}  // namespace adanat::testing
