#include "kernels/nearest_code.cuh"
#include "kernels/nearest_code_launch.h"

namespace adanat::kernels {

cudaError_t launch_nearest_code(const float* points, const float* codes, int64_t rows, int64_t vocab,
                                int64_t size, int64_t* ids, float* distances, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;  // an empty grid is a launch error
  const dim3 block(nearest::kThreads, nearest::kThreads);
  const auto grid = static_cast<unsigned>((rows + nearest::kRows - 1) / nearest::kRows);
  nearest_code_kernel<<<grid, block, 0, stream>>>(points, codes, rows, vocab, size, ids, distances);
  return cudaGetLastError();
}

}  // namespace adanat::kernels
