// The flags of generate and eval that set the hand-made tables.
#pragma once
#include <optional>
#include <string>

#include "apps/adanat/cli.h"
#include "core/sampling/schedule.h"

namespace adanat {

struct TableFlags {
  std::optional<double> guidance, temperature, sampling_temperature;
  std::optional<std::string> guidance_curve;

  void add_to(CLI::App& command) {
    command.add_option("--guidance", guidance, "guidance scale of a table, 0 = none; default: the model's");
    command.add_option("--guidance-curve", guidance_curve, "linear or constant");
    command.add_option("--temperature", temperature, "re-mask temperature of a table");
    command.add_option("--sampling-temperature", sampling_temperature, "temperature of the draws of a table");
  }
  bool any() const { return guidance || guidance_curve || temperature || sampling_temperature; }

  // The model's defaults with the given flags on top. InputError: a value out of range.
  TableOptions over(const TableOptions& defaults) const {
    TableOptions table = defaults;
    if (guidance) table.guidance = *guidance;
    if (guidance_curve) table.guidance_curve = *guidance_curve;
    if (temperature) table.temperature = *temperature;
    if (sampling_temperature) table.sampling_temperature = *sampling_temperature;
    table.validate();
    return table;
  }

  // InputError: a flag is given, but the schedule brings its own numbers, or has no use for it.
  void refuse_for(const Schedule& schedule) const {
    if (any() && !schedule.takes_table_options())
      throw InputError(
          cat("--guidance, --guidance-curve, --temperature and --sampling-temperature set the tables cosine, "
              "linear and halton; schedule ",
              schedule.name(), " brings its own"));
    if (temperature && schedule.priority())
      throw InputError(cat("--temperature: schedule ", schedule.name(),
                           " reveals tokens in an order of its own, which no re-mask temperature changes; "
                           "leave it out"));
  }
};

}  // namespace adanat
