// The states of torch's default random generators, which a resumed run goes on with.
#pragma once
#include <string>

#include "core/nn/tensor_file.h"

namespace adanat {

// Adds "rng.cpu", and "rng.cuda.N" of every GPU that this process uses.
void save_random_state(TensorMap& tensors);

// Puts them back. The state of a GPU that this process does not use is passed over (the run has moved; its
// draws go on from the seed). InputError naming `where` and the key: no rng.cpu, or a state that is none.
void load_random_state(const TensorMap& tensors, const std::string& where);

// Whether a checkpoint's tensor belongs to these.
bool is_random_state(const std::string& name);

}  // namespace adanat
