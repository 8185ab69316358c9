// What an update of a policy reports.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

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

}  // namespace adanat
