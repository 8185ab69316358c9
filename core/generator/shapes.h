// Sizes of a generator's weights from its config alone.
#pragma once
#include "core/generator/transformer.h"
#include "core/nn/module_state.h"

namespace adanat {

// Names and sizes as GeneratorImpl(config) registers them, without building it: costs nothing however large
// the config.
ShapeMap generator_shapes(const GeneratorConfig& config);

}  // namespace adanat
