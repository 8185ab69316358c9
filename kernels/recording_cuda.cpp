// CUDA graphs behind record().
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>

#include "kernels/recording.h"

namespace adanat::kernels {
namespace {

// One stream for all: each that a library works on costs it memory for good.
c10::cuda::CUDAStream side_stream(c10::DeviceIndex device) {
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  return streams.try_emplace(device, c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device))
      .first->second;
}

class CudaRecording : public Recording {
 public:
  CudaRecording(c10::Device device, const std::function<void()>& work)
      : device_(device), graph_(std::make_unique<at::cuda::CUDAGraph>()) {
    const c10::cuda::CUDAGuard guard(device);
    // What the work reads may still be in the making on the caller's stream.
    c10::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard side(side_stream(c10::cuda::current_device()));
    try {
      // Other threads (image writers, data loaders) go on with what they do: only this one is recorded.
      graph_->capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {
        try {
          graph_->capture_end();
        } catch (const c10::Error&) {  // the first error says more
        }
        throw;
      }
      graph_->capture_end();
    } catch (...) {
      // The allocator may go on asking a graph that failed, so it stays alive, and nothing is recorded again.
      set_recorder(nullptr);
      static_cast<void>(graph_.release());
      throw;
    }
  }

  void replay() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_->replay();
  }

 private:
  c10::Device device_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

std::unique_ptr<Recording> record_cuda(c10::Device device, const std::function<void()>& work) {
  return device.is_cuda() ? std::make_unique<CudaRecording>(device, work) : nullptr;
}

[[maybe_unused]] const Recorder registered = set_recorder(record_cuda);

}  // namespace
}  // namespace adanat::kernels
