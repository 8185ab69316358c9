// What an update of a policy reports.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "core/features/feature_net.h"
#include "core/nn/deferred_checks.h"

namespace adanat {

// Named 0-d values of one device, which go to the host together, and with them the answers to what was to be
// checked.
class ReportValues {
 public:
  void add(const std::string& name, const at::Tensor& value);
  void add(const std::string& name, double value);
  // All of them, in the order added (those of the device first), once `checks` is settled: RunError where
  // something has failed. Asks the device once.
  std::vector<std::pair<std::string, double>> take(DeferredChecks& checks) const;

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> values_;  // 0-d f64
  std::vector<std::pair<std::string, double>> host_;
};

// Values of several steps, of which the mean is reported.
class ReportSums {
 public:
  void add(const std::string& name, const at::Tensor& value);  // 0-d; an undefined one does not count
  // Each sum over `count`, in the order in which the names came.
  void report(double count, ReportValues& values) const;

 private:
  std::vector<std::pair<std::string, at::Tensor>> sums_;
};

// Mean and spread over the samples of each action, actions (T, B, 4) activated: at each step, or of all steps
// together. "actions/spread" is the mean spread between samples.
void report_actions(const at::Tensor& actions, bool by_step, ReportValues& values);
// "code_perplexity": e to the entropy of how often each of the `codes` is used; tokens i64 in [0, codes).
void report_codes(const at::Tensor& tokens, int64_t codes, ReportValues& values);
// "classes_seen": classes that `features` recognises among the images (B, 3, S, S).
void report_classes(FeatureNet& features, const at::Tensor& images, ReportValues& values);

}  // namespace adanat
