// Parameters and buffers of a torch::nn::Module by name: what goes into files, and what comes back, strictly.
#pragma once
#include <string>

#include "core/nn/tensor_file.h"

namespace torch::nn {
class Module;
}

namespace adanat {

// Every parameter and buffer under its dotted name, detached, sharing storage with the module.
TensorMap module_state(const torch::nn::Module& module);

// Copies `tensors` into the module's parameters and buffers, converting the dtype. Names listed in neither, missing
// names and other shapes are errors (InputError) that name `where`, the key and both sides; nothing is copied then.
void load_module_state(torch::nn::Module& module, const TensorMap& tensors, const std::string& where);

// Number of parameters (not buffers).
int64_t parameter_count(const torch::nn::Module& module);

}  // namespace adanat
