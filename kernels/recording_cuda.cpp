// CUDA graphs behind record().
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
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
    // A recording takes memory of its own, and while it is made nothing cached is given back for it, nor what
    // recordings that are gone have left.
    c10::cuda::CUDACachingAllocator::emptyCache();
    const c10::cuda::CUDAStreamGuard side(side_stream(c10::cuda::current_device()));
    // The work draws nothing from torch's generator, but a capture that fails leaves it captured for good.
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device.index());
    const at::Generator before = generator.clone();
    std::exception_ptr error;
    bool ended = false;
    try {
      // Other threads (image writers, data loaders) go on with what they do: only this one is recorded.
      graph_->capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {  // says more than the capture that it spoiled
        error = std::current_exception();
      }
      graph_->capture_end();
      ended = true;
    } catch (...) {
      if (error == nullptr) error = std::current_exception();
    }
    if (!ended) {
      static_cast<void>(graph_.release());  // stays alive: the allocator may go on asking it
      generator.graphsafe_set_state(before);
    }
    if (error != nullptr) {
      set_recorder(nullptr);  // nothing is recorded again
      std::rethrow_exception(error);
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
