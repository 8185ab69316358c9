// Where and in which precision a command computes.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace adanat {

// "auto" (CUDA where a device is present, else the CPU), "cpu", "cuda", "cuda:1". InputError names the flag's
// value.
at::Device parse_device(const std::string& text);

// "auto" (float32 on a CPU without AMX, else bfloat16), "float32", "bfloat16", "int8" (kChar). InputError.
at::ScalarType parse_dtype(const std::string& text, at::Device device);

// What parse_dtype reads: "float32", "bfloat16" or "int8".
std::string dtype_name(at::ScalarType dtype);

// A copy on `device` (x itself where it is there already). From the host to a GPU without waiting for the work
// that is queued there.
at::Tensor sent_to(at::Device device, const at::Tensor& x);

// Sets torch's intra-op threads; 0 = the cores this process may run on. Returns the number in force.
int set_threads(int64_t threads);

// One line: LibTorch version, CUDA, CPU features; for --version and logs.
std::string platform_line();

}  // namespace adanat
