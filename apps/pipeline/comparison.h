// Results of `adanat eval` side by side: a table that says what may be compared, and curves of score over
// steps.
#pragma once
#include <string>
#include <vector>

#include "core/base/config.h"
#include "core/io/plot.h"

namespace adanat {

// One result: the JSON that eval printed, and where it was read.
struct EvalResult {
  std::string file;
  Json json;
};

// InputError naming the file: no JSON, or no result of eval.
EvalResult read_eval_result(const std::string& file);

// Why `other` may not be compared with `first`: "other protocol", "other count", "other reference", "other
// weights", "other settings"; empty = it may. A reference that neither file names counts as the same if its
// count is.
std::vector<std::string> differences(const Json& first, const Json& other);

// A table for people: one line per result, one column per metric of any of them, and whether it may be
// compared with the first. Ends with a newline.
std::string comparison_table(const std::vector<EvalResult>& results);

// `metric` over steps; one curve per model and schedule, points in order of steps, a band of one standard
// deviation where results have repeats. metric "" = the first result's first. Results that may not be
// compared with the first, or have no steps or metric, are left out and named in `left_out`. InputError if
// nothing is left.
struct StepCurves {
  std::string metric;
  std::vector<PlotSeries> series;
  std::vector<std::string> left_out;
};
StepCurves step_curves(const std::vector<EvalResult>& results, const std::string& metric);

}  // namespace adanat
