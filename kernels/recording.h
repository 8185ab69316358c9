// The work of a GPU recorded once and replayed as one launch (a CUDA graph): what the CPU says again and
// again, kernel by kernel, costs more than small kernels themselves.
#pragma once
#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace adanat::kernels {

class Recording {
 public:
  virtual ~Recording() = default;
  // Does again, on the current stream, what was recorded: on the same memory, so inputs are renewed by
  // copying into the tensors that the work read, and results lie in the tensors that it wrote.
  virtual void replay() = 0;
};

// Records what `work` asks of `device`; null where nothing can record there (a CPU, no CUDA library). It must
// have run before, as it is, so that libraries have their memory and their plans; it must not wait for the
// device or copy between it and the host. What it throws comes through.
std::unique_ptr<Recording> record(c10::Device device, const std::function<void()>& work);

// What `record` calls. The CUDA library sets it when it is loaded. Returns the one before.
using Recorder = std::unique_ptr<Recording> (*)(c10::Device device, const std::function<void()>& work);
Recorder set_recorder(Recorder recorder);

}  // namespace adanat::kernels
