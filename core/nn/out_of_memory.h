// Whether an error of LibTorch says that memory ran out, on whatever device.
#pragma once
#include <c10/util/Exception.h>

namespace adanat {

// True for c10::OutOfMemoryError, for what the CPU's allocator throws, and for cuBLAS and cuDNN, whose errors
// have no type of their own.
bool is_out_of_memory(const c10::Error& error);

}  // namespace adanat
