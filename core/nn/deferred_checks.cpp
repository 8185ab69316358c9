#include "core/nn/deferred_checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/maximum.h>

#include "core/base/error.h"

namespace adanat {

void DeferredChecks::expect(const at::Tensor& flags, Failure failure) {
  failed_ = failed_with(flags);
  noted_.emplace_back(flags.detach().reshape({-1}), std::move(failure));
  if (at_once_ && flags.is_cpu()) settle();
}

void DeferredChecks::expect(const at::Tensor& flags, const char* failure) {
  expect(flags, [failure](int64_t) { return failure; });
}

at::Tensor DeferredChecks::failed_with(const at::Tensor& flags) const {
  const at::Tensor now = 1 - flags.detach().all().to(at::kFloat);
  return failed_.defined() ? at::maximum(failed_, now) : now;
}

at::Tensor DeferredChecks::flags() const {
  std::vector<at::Tensor> parts;
  for (const auto& [flags, failure] : noted_) parts.push_back(flags);
  return parts.empty() ? at::Tensor() : at::cat(parts);
}

void DeferredChecks::settle(const at::Tensor& values) {
  const auto noted = std::exchange(noted_, {});
  failed_ = at::Tensor();
  const bool* value = noted.empty() ? nullptr : values.const_data_ptr<bool>();
  for (const auto& [flags, failure] : noted)
    for (int64_t i = 0; i < flags.size(0); ++i)
      if (!*value++) throw RunError(failure(i));
}

void DeferredChecks::settle() {
  if (!noted_.empty()) settle(flags().cpu());
}

}  // namespace adanat
