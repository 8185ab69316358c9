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

// Names and sizes of a module's state: what its config fixes before the module exists.
using ShapeMap = std::map<std::string, std::vector<int64_t>>;

// InputError naming everything that is missing and everything that is left over; sizes do not matter.
void check_names(const std::string& where, const ShapeMap& found, const ShapeMap& expected);

// What may have become of a file that lacks tensors, for the end of a message.
inline constexpr const char* kWhyMissing = "; is it the file of another part, or a damaged download?";

// How many layers `prefix` + 0, 1, 2, ... there should be, by the highest number: those below it may be
// missing. A layer has `tensors` tensors; what holds less than half as many is a leftover and does not count,
// nor does a number over 511.
int64_t count_layers(const ShapeMap& found, const std::string& prefix, int64_t tensors);

// Compares the header of a file with `expected`, so that a module is built only where a file of its size
// exists: a config may ask for terabytes. InputError as from load_module_state.
void check_shapes(const SafetensorsFile& file, const ShapeMap& expected);

// InputError naming `where` and the first floating-point tensor that holds NaN or infinity (also what float32
// cannot hold).
void check_finite(const TensorMap& tensors, const std::string& where);

// Copies `tensors` into the module's parameters and buffers, converting the dtype (but not integers to
// fractions or back). Names listed in neither, missing names and other shapes are errors (InputError) that
// name `where`, the key and both sides; nothing is copied then.
void load_module_state(torch::nn::Module& module, const TensorMap& tensors, const std::string& where);

// Number of parameters (not buffers).
int64_t parameter_count(const torch::nn::Module& module);

}  // namespace adanat
