#include "core/train/random_state.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>

#include "core/base/error.h"

namespace adanat {
namespace {

constexpr const char *kCpu = "rng.cpu", *kCuda = "rng.cuda.";

// GPUs with a context of this process: asking another one would make it one.
std::vector<at::Device> gpus_in_use() {
  std::vector<at::Device> out;
  if (!at::globalContext().hasCUDA()) return out;
  const auto& hooks = at::globalContext().getAcceleratorHooksInterface(at::kCUDA);
  for (c10::DeviceIndex i = 0; i < hooks.deviceCount(); ++i)
    if (hooks.hasPrimaryContext(i)) out.emplace_back(at::kCUDA, i);
  return out;
}

void set_state(const at::Device& device, const at::Tensor& state, const std::string& where,
               const std::string& key) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const InputError error(cat(where, ": ", key, " is not a random state of this program"));
  if (state.scalar_type() != at::kByte || state.sizes() != generator.get_state().sizes()) throw error;
  try {
    generator.set_state(state.cpu().clone());
  } catch (const c10::Error&) {
    throw error;
  }
}

}  // namespace

void save_random_state(TensorMap& tensors) {
  tensors[kCpu] = at::globalContext().defaultGenerator(at::kCPU).get_state();
  for (const at::Device& device : gpus_in_use())
    tensors[cat(kCuda, int(device.index()))] = at::globalContext().defaultGenerator(device).get_state();
}

void load_random_state(const TensorMap& tensors, const std::string& where) {
  const auto cpu = tensors.find(kCpu);
  if (cpu == tensors.end()) throw InputError(cat(where, ": lacks the random state ", kCpu));
  set_state(at::kCPU, cpu->second, where, kCpu);
  for (const at::Device& device : gpus_in_use()) {
    const std::string key = cat(kCuda, int(device.index()));
    if (const auto found = tensors.find(key); found != tensors.end())
      set_state(device, found->second, where, key);
  }
}

bool is_random_state(const std::string& name) {
  return name == kCpu || name.rfind(kCuda, 0) == 0;
}

}  // namespace adanat
