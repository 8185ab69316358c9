// Sizes of a tokenizer's weights from its config alone.
#pragma once
#include "core/nn/module_state.h"
#include "tokenizer/vqgan.h"

namespace adanat {

// Names and sizes as TokenizerImpl(config) registers them, without building it: costs nothing however large
// the config.
ShapeMap tokenizer_shapes(const TokenizerConfig& config);

}  // namespace adanat
