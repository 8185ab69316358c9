#include "policy/report_values.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

namespace adanat {

void ReportValues::add(const std::string& name, const at::Tensor& value) {
  names_.push_back(name);
  values_.push_back(value.detach().to(at::kDouble).reshape({}));
}

void ReportValues::add(const std::string& name, double value) {
  host_.emplace_back(name, value);
}

std::vector<std::pair<std::string, double>> ReportValues::take(DeferredChecks& checks) const {
  std::vector<at::Tensor> asked;
  if (!values_.empty()) asked.push_back(at::stack(values_));
  if (const at::Tensor flags = checks.flags(); flags.defined()) asked.push_back(flags.to(at::kDouble));
  std::vector<std::pair<std::string, double>> out;
  if (!asked.empty()) {
    const at::Tensor all = at::cat(asked).cpu();
    const auto count = int64_t(values_.size());
    checks.settle(all.narrow(0, count, all.size(0) - count).to(at::kBool));
    for (size_t i = 0; i < names_.size(); ++i) out.emplace_back(names_[i], all.const_data_ptr<double>()[i]);
  }
  out.insert(out.end(), host_.begin(), host_.end());
  return out;
}

}  // namespace adanat
