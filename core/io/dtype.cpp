#include "core/io/dtype.h"

#include <algorithm>
#include <array>

namespace adanat {
namespace {

struct Row {
  DType dtype;
  const char* name;
  size_t size;
};

constexpr std::array<Row, 18> kRows = {{{DType::kBool, "BOOL", 1},
                                        {DType::kU8, "U8", 1},
                                        {DType::kI8, "I8", 1},
                                        {DType::kI16, "I16", 2},
                                        {DType::kU16, "U16", 2},
                                        {DType::kF16, "F16", 2},
                                        {DType::kBF16, "BF16", 2},
                                        {DType::kI32, "I32", 4},
                                        {DType::kU32, "U32", 4},
                                        {DType::kF32, "F32", 4},
                                        {DType::kF64, "F64", 8},
                                        {DType::kI64, "I64", 8},
                                        {DType::kU64, "U64", 8},
                                        {DType::kF8E4M3, "F8_E4M3", 1},
                                        {DType::kF8E5M2, "F8_E5M2", 1},
                                        {DType::kC32, "C32", 4},
                                        {DType::kC64, "C64", 8},
                                        {DType::kC128, "C128", 16}}};

// The rows are in the order of the enum, so the enum is an index.
constexpr bool rows_in_enum_order() {
  for (size_t i = 0; i < kRows.size(); ++i)
    if (static_cast<size_t>(kRows[i].dtype) != i) return false;
  return true;
}
static_assert(rows_in_enum_order());

}  // namespace

size_t size_of(DType dtype) {
  return kRows.at(static_cast<size_t>(dtype)).size;
}

std::optional<uint64_t> byte_count(const std::vector<int64_t>& shape, DType dtype) {
  uint64_t total = size_of(dtype);
  bool empty = false;
  for (const int64_t size : shape) {
    empty = empty || size == 0;
    if (__builtin_mul_overflow(total, static_cast<uint64_t>(std::max<int64_t>(size, 1)), &total) ||
        total > uint64_t{INT64_MAX})
      return std::nullopt;
  }
  return empty ? 0 : total;
}

const char* name_of(DType dtype) {
  return kRows.at(static_cast<size_t>(dtype)).name;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Row& row : kRows)
    if (name == row.name) return row.dtype;
  return std::nullopt;
}

}  // namespace adanat
