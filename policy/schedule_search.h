// Search for one table that suits all samples: at random, or by evolution. The baseline that a learned
// schedule has to beat.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/config.h"
#include "core/sampling/schedule.h"
#include "policy/actions.h"

namespace adanat {

struct ScheduleSearchConfig {
  int64_t steps = 4;
  std::string method = "evolution";
  int64_t candidates = 200;
  int64_t population = 10;
  double spread = 0.6;
  double mutation = 0.3;
  int64_t images = 2000;
  int64_t final_images = 10000;
  int64_t seed = 0;

  static constexpr auto fields() {
    using C = ScheduleSearchConfig;
    return std::tuple{
        field("steps", &C::steps, "generation steps T, 1..1000"),
        field("method", &C::method, "random, or evolution (children of the best so far)"),
        field("candidates", &C::candidates, "tables tried, the start included, 1..100000"),
        field("population", &C::population,
              "best tables that have children, and that are measured again at the end"),
        field("spread", &C::spread,
              "standard deviation of random tables around the start, before the activations, > 0"),
        field("mutation", &C::mutation, "standard deviation of a child around its parent, > 0"),
        field("images", &C::images, "images per candidate, >= 2"),
        field("final_images", &C::final_images,
              "images per table when the best are measured again, other seeds; 0 = not"),
        field("seed", &C::seed, "of the tables and the images"),
    };
  }
  void validate() const;
  bool operator==(const ScheduleSearchConfig&) const = default;
};

// One table tried: its distance from the start in pre-activation space, and how far its images are from real
// ones.
struct SearchedTable {
  std::vector<double> raw;  // T x 4
  double score = 0;         // lower is better
};

// Candidate i is a function of the config and of the candidates before it, so a search goes on from its
// history. Candidate 0 is the start itself (all zeros).
std::vector<double> propose_table(const ScheduleSearchConfig& config,
                                  const std::vector<SearchedTable>& history);

// Indices of the `count` best, best first; equal scores in the order tried.
std::vector<size_t> best_tables(const std::vector<SearchedTable>& history, int64_t count);

// The table of raw numbers around a start.
ScheduleTable searched_table(const ActionBase& start, const std::vector<double>& raw,
                             const std::string& rule);

}  // namespace adanat
