// What would a GPU be asked for? Tensors on the device "meta" have sizes but no values: whoever needs one on
// the host throws.
#pragma once
#include <ATen/record_function.h>
#include <torch/nn/module.h>

#include <string>
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

}  // namespace adanat::testing
