#include "core/io/pickle_names.h"

#include <array>

namespace adanat {
namespace {

using Call = PickleCall;

constexpr auto kNames = std::to_array<PickleName>({
    {"torch._utils", "_rebuild_tensor", Call::kRebuildTensor},
    {"torch._utils", "_rebuild_tensor_v2", Call::kRebuildTensorV2},
    {"torch._utils", "_rebuild_tensor_v3", Call::kRebuildTensorV3},
    {"torch._utils", "_rebuild_parameter", Call::kRebuildParameter},
    {"torch._utils", "_rebuild_parameter_with_state", Call::kRebuildParameter},
    {"torch._tensor", "_rebuild_from_type_v2", Call::kRebuildFromType},
    {"torch", "Tensor", Call::kTensorType},
    {"torch._tensor", "Tensor", Call::kTensorType},
    {"torch.nn.parameter", "Parameter", Call::kTensorType},
    {"torch.nn.parameter", "Buffer", Call::kTensorType},
    {"torch", "BoolStorage", Call::kStorageType, DType::kBool},
    {"torch", "ByteStorage", Call::kStorageType, DType::kU8},
    {"torch", "CharStorage", Call::kStorageType, DType::kI8},
    {"torch", "ShortStorage", Call::kStorageType, DType::kI16},
    {"torch", "IntStorage", Call::kStorageType, DType::kI32},
    {"torch", "LongStorage", Call::kStorageType, DType::kI64},
    {"torch", "HalfStorage", Call::kStorageType, DType::kF16},
    {"torch", "BFloat16Storage", Call::kStorageType, DType::kBF16},
    {"torch", "FloatStorage", Call::kStorageType, DType::kF32},
    {"torch", "DoubleStorage", Call::kStorageType, DType::kF64},
    {"torch", "ComplexFloatStorage", Call::kStorageType, DType::kC64},
    {"torch", "ComplexDoubleStorage", Call::kStorageType, DType::kC128},
    {"torch.cuda", "BoolStorage", Call::kStorageType, DType::kBool},
    {"torch.cuda", "ByteStorage", Call::kStorageType, DType::kU8},
    {"torch.cuda", "CharStorage", Call::kStorageType, DType::kI8},
    {"torch.cuda", "ShortStorage", Call::kStorageType, DType::kI16},
    {"torch.cuda", "IntStorage", Call::kStorageType, DType::kI32},
    {"torch.cuda", "LongStorage", Call::kStorageType, DType::kI64},
    {"torch.cuda", "HalfStorage", Call::kStorageType, DType::kF16},
    {"torch.cuda", "BFloat16Storage", Call::kStorageType, DType::kBF16},
    {"torch.cuda", "FloatStorage", Call::kStorageType, DType::kF32},
    {"torch.cuda", "DoubleStorage", Call::kStorageType, DType::kF64},
    {"torch.cuda", "ComplexFloatStorage", Call::kStorageType, DType::kC64},
    {"torch.cuda", "ComplexDoubleStorage", Call::kStorageType, DType::kC128},
    {"torch", "UntypedStorage", Call::kUntypedStorage},
    {"torch.storage", "UntypedStorage", Call::kUntypedStorage},
    {"torch", "bool", Call::kTorchDtype, DType::kBool},
    {"torch", "uint8", Call::kTorchDtype, DType::kU8},
    {"torch", "int8", Call::kTorchDtype, DType::kI8},
    {"torch", "int16", Call::kTorchDtype, DType::kI16},
    {"torch", "uint16", Call::kTorchDtype, DType::kU16},
    {"torch", "int32", Call::kTorchDtype, DType::kI32},
    {"torch", "uint32", Call::kTorchDtype, DType::kU32},
    {"torch", "int64", Call::kTorchDtype, DType::kI64},
    {"torch", "uint64", Call::kTorchDtype, DType::kU64},
    {"torch", "float16", Call::kTorchDtype, DType::kF16},
    {"torch", "bfloat16", Call::kTorchDtype, DType::kBF16},
    {"torch", "float32", Call::kTorchDtype, DType::kF32},
    {"torch", "float64", Call::kTorchDtype, DType::kF64},
    {"torch", "float8_e4m3fn", Call::kTorchDtype, DType::kF8E4M3},
    {"torch", "float8_e5m2", Call::kTorchDtype, DType::kF8E5M2},
    {"torch", "complex32", Call::kTorchDtype, DType::kC32},
    {"torch", "complex64", Call::kTorchDtype, DType::kC64},
    {"torch", "complex128", Call::kTorchDtype, DType::kC128},
    {"torch", "Size", Call::kTorchSize},
    {"torch", "device", Call::kTorchDevice},
    {"collections", "OrderedDict", Call::kOrderedDict},
    {"collections", "defaultdict", Call::kDefaultDict},
    {"argparse", "Namespace", Call::kNamespace},
    {"_codecs", "encode", Call::kEncode},
    {"pathlib", "Path", Call::kPath},
    {"pathlib", "PosixPath", Call::kPath},
    {"pathlib", "WindowsPath", Call::kPath},
    {"pathlib", "PurePosixPath", Call::kPath},
    {"pathlib._local", "PosixPath", Call::kPath},
    {"pathlib._local", "WindowsPath", Call::kPath},
    {"numpy", "dtype", Call::kNumpyDtype},
    {"numpy", "ndarray", Call::kNumpyArrayType},
    {"numpy.core.multiarray", "scalar", Call::kNumpyScalar},
    {"numpy._core.multiarray", "scalar", Call::kNumpyScalar},
    {"numpy.core.multiarray", "_reconstruct", Call::kNumpyReconstruct},
    {"numpy._core.multiarray", "_reconstruct", Call::kNumpyReconstruct},
    {"numpy.core.numeric", "_frombuffer", Call::kNumpyFromBuffer},
    {"numpy._core.numeric", "_frombuffer", Call::kNumpyFromBuffer},
    // The built-in types, under the module name of Python 2 (which protocol 2 writes) and of Python 3
    // (builtin_row below).
    {"builtins", "dict", Call::kDict},
    {"builtins", "list", Call::kList},
    {"builtins", "tuple", Call::kTuple},
    {"builtins", "set", Call::kSet},
    {"builtins", "frozenset", Call::kSet},
    {"builtins", "bytes", Call::kBytes},
    {"builtins", "bytearray", Call::kBytes},
    // Only as the factory of a defaultdict.
    {"builtins", "int", Call::kType},
    {"builtins", "float", Call::kType},
    {"builtins", "bool", Call::kType},
    {"builtins", "str", Call::kType},
});

struct NumpyRow {
  std::string_view text;
  DType dtype;
};
constexpr auto kNumpyDtypes = std::to_array<NumpyRow>({{"b1", DType::kBool},
                                                       {"u1", DType::kU8},
                                                       {"i1", DType::kI8},
                                                       {"i2", DType::kI16},
                                                       {"u2", DType::kU16},
                                                       {"f2", DType::kF16},
                                                       {"i4", DType::kI32},
                                                       {"u4", DType::kU32},
                                                       {"f4", DType::kF32},
                                                       {"f8", DType::kF64},
                                                       {"i8", DType::kI64},
                                                       {"u8", DType::kU64}});

}  // namespace

std::optional<size_t> find_pickle_name(std::string_view module, std::string_view name) {
  if (module == "__builtin__") module = "builtins";
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i].module == module && kNames[i].name == name) return i;
  return std::nullopt;
}

const PickleName& pickle_name(size_t row) {
  return kNames[row];
}

std::optional<DType> numpy_dtype_named(std::string_view text) {
  for (const NumpyRow& row : kNumpyDtypes)
    if (row.text == text) return row.dtype;
  return std::nullopt;
}

}  // namespace adanat
