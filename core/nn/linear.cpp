#include "core/nn/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_int_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <ctime>
#include <limits>

#include "kernels/int8_rows.h"

namespace adanat {
namespace {

// The operator that LibTorch's compiler uses for oneDNN; its only typed door is the dispatcher.
using PointwiseLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                   std::string_view, c10::List<std::optional<at::Scalar>>,
                                   std::optional<std::string_view>);

at::Tensor onednn_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool gelu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                             .typed<PointwiseLinear>();
  const std::optional<at::Tensor> maybe_bias =
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return op.call(x.contiguous(), weight, maybe_bias, gelu ? "gelu" : "none",
                 c10::List<std::optional<at::Scalar>>(), gelu ? "none" : "");
}

// Of all threads of the process: what else runs on the machine does not count.
double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

bool onednn_is_faster() {
  static const bool faster = [] {
    if (!c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""}).has_value()) return false;
    const at::NoGradGuard no_grad;
    constexpr int64_t kSide = 384;
    constexpr double kMuchFaster = 0.7;
    const at::Tensor x = at::zeros({kSide, kSide}), weight = at::zeros({kSide, kSide}), bias;
    double native = std::numeric_limits<double>::max(), onednn = native;
    for (int i = 0; i < 6; ++i) {  // the first of each also builds the kernel
      const double a = processor_seconds();
      at::linear(x, weight, bias);
      const double b = processor_seconds();
      onednn_linear(x, weight, bias, false);
      const double c = processor_seconds();
      native = std::min(native, b - a), onednn = std::min(onednn, c - b);
    }
    return onednn < kMuchFaster * native;
  }();
  return faster;
}

bool autocast(c10::DeviceType device) {
  const auto key = device == at::kCPU ? c10::DispatchKey::AutocastCPU : c10::DispatchKey::AutocastCUDA;
  return !c10::impl::tls_is_dispatch_key_excluded(key);
}

bool onednn_has_bfloat16() {
  static const bool has = kernels::isa_available(kernels::Isa::kAvx512);
  return has;
}

at::Tensor float_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool gelu) {
  const bool plain = x.is_cpu() && x.scalar_type() == weight.scalar_type() && x.numel() > 0 &&
                     !at::GradMode::is_enabled() && !autocast(at::kCPU);
  // LibTorch takes oneDNN for bfloat16 by itself; the fused GELU is the gain there.
  if (plain && ((x.scalar_type() == at::kFloat && onednn_is_faster()) ||
                (x.scalar_type() == at::kBFloat16 && gelu && onednn_has_bfloat16())))
    return onednn_linear(x, weight, bias, gelu);
  const at::Tensor y = at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
  return gelu ? at::gelu(y) : y;
}

constexpr int64_t kRowsPerTask = 16;
constexpr const char* kScale = "int8_scale";

// values (R, C) f32 contiguous -> q (R, C) i8, scale (R) f32.
void quantize_rows(const at::Tensor& values, at::Tensor& q, at::Tensor& scale) {
  const auto quantize = kernels::int8_rows(kernels::best_isa()).quantize;
  const int64_t rows = values.size(0), columns = values.size(1);
  const float* from = values.const_data_ptr<float>();
  int8_t* to = q.mutable_data_ptr<int8_t>();
  float* step = scale.mutable_data_ptr<float>();
  at::parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) step[r] = quantize(from + r * columns, columns, to + r * columns);
  });
}

at::Tensor int8_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& column_scale,
                       const at::Tensor& bias, bool gelu) {
  const int64_t in = weight.size(1), out = weight.size(0);
  TORCH_CHECK(x.is_cpu() && x.scalar_type() == at::kFloat && x.dim() >= 1 && x.size(-1) == in,
              "int8 linear: wants float32 (..., ", in, ") on the CPU, got ", x.scalar_type(), " ", x.sizes());
  const at::NoGradGuard no_grad;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = out;
  at::Tensor result = at::empty(sizes, at::kFloat);
  if (x.numel() == 0) return result;
  const int64_t rows = x.numel() / in;
  at::Tensor q = at::empty({rows, in}, at::kChar), row_scale = at::empty({rows}, at::kFloat);
  quantize_rows(x.reshape({rows, in}).contiguous(), q, row_scale);
  const at::Tensor sums = at::_int_mm(q, weight.t());  // (rows, out) i32
  const kernels::Int8Rows& loops = kernels::int8_rows(kernels::best_isa());
  const auto finish = gelu ? loops.dequantize_gelu : loops.dequantize;
  const int32_t* sum = sums.const_data_ptr<int32_t>();
  const float* scale = row_scale.const_data_ptr<float>();
  const float* scales = column_scale.const_data_ptr<float>();
  const float* shift = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  float* made = result.mutable_data_ptr<float>();
  at::parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) finish(sum + r * out, out, scale[r], scales, shift, made + r * out);
  });
  return result;
}

at::Tensor layer_linear(const torch::nn::LinearImpl& layer, const at::Tensor& x, bool gelu) {
  if (layer.weight.scalar_type() != at::kChar) return float_linear(x, layer.weight, layer.bias, gelu);
  return int8_linear(x, layer.weight, layer.named_buffers(/*recurse=*/false)[kScale], layer.bias, gelu);
}

}  // namespace

bool int8_supported() {
  return kernels::has_int8_products();
}

at::Tensor linear(const torch::nn::LinearImpl& layer, const at::Tensor& x) {
  return layer_linear(layer, x, false);
}

at::Tensor linear_gelu(const torch::nn::LinearImpl& layer, const at::Tensor& x) {
  return layer_linear(layer, x, true);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return float_linear(x, weight, bias, false);
}

int64_t quantize_linears(torch::nn::Module& module) {
  TORCH_CHECK(int8_supported(), "int8 linear: this CPU has no int8 products");
  const at::NoGradGuard no_grad;
  int64_t count = 0;
  for (const auto& part : module.modules()) {
    auto* layer = part->as<torch::nn::LinearImpl>();
    if (layer == nullptr || layer->weight.scalar_type() == at::kChar) continue;
    TORCH_CHECK(layer->weight.is_cpu(), "int8 linear: only on the CPU");
    const at::Tensor values = layer->weight.to(at::kFloat).contiguous();
    const int64_t out = values.size(0), in = values.size(1);
    at::Tensor q = at::empty({out, in}, at::kChar), scale = at::empty({out}, at::kFloat);
    quantize_rows(values, q, scale);
    layer->weight.set_requires_grad(false);
    layer->weight.set_data(q);
    layer->register_buffer(kScale, scale);
    if (layer->bias.defined()) layer->bias.set_data(layer->bias.to(at::kFloat));
    ++count;
  }
  return count;
}

const char* float32_library() {
  return onednn_is_faster() ? "oneDNN" : "MKL";
}

}  // namespace adanat
