// Linear layers computed the way this machine computes them fastest. The layers are torch's own modules; what
// is here takes the place of their forward().
//
// float32 on a CPU: LibTorch multiplies matrices with MKL, which is slow on processors that it does not know
// (an AMD EPYC with AVX-512: 90 GFLOP/s on one thread, against 185 with oneDNN, which LibTorch carries as
// well). So both are timed once in a process, a few milliseconds, and oneDNN is taken where it needs less
// than 0.7 of MKL's time: far from the ratios seen (0.5 there), so that every run on a machine decides
// alike. The two differ by rounding, so a training run stores which one it uses (use_float32_library). Under
// autocast and on a GPU it is torch's own Linear.
//
// int8 on a CPU with VNNI: weights and activations in int8, sums in int32, the rest in float32. Weights have
// one scale per output channel, activations one per row, so that a row's result does not depend on the rows
// beside it. Products and sums are exact integers, so no two machines differ. docs/performance.md has the
// times, also of LibTorch's other int8 ways.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace torch::nn {
class LinearImpl;
class Module;
}  // namespace torch::nn

namespace adanat {

// x (..., in) of the layer's float type -> (..., out) of the same type; int8 layers: float32 in and out, no
// gradients. c10::Error for another type or width, and for gradients of gradients where oneDNN multiplies.
at::Tensor linear(const torch::nn::LinearImpl& layer, const at::Tensor& x);
// gelu(linear(layer, x)), the exact one (erf); in one pass where the library can.
at::Tensor linear_gelu(const torch::nn::LinearImpl& layer, const at::Tensor& x);
// x weight^T + bias, for tied weights. bias may be undefined.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// Whether int8 layers can be had: a CPU that multiplies int8 in one instruction.
bool int8_supported();

// Every torch::nn::Linear below `module` to int8, for inference only: `weight` becomes int8, and a buffer
// "int8_scale" (out) f32 joins it. A quarter of the memory. Returns how many layers. On the CPU, where
// int8_supported().
int64_t quantize_linears(torch::nn::Module& module);

// Which library multiplies float32 matrices on this CPU: "oneDNN", or "MKL" (what LibTorch itself takes). The
// first question (also of a layer) times both.
const char* float32_library();
// From here on, for the whole process. InputError for another name, and for oneDNN where LibTorch has none.
void use_float32_library(const std::string& name);

}  // namespace adanat
