// Element types of stored tensors, with the spelling of the safetensors format. Free of torch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace adanat {

enum class DType {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64,
  // Only listed, moved and refused by name: nothing here computes with them.
  kF8E4M3,
  kF8E5M2,
  kC32,
  kC64,
  kC128,
};

// Bytes of one element: 1, 2, 4, 8 or 16.
size_t size_of(DType dtype);

// Bytes of a tensor's elements, sizes >= 0; nothing where the product does not fit 63 bits, also with each size
// of 0 taken for 1: then the bytes of one row fit as well, and no reader need fear to multiply.
std::optional<uint64_t> byte_count(const std::vector<int64_t>& shape, DType dtype);

// The safetensors spelling: "BOOL", "U8", ..., "BF16", "F32", "I64", "F8_E4M3", "C64".
const char* name_of(DType dtype);

// The inverse of name_of; nothing for a spelling that is not in the list (the sub-byte floats, for example).
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace adanat
