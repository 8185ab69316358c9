#pragma once
// nearest_code on a GPU, free of torch. One block takes kRows points and walks the codebook in tiles; both
// pass through shared memory kDepth channels at a time, and a thread holds 2 x 4 distances. sum (x - c)^2
// directly: a third more arithmetic than the expanded form, and nothing cancels.
#include <cstdint>

#include "kernels/float_math.h"

namespace adanat::kernels {

struct NearestPartial {
  float distance = kInfinity;
  int64_t id = 0;
};

// The lower id on ties. NaN never wins.
ADANAT_HD void take_nearer(NearestPartial& into, float distance, int64_t id) {
  if (distance < into.distance || (distance == into.distance && id < into.id)) {
    into.distance = distance;
    into.id = id;
  }
}

#ifdef __CUDACC__

namespace nearest {
constexpr int kThreads = 16;  // per side of the block
constexpr int kPointsEach = 2, kCodesEach = 4;
constexpr int kRows = kThreads * kPointsEach, kCodes = kThreads * kCodesEach, kDepth = 32;
}  // namespace nearest

__global__ void nearest_code_kernel(const float* __restrict__ points, const float* __restrict__ codes,
                                    int64_t rows, int64_t vocab, int64_t size, int64_t* __restrict__ ids,
                                    float* __restrict__ distances) {
  using namespace nearest;
  __shared__ float point_tile[kDepth]
                             [kRows + 1];  // one more column: no bank conflicts when a warp fills a column
  __shared__ float code_tile[kDepth][kCodes + 1];
  const int tx = threadIdx.x, ty = threadIdx.y, thread = ty * kThreads + tx;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  NearestPartial best[kPointsEach];

  for (int64_t first_code = 0; first_code < vocab; first_code += kCodes) {
    float sum[kPointsEach][kCodesEach] = {};
    for (int64_t first_channel = 0; first_channel < size; first_channel += kDepth) {
      __syncthreads();  // the tiles of the round before are still being read
      for (int i = thread; i < kRows * kDepth; i += kThreads * kThreads) {
        const int64_t row = first_row + i / kDepth, channel = first_channel + i % kDepth;
        point_tile[i % kDepth][i / kDepth] =
            row < rows && channel < size ? points[row * size + channel] : 0.0f;
      }
      for (int i = thread; i < kCodes * kDepth; i += kThreads * kThreads) {
        const int64_t code = first_code + i / kDepth, channel = first_channel + i % kDepth;
        code_tile[i % kDepth][i / kDepth] =
            code < vocab && channel < size ? codes[code * size + channel] : 0.0f;
      }
      __syncthreads();
      for (int d = 0; d < kDepth; ++d) {
        for (int p = 0; p < kPointsEach; ++p) {
          for (int c = 0; c < kCodesEach; ++c) {
            const float difference = point_tile[d][ty + p * kThreads] - code_tile[d][tx + c * kThreads];
            sum[p][c] += difference * difference;
          }
        }
      }
    }
    for (int p = 0; p < kPointsEach; ++p) {
      for (int c = 0; c < kCodesEach; ++c) {
        const int64_t code = first_code + tx + c * kThreads;
        if (code < vocab) take_nearer(best[p], sum[p][c], code);
      }
    }
  }

  for (int p = 0; p < kPointsEach; ++p) {
    for (int offset = kThreads / 2; offset > 0; offset /= 2) {  // within the 16 threads that share a point
      const float distance = __shfl_xor_sync(~0u, best[p].distance, offset, kThreads);
      const auto id =
          static_cast<int64_t>(__shfl_xor_sync(~0u, static_cast<long long>(best[p].id), offset, kThreads));
      take_nearer(best[p], distance, id);
    }
    const int64_t row = first_row + ty + p * kThreads;
    if (tx == 0 && row < rows) {
      ids[row] = best[p].id;
      distances[row] = best[p].distance < kInfinity ? best[p].distance : bits_float(0x7fc00000u);
    }
  }
}

#endif  // __CUDACC__

}  // namespace adanat::kernels
