#include "core/nn/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <cpuid.h>
#include <sched.h>
#include <torch/version.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/nn/linear.h"

namespace adanat {
namespace {

bool cpu_has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0;
}

}  // namespace

at::Device parse_device(const std::string& text) {
  const bool has_cuda = at::globalContext().hasCUDA();
  // float32 means float32: cuDNN's default rounds the inputs of convolutions to TF32's 10 bits.
  if (has_cuda) at::globalContext().setAllowTF32CuDNN(false);
  // cuDNN's attention plans anew for every shape, and the rows of a first step are as many as its classes.
  if (has_cuda) at::globalContext().setSDPUseCuDNN(false);
  if (text == "auto") return has_cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (text == "cpu") return at::Device(at::kCPU);
  const bool indexed =
      text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() < 9 &&
      std::all_of(text.begin() + 5, text.end(), [](char ch) { return ch >= '0' && ch <= '9'; });
  if (text == "cuda" || indexed) {
    if (!has_cuda)
      throw InputError(cat("--device ", text,
                           ": no CUDA device can be used here (no GPU, no driver, or a CPU-only "
                           "build); use --device cpu"));
    const int index = indexed ? std::stoi(text.substr(5)) : 0;
    const int count = int(at::globalContext().getAcceleratorHooksInterface(at::kCUDA).deviceCount());
    if (index >= count)
      throw InputError(cat("--device ", text, ": this machine has ", count, " CUDA devices"));
    return at::Device(at::kCUDA, at::DeviceIndex(index));
  }
  throw InputError(cat("--device ", text, ": must be auto, cpu, cuda or cuda:N"));
}

at::ScalarType parse_dtype(const std::string& text, at::Device device) {
  if (text == "float32") return at::kFloat;
  if (text == "bfloat16") return at::kBFloat16;
  if (text == "auto") return device.is_cuda() || cpu_has_amx_bf16() ? at::kBFloat16 : at::kFloat;
  if (text != "int8") throw InputError(cat("--dtype ", text, ": must be auto, float32, bfloat16 or int8"));
  if (!device.is_cpu())
    throw InputError(
        cat("--dtype int8: is for CPUs, not for ", device.str(), "; use --dtype bfloat16, or --device cpu"));
  if (!int8_supported())
    throw InputError("--dtype int8: this CPU has no int8 products (VNNI); use --dtype float32, or bfloat16");
  return at::kChar;
}

std::string dtype_name(at::ScalarType dtype) {
  return dtype == at::kChar ? "int8" : dtype == at::kBFloat16 ? "bfloat16" : "float32";
}

at::Tensor sent_to(at::Device device, const at::Tensor& x) {
  return device.is_cuda() && x.is_cpu() ? x.pin_memory().to(device, /*non_blocking=*/true) : x.to(device);
}

int set_threads(int64_t threads) {
  if (threads < 0 || threads > 1024)
    throw InputError(cat("--threads ", threads, ": must be 0 (all cores) to 1024"));
  if (threads == 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    threads = sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
  }
  at::set_num_threads(int(threads));
  return int(threads);
}

std::string platform_line() {
  std::string cpu = at::get_cpu_capability();
  if (cpu_has_amx_bf16()) cpu += "+AMX";
  return cat("LibTorch ", TORCH_VERSION, ", CUDA ",
             at::globalContext().hasCUDA() ? "available" : "not available", ", CPU ", cpu);
}

}  // namespace adanat
