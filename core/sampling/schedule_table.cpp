#include "core/sampling/schedule_table.h"

#include "core/base/text.h"

namespace adanat {

namespace {
constexpr int64_t kMaxSteps = 1000;
}

void require_steps(int64_t steps) {
  require(steps >= 1 && steps <= kMaxSteps, "steps", "1..1000", steps);
}

void ScheduleTable::validate() const {
  require_steps(steps);
  const auto column = [&](const std::vector<double>& values, const char* key, double top) {
    if (int64_t(values.size()) != steps)
      throw InputError(cat(key, " has ", values.size(), " entries, but steps is ", steps));
    for (size_t i = 0; i < values.size(); ++i)
      if (!(values[i] >= 0 && values[i] <= top))
        throw InputError(cat(key, "[", i, "] must be in [0, ", top, "], got ", values[i]));
  };
  column(mask_ratio, "mask_ratio", 1);
  column(remask_temperature, "remask_temperature", 1e6);
  column(sampling_temperature, "sampling_temperature", 1e6);
  column(guidance, "guidance", 1e6);
  require(rule == "adanat" || rule == "maskgit", "rule", "adanat or maskgit", printable(rule));
}

ScheduleTable read_schedule_file(const std::string& path) {
  return config_from_json<ScheduleTable>(read_json_file(path), path);
}

}  // namespace adanat
