// Generators of procedural weights, small enough for milliseconds.
#pragma once
#include "core/generator/transformer.h"
#include "support/support.h"

namespace adanat::testing {

// The sizes of the golden file uvit_class: 10 classes, 4x4 tokens of 32 codes.
inline GeneratorConfig uvit_class_config() {
  return {.width = 64,
          .depth = 4,
          .heads = 4,
          .codes = 32,
          .grid_height = 4,
          .grid_width = 4,
          .condition = "class",
          .classes = 10};
}

// What policies are trained on in tests: four rows of tokens of 24 codes, nothing dropped.
inline GeneratorConfig tiny_generator_config(int64_t grid_width, int64_t classes) {
  return {.width = 16,
          .depth = 2,
          .heads = 2,
          .codes = 24,
          .grid_height = 4,
          .grid_width = grid_width,
          .condition = "class",
          .classes = classes,
          .dropout = 0};
}

// In eval mode.
inline Generator procedural_generator(const GeneratorConfig& config) {
  Generator net(config);
  fill_procedural(*net);
  net->eval();
  return net;
}

}  // namespace adanat::testing
