// What is looked at while a policy is trained: images of the same seeds, its decisions, its distance from the
// data.
#pragma once
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/metrics/frechet.h"
#include "core/train/recipe.h"
#include "policy/environment.h"
#include "policy/policy_schedule.h"

namespace adanat {

struct ViewOptions {
  int64_t batch = 256;           // samples made at a time
  int64_t evaluated_images = 0;  // of the FD
  int64_t decode_batch = 64;     // real images a network sees at a time
  int64_t threads = 1;           // that read the data
};

// Each figure and picture stands beside that of `before`, the policy as training began. Mean decisions,
// without exploration. The environment must outlive it. Not thread-safe.
class PolicyViews {
 public:
  PolicyViews(PolicyEnvironment& environment, PolicySettings settings, PolicyNetwork before,
              ViewOptions options);

  // "features_fd" and "features_fd_before": the Frechet distance from all the data in `features` space, the
  // same seeds each time; with "_T4" and the like where the policy takes any number of steps.
  Scalars evaluate(const PolicyNetwork& now);
  // Image grids ("samples", "samples-before") and one plot per action ("schedule-guidance").
  std::vector<NamedImage> samples(const PolicyNetwork& now);

 private:
  std::vector<int64_t> shown_steps() const;
  std::pair<at::Tensor, at::Tensor> show(const PolicyNetwork& actor, int64_t steps);
  double features_distance(const PolicyNetwork& actor, int64_t steps);
  const GaussianStats& real_stats();
  at::Tensor pooled(const at::Tensor& images);

  PolicyEnvironment& env_;
  PolicySettings settings_;
  PolicyNetwork before_;
  ViewOptions options_;
  std::optional<GaussianStats> real_stats_;
  std::map<int64_t, double> distance_before_;  // by number of steps
};

}  // namespace adanat
