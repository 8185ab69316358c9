#include "support/meta_device.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

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

at::Tensor& where_out(const at::Tensor& condition, const at::Tensor& a, const at::Tensor& b,
                      at::Tensor& out) {
  out.resize_(at::infer_size(condition.sizes(), at::infer_size(a.sizes(), b.sizes())));
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

// LibTorch knows the sizes of some results only in Python.
TORCH_LIBRARY_IMPL(aten, Meta, m) {
  m.impl("convolution_overrideable", convolution);
  m.impl("index_select", index_select);
  m.impl("native_layer_norm", native_layer_norm);
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
