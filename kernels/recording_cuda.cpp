// CUDA graphs behind record().
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/recording.h"

namespace adanat::kernels {
namespace {

class CudaRecording : public Recording {
 public:
  CudaRecording(c10::Device device, const std::function<void()>& work) : device_(device) {
    const c10::cuda::CUDAGuard guard(device);
    // What the work reads may still be in the making on the caller's stream.
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard side(c10::cuda::getStreamFromPool());
    // Other threads (image writers, data loaders) go on with what they do: only this one is recorded.
    graph_.capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      work();
    } catch (...) {
      try {
        graph_.capture_end();
      } catch (const c10::Error&) {  // the first error says more
      }
      throw;
    }
    graph_.capture_end();
  }

  void replay() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_.replay();
  }

 private:
  c10::Device device_;
  at::cuda::CUDAGraph graph_;
};

std::unique_ptr<Recording> record_cuda(c10::Device device, const std::function<void()>& work) {
  return device.is_cuda() ? std::make_unique<CudaRecording>(device, work) : nullptr;
}

[[maybe_unused]] const Recorder registered = set_recorder(record_cuda);

}  // namespace
}  // namespace adanat::kernels
