// The tolerance that the golden files suggest for a tensor: 20 times the largest difference between the
// recording run in float32 and the same run in float64 (tests/golden/data/noise.json), for another order of
// summation.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/base/config.h"
#include "support/support.h"

namespace adanat::testing {

// `key` is a tensor's name in golden file `file`, or begins with the entry that its group was measured under.
// Never below 20 roundings of the largest value: a run that happens to round like float64 says nothing about
// others.
inline double golden_tolerance(const std::string& file, const std::string& key) {
  static const Json noise = read_json_file((golden_dir() / "noise.json").string());
  const Json& entries = noise.at(file);
  std::string best;
  for (const auto& item : entries.items())
    if (key.starts_with(item.key()) && item.key().size() > best.size()) best = item.key();
  if (best.empty()) throw std::out_of_range("noise.json has no entry for " + key);
  const Json& entry = entries.at(best);
  const double rounding = entry.at("max_abs").get<double>() * 0x1p-24;
  return 20 * std::max(entry.at("max_abs_err").get<double>(), rounding);
}

}  // namespace adanat::testing
