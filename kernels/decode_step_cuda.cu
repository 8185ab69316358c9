#include "kernels/decode_step_launch.h"

namespace adanat::kernels {

cudaError_t launch_decode_step(const DecodeStepArgs& args, cudaStream_t stream) {
  const int64_t rows = args.batch * args.positions;
  if (rows == 0) return cudaSuccess;  // an empty grid is a launch error
  const dim3 block(kWarp, kRowsPerBlock);
  const auto grid = static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
  switch (args.type) {
    case LogitType::kFloat32:
      draw_rows<Float32><<<grid, block, 0, stream>>>(args);
      break;
    case LogitType::kBFloat16:
      draw_rows<BFloat16><<<grid, block, 0, stream>>>(args);
      break;
    case LogitType::kFloat16:
      draw_rows<Float16><<<grid, block, 0, stream>>>(args);
      break;
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  remask_samples<<<static_cast<unsigned>(args.batch), kRemaskThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace adanat::kernels
