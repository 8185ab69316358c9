#include "kernels/nearest_code.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "kernels/nearest_code_impl.h"

namespace adanat::kernels {

NearestCode nearest_code(const at::Tensor& x, const at::Tensor& codebook) {
  using Signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adanat::nearest_code", "").typed<Signature>();
  auto [ids, distance] = op.call(x, codebook);
  return {ids, distance};
}

void check_nearest_code(const at::Tensor& x, const at::Tensor& codebook) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat, "nearest_code: x must be (M, C) float32, got ",
              x.sizes(), " ", x.scalar_type());
  TORCH_CHECK(codebook.dim() == 2 && codebook.scalar_type() == at::kFloat && codebook.size(0) >= 1,
              "nearest_code: codebook must be (V, C) float32 with V >= 1, got ", codebook.sizes(), " ",
              codebook.scalar_type());
  TORCH_CHECK(x.size(1) == codebook.size(1), "nearest_code: x is ", x.sizes(), ", codebook ",
              codebook.sizes(), ": the last sizes differ");
  TORCH_CHECK(x.device() == codebook.device(), "nearest_code: x is on ", x.device(), ", codebook on ",
              codebook.device());
}

NearestCode empty_nearest_code(const at::Tensor& x) {
  return {at::empty({x.size(0)}, x.options().dtype(at::kLong)), at::empty({x.size(0)}, x.options())};
}

namespace {

std::tuple<at::Tensor, at::Tensor> nearest_code_meta(const at::Tensor& x, const at::Tensor& codebook) {
  check_nearest_code(x, codebook);
  NearestCode r = empty_nearest_code(x);
  return {r.ids, r.distance};
}

}  // namespace
}  // namespace adanat::kernels

TORCH_LIBRARY_FRAGMENT(adanat, m) {
  m.def("nearest_code(Tensor x, Tensor codebook) -> (Tensor ids, Tensor distance)");
}
TORCH_LIBRARY_IMPL(adanat, Meta, m) {
  m.impl("nearest_code", TORCH_FN(adanat::kernels::nearest_code_meta));
}
TORCH_LIBRARY_IMPL(adanat, Autograd, m) {
  m.impl("nearest_code", torch::autograd::autogradNotImplementedFallback());
}
