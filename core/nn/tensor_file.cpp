#include "core/nn/tensor_file.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <deque>

#include "core/base/error.h"

namespace adanat {

at::ScalarType scalar_type_of(DType dtype, const std::string& where) {
  switch (dtype) {
    case DType::kBool:
      return at::kBool;
    case DType::kU8:
      return at::kByte;
    case DType::kI8:
      return at::kChar;
    case DType::kI16:
      return at::kShort;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kI32:
      return at::kInt;
    case DType::kF32:
      return at::kFloat;
    case DType::kF64:
      return at::kDouble;
    case DType::kI64:
      return at::kLong;
    default:
      throw InputError(cat(where, ": dtype ", name_of(dtype), " is not supported here"));
  }
}

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return DType::kBool;
    case at::kByte:
      return DType::kU8;
    case at::kChar:
      return DType::kI8;
    case at::kShort:
      return DType::kI16;
    case at::kHalf:
      return DType::kF16;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kInt:
      return DType::kI32;
    case at::kFloat:
      return DType::kF32;
    case at::kDouble:
      return DType::kF64;
    case at::kLong:
      return DType::kI64;
    default:
      throw RunError(cat("a tensor of type ", c10::toString(type), " cannot be written to a file"));
  }
}

at::Tensor read_tensor(const SafetensorsFile& file, const TensorEntry& entry) {
  const at::ScalarType type =
      scalar_type_of(entry.dtype, cat(file.mapping()->path().string(), ": tensor ", entry.name));
  const std::byte* bytes = file.data(entry);
  const auto options = at::TensorOptions().dtype(type);
  if (reinterpret_cast<uintptr_t>(bytes) % size_of(entry.dtype) != 0 || entry.begin == entry.end) {
    at::Tensor copy = at::empty(entry.shape, options);
    if (entry.begin != entry.end) std::memcpy(copy.data_ptr(), bytes, entry.end - entry.begin);
    return copy;
  }
  // The deleter's copy of the pointer keeps the file mapped for as long as the tensor lives.
  return at::from_blob(
      const_cast<std::byte*>(bytes), entry.shape, [keep = file.mapping()](void*) {}, options);
}

TensorMap read_tensors(const std::filesystem::path& path, Metadata* metadata) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  TensorMap out;
  for (const TensorEntry& entry : file.entries()) out.emplace(entry.name, read_tensor(file, entry));
  if (metadata != nullptr) *metadata = file.metadata();
  return out;
}

void write_tensors(const std::filesystem::path& path, const TensorMap& tensors, const Metadata& metadata) {
  std::vector<TensorBytes> list;
  std::deque<at::Tensor> keep;  // the packed copies live until the file is written
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& packed = keep.emplace_back(tensor.detach().cpu().contiguous());
    list.push_back({name, dtype_of(packed.scalar_type()), packed.sizes().vec(), packed.const_data_ptr(),
                    size_t(packed.nbytes())});
  }
  write_safetensors(path, std::move(list), metadata);
}

}  // namespace adanat
