#pragma once
#include <cuda_runtime_api.h>

#include "kernels/decode_step.cuh"

namespace adanat::kernels {

// Enqueues the two kernels. Never waits; can be captured into a graph.
[[nodiscard]] cudaError_t launch_decode_step(const DecodeStepArgs& args, cudaStream_t stream);

}  // namespace adanat::kernels
