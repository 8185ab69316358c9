// A trained policy as a Schedule, and the file that holds it: policy-T{steps}.safetensors or
// policy-any.safetensors.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/nn/tensor_file.h"
#include "core/sampling/schedule.h"
#include "policy/actions.h"
#include "policy/network.h"

namespace adanat {

// Everything besides the weights that the policy's decisions depend on: the metadata of its file.
struct PolicySettings {
  int64_t steps = 8;
  int64_t min_steps = 2;
  int64_t max_steps = 16;
  PolicyNetworkConfig network;
  std::string residual = "heuristic";
  HeuristicConfig heuristic;
  TableOptions cosine;
  ScheduleTable table;
  double smoothing = 0;
  std::string rule = "adanat";
  std::string generator;

  bool any_steps() const { return steps == 0; }
  bool fits(int64_t wanted) const {
    return any_steps() ? wanted >= min_steps && wanted <= max_steps : wanted == steps;
  }
  // "4 steps", "2 to 16 steps".
  std::string steps_text() const;

  static constexpr auto fields() {
    using C = PolicySettings;
    return std::tuple{
        field("steps", &C::steps, "number of steps T the policy was trained for; 0 = min_steps to max_steps"),
        field("min_steps", &C::min_steps, "fewest steps (steps 0)"),
        field("max_steps", &C::max_steps, "most steps (steps 0)"),
        field("network", &C::network, "sizes of the network"),
        field("residual", &C::residual,
              "what outputs of 0 mean: none (activation of 0), heuristic, cosine or table"),
        field("heuristic", &C::heuristic, "residual heuristic"),
        field("cosine", &C::cosine, "residual cosine: the options of the cosine table"),
        field("table", &C::table, "residual table: the table itself"),
        field("smoothing", &C::smoothing,
              "AdaGen's beta: share of the last step's smoothed output, [0, 1); 0 = none"),
        field("rule", &C::rule, "re-mask rule: adanat or maskgit"),
        field("generator", &C::generator, "SHA-256 of the generator it was trained with; empty = not known"),
    };
  }
  void validate() const;
  bool operator==(const PolicySettings&) const = default;
};

// What outputs of 0 mean for `steps`, which the settings must fit.
ActionBase action_base(const PolicySettings& settings, int64_t steps);

// What a run of a policy remembers between its steps.
class PolicyState : public ScheduleState {
 public:
  StepTerms terms;      // (T) rows: computed once per run
  at::Tensor smoothed;  // (B, 4) f64, undefined before step 0
  at::Tensor tokens;    // (B, N) i64 before this step, where the policy reads tokens
};

// Const and shareable. Actions are the mean of the policy: no exploration here (rollout.h has that). They
// follow the actor's weights as they are at begin(); known_guidance(), and a shared schedule's next(), as
// they were when this was made.
class PolicySchedule : public Schedule {
 public:
  // `name` is what reports say ("adaptive"), `hash` the SHA-256 of the policy's file, "" where there is none.
  // InputError if the settings do not fit `steps`.
  PolicySchedule(PolicySettings settings, PolicyNetwork actor, int64_t steps, at::Device device,
                 std::string name = "adaptive", std::string hash = "");

  std::string name() const override { return name_; }
  int64_t steps() const override { return steps_; }
  kernels::RemaskRule rule() const override;
  std::unique_ptr<ScheduleState> begin(int64_t batch, at::Device device) const override;
  void see_tokens(ScheduleState* state, const at::Tensor& tokens) const override;
  Action next(ScheduleState* state, int64_t step, const at::Tensor& features) const override;
  // Known where the schedule is shared by all samples.
  std::optional<double> known_guidance(int64_t step) const override;
  Json describe() const override;

  // The two halves of next(): the raw outputs (B, 4) f32, then what is done with them.
  at::Tensor raw_outputs(const PolicyState& state, int64_t step, const at::Tensor& features) const;
  const ActionMap& actions() const { return map_; }
  const PolicySettings& settings() const { return settings_; }
  // The table of a shared schedule, as it is stored in JSON. RunError where it is not shared.
  ScheduleTable table() const;

 private:
  PolicySettings settings_;
  PolicyNetwork actor_;
  int64_t steps_;
  std::string name_, hash_;
  ActionMap map_;
  std::vector<double> shared_guidance_;
};

// A policy as read from its file, on the CPU, ready for inference.
struct PolicyFile {
  PolicySettings settings;
  PolicyNetwork actor{nullptr};
  std::string hash;  // SHA-256
};

// "policy-T4.safetensors"; "policy-any.safetensors" for 0.
std::string policy_file_name(int64_t steps);
// Keys `actor.…`; metadata "format" = "adanat-policy-1", "config" = the settings as JSON, "version". Written
// atomically.
void write_policy(const std::filesystem::path& file, const PolicySettings& settings, const TensorMap& actor,
                  at::ScalarType dtype = at::kFloat);
// InputError naming the file: no policy, a newer format, bad settings, tensors that do not fit them.
PolicyFile read_policy(const std::filesystem::path& file);
// InputError that says both sides where the policy was made for another width, grid, codebook or number of
// steps (`steps` 0 = any is fine); a warning where it was trained with another generator (`generator_hash` ""
// = not known).
void check_policy(const PolicyFile& policy, const std::string& where, int64_t steps, int64_t width,
                  int64_t grid_height, int64_t grid_width, int64_t codes, const std::string& generator_hash);

}  // namespace adanat
