#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace adanat::kernels {

// points (rows, size), codes (vocab, size), both contiguous. Never waits.
[[nodiscard]] cudaError_t launch_nearest_code(const float* points, const float* codes, int64_t rows,
                                              int64_t vocab, int64_t size, int64_t* ids, float* distances,
                                              cudaStream_t stream);

}  // namespace adanat::kernels
