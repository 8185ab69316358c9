#pragma once
#include <string>

namespace adanat::kernels {

// Loads libadanat_ops_cuda.so (which brings libtorch_cuda) from the folder of libadanat_ops.so. Call it
// before the first torch call of the program: later, torch has settled for its CPU-only hooks. Returns false
// where the library or a CUDA library that it needs is absent, and writes the reason; the program then goes
// on without CUDA. True says that the code is there, not that there is a GPU. Later calls repeat the first
// answer. Thread-safe.
bool load_cuda_ops(std::string* reason = nullptr);

}  // namespace adanat::kernels
