// What would a GPU be asked for? Tensors on the device "meta" have sizes but no values: whoever needs one on
// the host throws. What cannot run there is watched on the CPU.
#pragma once
#include <ATen/record_function.h>
#include <torch/nn/module.h>

#include <string>
#include <string_view>
#include <vector>

namespace adanat::testing {

// Weights to the device "meta", where Module::to() refuses to go.
void move_to_meta(torch::nn::Module& module);

// Notes every operator of this thread that is given a CPU tensor which is no plain number: a copy from the
// host, which waits for the device and cannot be recorded. One at a time.
class HostReads {
 public:
  HostReads()
      : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&HostReads::began)
                                               .needsInputs(true)
                                               .scopes({at::RecordScope::FUNCTION}))) {
    names_.clear();
  }
  ~HostReads() { at::removeCallback(handle_); }
  HostReads(const HostReads&) = delete;
  HostReads& operator=(const HostReads&) = delete;

  const std::vector<std::string>& names() const { return names_; }

 private:
  static std::unique_ptr<at::ObserverContext> began(const at::RecordFunction& f) {
    for (const c10::IValue& input : f.inputs())
      if (input.isTensor() && input.toTensor().defined() && input.toTensor().is_cpu() &&
          input.toTensor().dim() > 0)
        names_.emplace_back(f.name());
    return nullptr;
  }
  static inline std::vector<std::string> names_;
  at::CallbackHandle handle_;
};

// Notes every operator of this thread whose result the host waits for: a number that is read, sizes that
// depend on values. On the CPU these cost nothing, on a GPU all that is queued. One at a time.
class HostWaits {
 public:
  HostWaits()
      : handle_(at::addThreadLocalCallback(
            at::RecordFunctionCallback(&HostWaits::began).scopes({at::RecordScope::FUNCTION}))) {
    names_.clear();
  }
  ~HostWaits() { at::removeCallback(handle_); }
  HostWaits(const HostWaits&) = delete;
  HostWaits& operator=(const HostWaits&) = delete;

  const std::vector<std::string>& names() const { return names_; }

 private:
  static std::unique_ptr<at::ObserverContext> began(const at::RecordFunction& f) {
    for (const char* waits : {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2",
                              "aten::masked_select", "aten::equal", "aten::bincount"})
      if (f.name() == std::string_view(waits)) names_.emplace_back(waits);
    return nullptr;
  }
  static inline std::vector<std::string> names_;
  at::CallbackHandle handle_;
};

}  // namespace adanat::testing
