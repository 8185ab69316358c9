#include "policy/report_values.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "core/base/error.h"
#include "policy/schedule_plot.h"

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

void ReportSums::add(const std::string& name, const at::Tensor& value) {
  if (!value.defined()) return;
  for (auto& [known, sum] : sums_)
    if (known == name) {
      sum = sum + value.detach();
      return;
    }
  sums_.emplace_back(name, value.detach());
}

void ReportSums::report(double count, ReportValues& values) const {
  for (const auto& [name, sum] : sums_) values.add(name, sum / count);
}

void report_actions(const at::Tensor& actions, bool by_step, ReportValues& values) {
  const at::Tensor mean = actions.mean(1), spread = actions.std({1}, /*unbiased=*/false);  // (T, 4)
  for (int64_t a = 0; a < 4; ++a) {
    if (!by_step) {
      values.add(cat("actions/", kActionNames[a], "_mean"), mean.select(1, a).mean());
      values.add(cat("actions/", kActionNames[a], "_spread"), spread.select(1, a).mean());
      continue;
    }
    for (int64_t t = 0; t < mean.size(0); ++t) {
      values.add(cat("actions/", kActionNames[a], "_mean_t", t), mean[t][a]);
      values.add(cat("actions/", kActionNames[a], "_spread_t", t), spread[t][a]);
    }
  }
  // Step 0 sees nothing but the class, and most numbers of the last step change nothing.
  values.add("actions/spread",
             mean.size(0) > 1 ? spread.narrow(0, 1, spread.size(0) - 1).mean() : spread.mean());
}

void report_codes(const at::Tensor& tokens, int64_t codes, ReportValues& values) {
  const at::Tensor flat = tokens.reshape({-1});
  at::Tensor counts = at::zeros({codes}, flat.options().dtype(at::kFloat));
  counts.index_add_(0, flat, at::ones({flat.size(0)}, counts.options()));
  const at::Tensor p = counts / double(flat.size(0));
  values.add("code_perplexity", (p * p.clamp_min(1e-12).log()).sum().neg().exp());
}

void report_classes(FeatureNet& features, const at::Tensor& images, ReportValues& values) {
  const at::NoGradGuard no_grad;
  const at::Tensor logits = features.forward(images, {"logits"})[0];
  at::Tensor seen = at::zeros({logits.size(1)}, logits.options());
  seen.index_fill_(0, logits.argmax(1), 1);
  values.add("classes_seen", seen.sum());
}

}  // namespace adanat
