// Whether weights are numbers: asked before they are written anywhere.
#pragma once
#include <string>

#include "core/nn/tensor_file.h"

namespace adanat {

// The name of the first floating-point tensor that holds an infinity or a NaN, "" if there is none. Asks a
// GPU once.
std::string first_non_finite(const TensorMap& tensors);

// RunError "WHO: NAME ..." where a tensor as it is to be written is not finite: it does not fit the type
// `store`, say.
void require_finite_weights(const TensorMap& written, const std::string& who, const std::string& store);

}  // namespace adanat
