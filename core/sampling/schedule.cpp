#include "core/sampling/schedule.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numbers>

#include "core/base/log.h"

namespace adanat {
namespace {

double guidance_at(const TableOptions& options, int64_t step, int64_t steps) {
  return options.guidance_curve == "constant" ? options.guidance
                                              : options.guidance * double(step + 1) / double(steps);
}

// Ratio and re-mask temperature are 0 at the last step: what is decoded there is every proposal.
template <class Ratio>
ScheduleTable falling_table(int64_t steps, const TableOptions& options, Ratio ratio) {
  require_steps(steps);
  options.validate();
  ScheduleTable table;
  table.steps = steps;
  for (int64_t t = 0; t < steps; ++t) {
    const double done = double(t + 1) / double(steps);
    const bool last = t + 1 == steps;
    table.mask_ratio.push_back(last ? 0 : ratio(done));
    table.remask_temperature.push_back(last ? 0 : options.temperature * (1 - done));
    table.sampling_temperature.push_back(options.sampling_temperature);
    table.guidance.push_back(guidance_at(options, t, steps));
  }
  return table;
}

double cosine_ratio(double done) {
  return std::cos(std::numbers::pi / 2 * done);
}

class TableSchedule : public Schedule {
 public:
  TableSchedule(std::string name, ScheduleTable table, kernels::RemaskRule rule,
                std::optional<at::Tensor> priority)
      : name_(std::move(name)), table_(std::move(table)), rule_(rule), priority_(std::move(priority)) {}

  std::string name() const override { return name_; }
  int64_t steps() const override { return table_.steps; }
  kernels::RemaskRule rule() const override { return rule_; }

  std::unique_ptr<ScheduleState> begin(int64_t, at::Device) const override { return nullptr; }

  Action next(ScheduleState*, int64_t step, const at::Tensor& features) const override {
    const auto i = size_t(step);
    const auto rows = [&](double value, at::ScalarType type) {
      return at::full({features.size(0)}, value, at::TensorOptions().dtype(type).device(features.device()));
    };
    return {rows(table_.mask_ratio[i], at::kDouble), rows(table_.remask_temperature[i], at::kFloat),
            rows(table_.sampling_temperature[i], at::kFloat), rows(table_.guidance[i], at::kFloat)};
  }

  std::optional<double> known_guidance(int64_t step) const override {
    return applied_guidance(table_.guidance[size_t(step)]);
  }

  std::optional<at::Tensor> priority() const override { return priority_; }
  bool takes_table_options() const override {
    return name_ == "cosine" || name_ == "linear" || name_ == "halton";
  }
  Json describe() const override { return config_to_json(table_); }

 private:
  std::string name_;
  ScheduleTable table_;
  kernels::RemaskRule rule_;
  std::optional<at::Tensor> priority_;
};

}  // namespace

uint64_t Schedule::next_serial() {
  static std::atomic<uint64_t> last = 0;
  return ++last;
}

void TableOptions::validate() const {
  require(guidance >= 0 && guidance <= 1e6, "guidance", "in [0, 1e6]", guidance);
  require(guidance_curve == "linear" || guidance_curve == "constant", "guidance_curve", "linear or constant",
          guidance_curve);
  require(temperature >= 0 && temperature <= 1e6, "temperature", "in [0, 1e6]", temperature);
  require(sampling_temperature >= 0 && sampling_temperature <= 1e6, "sampling_temperature", "in [0, 1e6]",
          sampling_temperature);
}

ScheduleTable cosine_table(int64_t steps, const TableOptions& options) {
  return falling_table(steps, options, cosine_ratio);
}

ScheduleTable linear_table(int64_t steps, const TableOptions& options) {
  return falling_table(steps, options, [](double done) { return 1 - done; });
}

ScheduleTable autonat_table(int64_t steps) {
  if (steps != 8)
    throw InputError(cat("schedule autonat: its table was published for 8 steps only, not for ", steps,
                         "; use --steps 8, or --schedule cosine"));
  ScheduleTable table;
  table.steps = 8;
  table.mask_ratio = {.953, .880, .794, .746, .625, .407, .261, 0};
  table.remask_temperature = {2.405, 2.478, 1.192, .769, 1.067, .935, .784, 0};
  table.sampling_temperature = {2.900, 1.867, 1.144, 1.380, 1.470, 1.376, 1.708, .713};
  table.guidance = {1e-4, 1e-4, 1e-4, .915, 1.616, 1.195, 1.383, 1.227};
  return table;
}

ScheduleTable search_start_table(int64_t steps) {
  ScheduleTable table = cosine_table(steps, TableOptions{});
  for (int64_t t = 0; t + 1 < steps; ++t) table.remask_temperature[size_t(t)] = 1 - double(t) / double(steps);
  return table;
}

std::unique_ptr<Schedule> make_table_schedule(std::string name, ScheduleTable table) {
  table.validate();
  const auto rule = table.rule == "adanat" ? kernels::RemaskRule::kAdanat : kernels::RemaskRule::kMaskgit;
  return std::make_unique<TableSchedule>(std::move(name), std::move(table), rule, std::nullopt);
}

void note_small_guidance(const std::string& name, const ScheduleTable& table) {
  const auto small = [](double w) { return w > 0 && applied_guidance(w) == 0; };
  if (const auto count = std::count_if(table.guidance.begin(), table.guidance.end(), small); count > 0)
    note(cat("schedule ", name, ": guidance below ", kNoGuidanceBelow, " counts as none, at ", count, " of ",
             table.steps, " steps"));
}

at::Tensor halton_ranks(int64_t grid_height, int64_t grid_width) {
  // floor(size * the radical inverse of i), in integers: 9 times a double of 7/9 is less than 7.
  const auto cell_of = [](int64_t size, int64_t i, int64_t base) {
    int64_t numerator = 0, denominator = 1;
    for (; i > 0; i /= base) {
      numerator = numerator * base + i % base;
      denominator *= base;
    }
    return size * numerator / denominator;
  };
  const int64_t n = grid_height * grid_width;
  at::Tensor ranks = at::full({n}, -1, at::kLong);
  int64_t* rank = ranks.mutable_data_ptr<int64_t>();
  // The sequence visits every cell, but late ones after many repeats; the bound is far beyond any grid in
  // use.
  int64_t next = 0;
  for (int64_t i = 1; next < n && i < 1000 * n + 1000; ++i) {
    int64_t& cell = rank[cell_of(grid_height, i, 2) * grid_width + cell_of(grid_width, i, 3)];
    if (cell < 0) cell = next++;
  }
  for (int64_t p = 0; p < n; ++p)
    if (rank[p] < 0) rank[p] = next++;
  return ranks;
}

int64_t halton_revealed(int64_t step, int64_t steps, int64_t tokens) {
  const double done = double(step + 1) / double(steps);
  // 1 - 2/pi acos, so that half of the steps is a third of the tokens: with acos it falls just short of it.
  const auto share = int64_t(std::floor(double(tokens) * (2 / std::numbers::pi * std::asin(done))));
  return std::min(tokens, std::max(step + 1, share));
}

std::unique_ptr<Schedule> make_halton_schedule(int64_t steps, int64_t grid_height, int64_t grid_width,
                                               const TableOptions& options) {
  require_steps(steps);
  options.validate();
  const int64_t n = grid_height * grid_width;
  ScheduleTable table;
  table.steps = steps;
  for (int64_t t = 0; t < steps; ++t) {
    // Half a token more than the count, so that floor(N * ratio) is the count in float32 too.
    const int64_t masked = n - halton_revealed(t, steps, n);
    table.mask_ratio.push_back(masked == 0 ? 0 : (double(masked) + 0.5) / double(n));
    table.remask_temperature.push_back(0);
    table.sampling_temperature.push_back(options.sampling_temperature);
    table.guidance.push_back(guidance_at(options, t, steps));
  }
  return std::make_unique<TableSchedule>("halton", std::move(table), kernels::RemaskRule::kOrder,
                                         halton_ranks(grid_height, grid_width));
}

namespace {

// A table that a person named; what of it is not taken as it stands is said.
std::unique_ptr<Schedule> named_table(const std::string& name, ScheduleTable table) {
  note_small_guidance(name, table);
  return make_table_schedule(name, std::move(table));
}

}  // namespace

std::unique_ptr<Schedule> make_schedule(const std::string& name, int64_t steps, const TableOptions& options,
                                        int64_t grid_height, int64_t grid_width) {
  if (name.size() > 5 && name.ends_with(".json")) {
    ScheduleTable table = read_schedule_file(name);
    if (steps != 0 && steps != table.steps)
      throw InputError(cat(name, ": is a schedule of ", table.steps, " steps, but --steps says ", steps));
    return named_table(name, std::move(table));
  }
  if (name == "cosine") return named_table(name, cosine_table(steps, options));
  if (name == "linear") return named_table(name, linear_table(steps, options));
  if (name == "autonat") return named_table(name, autonat_table(steps));
  if (name == "halton") return make_halton_schedule(steps, grid_height, grid_width, options);
  throw InputError(
      cat("--schedule ", name, ": must be adaptive, cosine, linear, autonat, halton or a FILE.json"));
}

}  // namespace adanat
