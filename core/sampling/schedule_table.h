// Schedules as tables of numbers, and their JSON files. Free of torch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/config.h"

namespace adanat {

// A hand-made schedule, one entry per step; also the JSON file of `--schedule FILE.json`.
struct ScheduleTable {
  int64_t steps = 0;
  std::vector<double> mask_ratio;  // share of the hidden-at-start positions masked after the step, [0, 1]
  std::vector<double> remask_temperature;    // >= 0
  std::vector<double> sampling_temperature;  // >= 0
  std::vector<double> guidance;              // >= 0
  std::string rule = "maskgit";              // "adanat" or "maskgit"

  static constexpr auto fields() {
    using C = ScheduleTable;
    return std::tuple{
        field("steps", &C::steps, "number of steps T, 1..1000"),
        field("mask_ratio", &C::mask_ratio, "T shares of the hidden positions that stay masked, 0..1"),
        field("remask_temperature", &C::remask_temperature, "T scales of the noise on the confidence, >= 0"),
        field("sampling_temperature", &C::sampling_temperature,
              "T divisors of the logits; <= 1e-4 means argmax"),
        field("guidance", &C::guidance, "T guidance scales w, >= 0"),
        field("rule", &C::rule, "re-mask rule: adanat or maskgit"),
    };
  }
  void validate() const;
  bool operator==(const ScheduleTable&) const = default;
};

// InputError naming file and key.
ScheduleTable read_schedule_file(const std::string& path);

// InputError unless steps is in 1..1000.
void require_steps(int64_t steps);

}  // namespace adanat
