// Tensors in safetensors files: the bridge between the torch-free reader (core/io/safetensors.h) and
// LibTorch.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "core/io/safetensors.h"

namespace adanat {

using TensorMap = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

// c10 type of a file's dtype. Throws InputError for the unsigned types that torch computes nothing with.
at::ScalarType scalar_type_of(DType dtype, const std::string& where);
DType dtype_of(at::ScalarType type);

// A tensor over the mapped bytes (copied only where the offset is not aligned to the element). Holds the
// mapping. The tensor must not be written to.
at::Tensor read_tensor(const SafetensorsFile& file, const TensorEntry& entry);

// Every tensor of the file, each over the mapped bytes.
TensorMap read_tensors(const std::filesystem::path& path, Metadata* metadata = nullptr);

// Writes all tensors (made contiguous, moved to the CPU) under a temporary name, then renames. See
// write_safetensors.
void write_tensors(const std::filesystem::path& path, const TensorMap& tensors,
                   const Metadata& metadata = {});

}  // namespace adanat
