#include "core/nn/tensor_file.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <deque>

#include "core/base/error.h"
#include "core/base/text.h"

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

namespace {

// A row-major tensor over `bytes`, which `keep` keeps alive; a copy where they are not aligned.
template <class Keep>
at::Tensor over_bytes(const std::byte* bytes, size_t size, DType dtype, at::ScalarType type,
                      at::IntArrayRef shape, Keep keep) {
  const auto options = at::TensorOptions().dtype(type);
  if (reinterpret_cast<uintptr_t>(bytes) % size_of(dtype) != 0 || size == 0) {
    at::Tensor copy = at::empty(shape, options);
    if (size != 0) std::memcpy(copy.data_ptr(), bytes, size);
    return copy;
  }
  return at::from_blob(
      const_cast<std::byte*>(bytes), shape, [keep](void*) {}, options);
}

}  // namespace

at::Tensor read_tensor(const SafetensorsFile& file, const TensorEntry& entry) {
  const at::ScalarType type =
      scalar_type_of(entry.dtype, cat(file.mapping()->path().string(), ": tensor ", printable(entry.name)));
  return over_bytes(file.data(entry), entry.end - entry.begin, entry.dtype, type, entry.shape,
                    file.mapping());
}

at::Tensor read_tensor(const PthFile& file, const PthTensor& entry) {
  const at::ScalarType type =
      scalar_type_of(entry.dtype, cat(file.path().string(), ": tensor ", printable(entry.name)));
  if (entry.count() == 0 || entry.contiguous()) {
    const auto bytes = file.storage(entry);
    return over_bytes(bytes.data() + entry.offset * size_of(entry.dtype),
                      entry.count() * size_of(entry.dtype), entry.dtype, type, entry.shape, file);
  }
  at::Tensor copy = at::empty(entry.shape, at::TensorOptions().dtype(type));
  file.copy(entry, copy.data_ptr());
  return copy;
}

namespace {

TensorMap read_pth_tensors(const PthFile& file) {
  constexpr std::string_view kWrapper = "state_dict.";
  const auto& tensors = file.tensors();
  const bool wrapped = std::any_of(tensors.begin(), tensors.end(), [&](const PthTensor& tensor) {
    return tensor.name.starts_with(kWrapper);
  });
  // Many tensors may look at the same bytes, and one element may stand for many: what copies take is bounded
  // first.
  const uint64_t limit = 16 * uint64_t{std::filesystem::file_size(file.path())} + (uint64_t{64} << 20);
  uint64_t copied = 0;
  TensorMap out;
  for (const PthTensor& tensor : tensors) {
    if (wrapped && !tensor.name.starts_with(kWrapper)) continue;
    const uint64_t size = tensor.count() * size_of(tensor.dtype);
    const bool aligned =
        reinterpret_cast<uintptr_t>(file.storage(tensor).data()) % size_of(tensor.dtype) == 0;
    if ((!tensor.contiguous() || !aligned) && (size > limit || (copied += size) > limit))
      throw InputError(cat(file.path().string(), ": its tensors would take more than ", limit,
                           " bytes of memory (", printable(tensor.name),
                           " is one of those that stand for far more than is in the file); refused"));
    out.emplace(wrapped ? tensor.name.substr(kWrapper.size()) : tensor.name, read_tensor(file, tensor));
  }
  return out;
}

}  // namespace

TensorMap read_tensors(const std::filesystem::path& path, Metadata* metadata) {
  if (metadata != nullptr) metadata->clear();
  if (is_pth(MappedFile::open(path)->bytes())) return read_pth_tensors(PthFile::open(path));
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
