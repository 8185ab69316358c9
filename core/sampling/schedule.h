// Schedules: who decides the Action of each step. The sampler cannot tell tables and learned policies apart.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/config.h"
#include "core/sampling/action.h"
#include "core/sampling/schedule_table.h"
#include "kernels/decode_step.h"

namespace adanat {

// What one run of a schedule remembers between its steps (smoothed actions, say). Tables need none.
class ScheduleState {
 public:
  virtual ~ScheduleState() = default;
};

// Const and shareable: everything that changes during a run lives in its ScheduleState.
class Schedule {
 public:
  Schedule() = default;
  Schedule(const Schedule&) = delete;
  Schedule& operator=(const Schedule&) = delete;
  virtual ~Schedule() = default;
  // Its own in the process: what was prepared for one schedule is never used for a later one in its place.
  uint64_t serial() const { return serial_; }
  virtual std::string name() const = 0;
  virtual int64_t steps() const = 0;
  virtual kernels::RemaskRule rule() const = 0;
  virtual std::unique_ptr<ScheduleState> begin(int64_t batch, at::Device device) const = 0;
  // The tokens (B, N) that the coming next() decides about; for schedules that read them.
  virtual void see_tokens(ScheduleState*, const at::Tensor&) const {}
  // features (B, N, D): of the conditional pass on the current tokens. step in [0, steps()).
  virtual Action next(ScheduleState* state, int64_t step, const at::Tensor& features) const = 0;
  // The guidance that is applied to every sample at this step, where it is known before the forward pass. 0:
  // no unconditional row is computed, though next() may tell a guidance below kNoGuidanceBelow.
  virtual std::optional<double> known_guidance(int64_t step) const = 0;
  // Whether TableOptions shaped it (--guidance and its like); false for tables that bring their own numbers.
  virtual bool takes_table_options() const { return false; }
  // What a report needs to make the run again, where the name alone does not say it.
  virtual Json describe() const { return name(); }
  // Rank of each position in the reveal order, (N) i64; only for rule kOrder.
  virtual std::optional<at::Tensor> priority() const { return std::nullopt; }

 private:
  static uint64_t next_serial();
  uint64_t serial_ = next_serial();
};

// What the command line may say about a table.
struct TableOptions {
  double guidance = 1.0;
  std::string guidance_curve = "linear";
  double temperature = 4.5;
  double sampling_temperature = 1.0;

  static constexpr auto fields() {
    using C = TableOptions;
    return std::tuple{
        field("guidance", &C::guidance, "guidance scale w, >= 0; 0 = none"),
        field("guidance_curve", &C::guidance_curve, "linear: w (t+1)/T at step t; constant: w at every step"),
        field("temperature", &C::temperature,
              "re-mask temperature at the start, falling to 0 at the last step, >= 0"),
        field("sampling_temperature", &C::sampling_temperature, "divides the logits of every draw, >= 0"),
    };
  }
  void validate() const;
  bool operator==(const TableOptions&) const = default;
};

// Guidance below this counts as none, though the Action still tells it: it saves the unconditional rows, and
// changes a logit by less than a thousandth of its distance from the unconditional one.
inline constexpr double kNoGuidanceBelow = 1e-3;
// The guidance that is computed where `told` is the Action's.
inline double applied_guidance(double told) {
  return told < kNoGuidanceBelow ? 0 : told;
}

// MaskGIT's cosine: ratio cos(pi/2 (t+1)/T), temperature tau (1-(t+1)/T), rule maskgit, last ratio 0.
ScheduleTable cosine_table(int64_t steps, const TableOptions& options);
// As cosine with ratio 1-(t+1)/T.
ScheduleTable linear_table(int64_t steps, const TableOptions& options);
// AutoNAT-L's published table, searched for T = 8 on ImageNet-256. InputError for other T.
ScheduleTable autonat_table(int64_t steps);
// Where AutoNAT's search starts: cosine ratios, temperatures 1-t/T, sampling temperature 1, guidance (t+1)/T.
ScheduleTable search_start_table(int64_t steps);

std::unique_ptr<Schedule> make_table_schedule(std::string name, ScheduleTable table);
// Notes on stderr at how many steps the table's guidance counts as none although it is not 0; make_schedule
// does so itself.
void note_small_guidance(const std::string& name, const ScheduleTable& table);

// Positions in the order of a 2-D Halton sequence: cells (floor(h r2(i)), floor(w r3(i))), i = 1, 2, ...,
// first visits in order (Halton-MaskGIT, ICLR 2025). Returns the rank of each position, row-major, (h*w) i64.
at::Tensor halton_ranks(int64_t grid_height, int64_t grid_width);
// Tokens revealed after 0-based step t of T by Halton-MaskGIT: max(t+1, floor(N (1 - 2/pi acos((t+1)/T)))).
int64_t halton_revealed(int64_t step, int64_t steps, int64_t tokens);
// Rule kOrder over halton_ranks, with guidance and sampling temperature of the options (the re-mask
// temperature has no meaning there).
std::unique_ptr<Schedule> make_halton_schedule(int64_t steps, int64_t grid_height, int64_t grid_width,
                                               const TableOptions& options);

// "cosine", "linear", "autonat", "halton", or the path of a JSON file (anything that ends in .json).
// `steps` 0 = not given (then only a file says its own). InputError for unknown names and steps that a file
// or the AutoNAT table contradicts.
std::unique_ptr<Schedule> make_schedule(const std::string& name, int64_t steps, const TableOptions& options,
                                        int64_t grid_height, int64_t grid_width);

}  // namespace adanat
