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
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <limits>

#include "core/base/error.h"
#include "kernels/int8_rows.h"

namespace adanat {
namespace {

// The operator that LibTorch's compiler uses for oneDNN; its only typed door is the dispatcher.
using PointwiseLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                   std::string_view, c10::List<std::optional<at::Scalar>>,
                                   std::optional<std::string_view>);

at::Tensor onednn_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         bool gelu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                             .typed<PointwiseLinear>();
  return op.call(x.contiguous(), weight, bias, gelu ? "gelu" : "none", c10::List<std::optional<at::Scalar>>(),
                 gelu ? "none" : "");
}

// Of all threads of the process: what else runs on the machine does not count.
double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

bool has_onednn() {
  return c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""}).has_value();
}

bool onednn_is_faster() {
  if (!has_onednn()) return false;
  const at::NoGradGuard no_grad;
  constexpr int64_t kSide = 384;
  constexpr double kMuchFaster = 0.7;
  const at::Tensor x = at::zeros({kSide, kSide}), weight = at::zeros({kSide, kSide});
  double native = std::numeric_limits<double>::max(), onednn = native;
  for (int i = 0; i < 6; ++i) {  // the first of each also builds the kernel
    const double a = processor_seconds();
    at::linear(x, weight);
    const double b = processor_seconds();
    onednn_linear(x, weight, std::nullopt, false);
    const double c = processor_seconds();
    native = std::min(native, b - a), onednn = std::min(onednn, c - b);
  }
  return onednn < kMuchFaster * native;
}

// Whether float32 products are oneDNN's, in the whole process.
std::atomic<bool>& onednn_chosen() {
  static std::atomic<bool> chosen = onednn_is_faster();
  return chosen;
}

// y = x weight^T + bias with its gradients, all three products by oneDNN.
class OnednnLinear : public torch::autograd::Function<OnednnLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    context->save_for_backward({x, weight});
    context->saved_data["has_bias"] = bias.has_value();
    return onednn_linear(x, weight, bias, false);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "linear: has no gradients of gradients");
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const auto product = [](const at::Tensor& a, const at::Tensor& b) {  // a b^T
      return onednn_linear(a, b, std::nullopt, false);
    };
    at::Tensor to_x, to_weight, to_bias;
    if (context->needs_input_grad(0)) to_x = product(gradients[0], weight.t());
    const at::Tensor gradient = gradients[0].reshape({-1, weight.size(0)});
    if (context->needs_input_grad(1)) {
      const at::Tensor rows = x.reshape({-1, weight.size(1)});
      // Its first factor is copied when it is transposed, the second is not: the narrower one comes first.
      to_weight = weight.size(0) < weight.size(1) ? product(gradient.t(), rows.t())
                                                  : product(rows.t(), gradient.t()).t();
    }
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2)) to_bias = gradient.sum(0);
    return {to_x, to_weight, to_bias};
  }
};

bool autocast(c10::DeviceType device) {
  const auto key = device == at::kCPU ? c10::DispatchKey::AutocastCPU : c10::DispatchKey::AutocastCUDA;
  return !c10::impl::tls_is_dispatch_key_excluded(key);
}

bool onednn_has_bfloat16() {
  static const bool has = kernels::isa_available(kernels::Isa::kAvx512);
  return has;
}

at::Tensor float_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool gelu) {
  const std::optional<at::Tensor> shift = bias.defined() ? std::optional(bias) : std::nullopt;
  const bool plain =
      x.is_cpu() && x.scalar_type() == weight.scalar_type() && x.numel() > 0 && !autocast(at::kCPU);
  const bool float32 = plain && x.scalar_type() == at::kFloat && onednn_chosen();
  // LibTorch takes oneDNN for bfloat16 by itself; the fused GELU is the gain there.
  const bool bfloat16 = plain && x.scalar_type() == at::kBFloat16 && gelu && onednn_has_bfloat16();
  if ((float32 || bfloat16) && !at::GradMode::is_enabled()) return onednn_linear(x, weight, shift, gelu);
  const at::Tensor y = float32 ? OnednnLinear::apply(x, weight, shift) : at::linear(x, weight, shift);
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
  return onednn_chosen() ? "oneDNN" : "MKL";
}

void use_float32_library(const std::string& name) {
  if (name != "MKL" && name != "oneDNN")
    throw InputError(cat("float32_library: must be MKL or oneDNN, got ", name));
  if (name == "oneDNN" && !has_onednn())
    throw InputError("float32_library: this LibTorch was built without oneDNN");
  onednn_chosen() = name == "oneDNN";
}

}  // namespace adanat
