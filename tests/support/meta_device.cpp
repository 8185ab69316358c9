#include "support/meta_device.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <array>

namespace adanat::testing {
namespace {

at::Tensor index_select(const at::Tensor& self, int64_t dim, const at::Tensor& index) {
  std::vector<int64_t> sizes = self.sizes().vec();
  sizes[size_t(dim < 0 ? dim + self.dim() : dim)] = index.numel();
  return at::empty(sizes, self.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_layer_norm(const at::Tensor& input,
                                                                 at::IntArrayRef width,
                                                                 const std::optional<at::Tensor>&,
                                                                 const std::optional<at::Tensor>&, double) {
  std::vector<int64_t> rows = input.sizes().vec();
  for (size_t i = rows.size() - width.size(); i < rows.size(); ++i) rows[i] = 1;
  return {at::empty_like(input), at::empty(rows, input.options()), at::empty(rows, input.options())};
}

at::Tensor where(const at::Tensor& condition, const at::Tensor& a, const at::Tensor& b) {
  return at::empty(at::infer_size(condition.sizes(), at::infer_size(a.sizes(), b.sizes())), a.options());
}

at::Tensor& where_out(const at::Tensor& condition, const at::Tensor& a, const at::Tensor& b,
                      at::Tensor& out) {
  out.resize_(at::infer_size(condition.sizes(), at::infer_size(a.sizes(), b.sizes())));
  return out;
}

at::Tensor& abs_out(const at::Tensor& self, at::Tensor& out) {
  out.resize_(self.sizes());
  return out;
}

at::Tensor& logical_and_out(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  out.resize_(at::infer_size(a.sizes(), b.sizes()));
  return out;
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>&,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       bool transposed, at::IntArrayRef, int64_t) {
  TORCH_CHECK(!transposed, "not needed");
  std::vector<int64_t> sizes = {input.size(0), weight.size(0)};
  for (size_t i = 0; i < stride.size(); ++i) {
    const auto d = int64_t(i) + 2;
    sizes.push_back((input.size(d) + 2 * padding[i] - dilation[i] * (weight.size(d) - 1) - 1) / stride[i] +
                    1);
  }
  return at::empty(sizes, input.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor&, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef, at::IntArrayRef,
    at::IntArrayRef, bool, at::IntArrayRef, int64_t, std::array<bool, 3>) {
  return {at::empty_like(input), at::empty_like(weight), at::empty({weight.size(0)}, weight.options())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> native_layer_norm_backward(
    const at::Tensor&, const at::Tensor& input, at::IntArrayRef, const at::Tensor&, const at::Tensor&,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, std::array<bool, 3>) {
  const auto like = [](const std::optional<at::Tensor>& x) {
    return x && x->defined() ? at::empty_like(*x) : at::Tensor();
  };
  return {at::empty_like(input), like(weight), like(bias)};
}

at::Tensor std_of_all(const at::Tensor& self, at::OptionalIntArrayRef dim, const std::optional<at::Scalar>&,
                      bool) {
  TORCH_CHECK(!dim, "not needed");
  return at::empty({}, self.options());
}

void fused_adamw(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                 at::TensorList, double, double, double, double, double, bool, bool,
                 const std::optional<at::Tensor>&, const std::optional<at::Tensor>&) {}

// LibTorch knows the sizes of some results only in Python.
TORCH_LIBRARY_IMPL(aten, Meta, m) {
  m.impl("_fused_adamw_", fused_adamw);
  m.impl("abs.out", abs_out);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("convolution_overrideable", convolution);
  m.impl("index_select", index_select);
  m.impl("logical_and.out", logical_and_out);
  m.impl("native_layer_norm", native_layer_norm);
  m.impl("native_layer_norm_backward", native_layer_norm_backward);
  m.impl("std.correction", std_of_all);
  m.impl("where.self", where);
  m.impl("where.self_out", where_out);
}

}  // namespace

void move_to_meta(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : module.parameters())
    parameter.unsafeGetTensorImpl()->shallow_copy_from(
        at::empty_like(parameter, parameter.options().device(at::kMeta)).getIntrusivePtr());
}

}  // namespace adanat::testing
