// A generator made ready to be sampled from.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace adanat {

class GeneratorImpl;

// Evaluation mode, no gradients, on `device` in `dtype`: kFloat, kBFloat16, or kChar for the Linear layers of
// the blocks in int8 (core/nn/linear.h: on a CPU that has it) and all else in float32. Embeddings and head
// stay float: logits are what is drawn from. Some draws of an int8 model differ from float32's;
// docs/performance.md says how many.
void prepare_generator(GeneratorImpl& generator, at::Device device, at::ScalarType dtype);

}  // namespace adanat
