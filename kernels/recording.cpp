#include "kernels/recording.h"

#include <atomic>

namespace adanat::kernels {
namespace {

std::atomic<Recorder> current_recorder = nullptr;

}  // namespace

std::unique_ptr<Recording> record(c10::Device device, const std::function<void()>& work) {
  const Recorder recorder = current_recorder;
  return recorder == nullptr ? nullptr : recorder(device, work);
}

Recorder set_recorder(Recorder recorder) {
  return current_recorder.exchange(recorder);
}

}  // namespace adanat::kernels
