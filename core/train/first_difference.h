// Where two configs part: a run goes on, and a policy starts, only with what it was begun with.
#pragma once
#include <optional>
#include <set>
#include <string>

#include "core/base/config.h"

namespace adanat {

struct Difference {
  std::string key;     // dotted, "optimizer.warmup"; "" where the two are no objects
  Json first, second;  // null where the key is missing
};

// The first key where two JSON values differ. Those that `ignored` names (dotted from the top) may do so.
std::optional<Difference> first_difference(const Json& first, const Json& second,
                                           const std::set<std::string>& ignored = {});

}  // namespace adanat
