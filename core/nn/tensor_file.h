// Tensors in files: the bridge between the torch-free readers (core/io/safetensors.h, core/io/pth.h) and
// LibTorch.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "core/io/pth.h"
#include "core/io/safetensors.h"

namespace adanat {

using TensorMap = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

// c10 type of a file's dtype. Throws InputError for the unsigned types that torch computes nothing with, for
// complex numbers and for floats of 8 bits.
at::ScalarType scalar_type_of(DType dtype, const std::string& where);
DType dtype_of(at::ScalarType type);

// A tensor over the mapped bytes (copied only where the offset is not aligned to the element). Holds the
// mapping. The tensor must not be written to.
at::Tensor read_tensor(const SafetensorsFile& file, const TensorEntry& entry);

// The same for a tensor of a PyTorch file; also copied where it is no whole row-major block. InputError:
// damaged bytes.
at::Tensor read_tensor(const PthFile& file, const PthTensor& entry);

// Every tensor of a safetensors file or a PyTorch file (content decides, not the name), each over the mapped
// bytes where that is possible. PyTorch files: names are dotted paths; where the weights stand under the key
// "state_dict" only they are returned, without that prefix; `metadata` is left empty. Nothing in a file is
// executed. InputError: neither of the two, damaged, or copies that would take far more memory than the file
// is long (only hostile files do).
TensorMap read_tensors(const std::filesystem::path& path, Metadata* metadata = nullptr);

// Writes all tensors (made contiguous, moved to the CPU) under a temporary name, then renames. See
// write_safetensors.
void write_tensors(const std::filesystem::path& path, const TensorMap& tensors,
                   const Metadata& metadata = {});

}  // namespace adanat
