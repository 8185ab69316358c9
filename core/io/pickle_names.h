// The names that the reader of pickles knows, and what each stands for (inside core/io only).
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/io/dtype.h"

namespace adanat {

enum class PickleCall : uint8_t {
  kRebuildTensor,
  kRebuildTensorV2,
  kRebuildTensorV3,
  kRebuildParameter,
  kRebuildFromType,
  kTensorType,
  kStorageType,
  kUntypedStorage,
  kTorchDtype,
  kTorchSize,
  kTorchDevice,
  kDict,
  kOrderedDict,
  kDefaultDict,
  kNamespace,
  kList,
  kTuple,
  kSet,
  kBytes,
  kType,
  kEncode,
  kPath,
  kNumpyDtype,
  kNumpyScalar,
  kNumpyArrayType,
  kNumpyReconstruct,
  kNumpyFromBuffer,
};

struct PickleName {
  std::string_view module, name;
  PickleCall call;
  DType dtype = DType::kU8;  // kStorageType, kTorchDtype: the type that is named
};

// The number of a name's row in the table; nothing for a name that tensors do not need.
std::optional<size_t> find_pickle_name(std::string_view module, std::string_view name);
const PickleName& pickle_name(size_t row);

// "f4" and its like; nothing for objects, texts and dates.
std::optional<DType> numpy_dtype_named(std::string_view text);

}  // namespace adanat
