#include "core/nn/out_of_memory.h"

#include <gtest/gtest.h>

namespace adanat {
namespace {

bool is_memory(const char* message) {
  return is_out_of_memory(c10::Error({__func__, __FILE__, 0}, message));
}

TEST(OutOfMemory, IsToldFromOtherErrors) {
  EXPECT_TRUE(is_memory("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."));
  EXPECT_TRUE(is_memory("CUDA out of memory. Tried to allocate 2 GiB"));
  EXPECT_TRUE(is_memory("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"));
  EXPECT_TRUE(is_out_of_memory(c10::OutOfMemoryError({__func__, __FILE__, 0}, "none left")));
  EXPECT_FALSE(is_memory("decode_step: NaN in the logits"));
  EXPECT_FALSE(is_memory("sizes must be equal, allocated 3"));
}

}  // namespace
}  // namespace adanat
