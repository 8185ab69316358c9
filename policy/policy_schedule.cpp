#include "policy/policy_schedule.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/nn/module_state.h"

namespace adanat {
namespace {

constexpr const char* kFormat = "adanat-policy-1";
constexpr const char* kFormatStem = "adanat-policy-";

}  // namespace

std::string PolicySettings::steps_text() const {
  return any_steps() ? cat(min_steps, " to ", max_steps, " steps") : cat(steps, " steps");
}

void PolicySettings::validate() const {
  require(steps >= 0 && steps <= 1000, "steps", "0..1000", steps);
  require(min_steps >= 1 && min_steps <= 1000, "min_steps", "1..1000", min_steps);
  require(max_steps >= min_steps && max_steps <= 1000, "max_steps", "min_steps..1000", max_steps);
  network.validate(), heuristic.validate(), cosine.validate();
  require(residual == "none" || residual == "heuristic" || residual == "cosine" || residual == "table",
          "residual", "none, heuristic, cosine or table", residual);
  if (residual == "table") {
    table.validate();
    require(table.steps == steps, "table.steps", cat("the policy's steps, ", steps).c_str(), table.steps);
  }
  require(smoothing >= 0 && smoothing < 1, "smoothing", "in [0, 1)", smoothing);
  require(rule == "adanat" || rule == "maskgit", "rule", "adanat or maskgit", rule);
  if (network.shared()) {
    require(network.shared_steps == steps, "network.shared_steps", cat("the policy's steps, ", steps).c_str(),
            network.shared_steps);
  }
}

ActionBase action_base(const PolicySettings& settings, int64_t steps) {
  if (settings.residual == "heuristic") return heuristic_base(steps, settings.heuristic);
  if (settings.residual == "cosine") return table_base(cosine_table(steps, settings.cosine));
  if (settings.residual == "table") return table_base(settings.table);
  return zero_base(steps);
}

namespace {

int64_t fitting_steps(const PolicySettings& settings, int64_t steps) {
  if (!settings.fits(steps))
    throw InputError(cat("the policy was trained for ", settings.steps_text(), ", but ", steps,
                         " are wanted; use --steps ",
                         settings.any_steps() ? settings.min_steps : settings.steps, " or another policy"));
  return steps;
}

}  // namespace

PolicySchedule::PolicySchedule(PolicySettings settings, PolicyNetwork actor, int64_t steps, at::Device device,
                               std::string name, std::string hash)
    : settings_(std::move(settings)),
      actor_(std::move(actor)),
      steps_(fitting_steps(settings_, steps)),
      name_(std::move(name)),
      hash_(std::move(hash)),
      map_(action_base(settings_, steps_), settings_.smoothing, settings_.rule == "maskgit", device) {
  if (settings_.network.shared()) shared_guidance_ = table().guidance;
}

kernels::RemaskRule PolicySchedule::rule() const {
  return settings_.rule == "maskgit" ? kernels::RemaskRule::kMaskgit : kernels::RemaskRule::kAdanat;
}

std::unique_ptr<ScheduleState> PolicySchedule::begin(int64_t, at::Device device) const {
  const at::NoGradGuard no_grad;
  auto state = std::make_unique<PolicyState>();
  const at::Tensor t = at::arange(steps_, at::TensorOptions().dtype(at::kLong).device(device));
  PolicyNetwork actor = actor_;
  state->terms = actor->step_terms(t, steps_);
  return state;
}

void PolicySchedule::see_tokens(ScheduleState* state, const at::Tensor& tokens) const {
  if (settings_.network.input == "tokens") static_cast<PolicyState*>(state)->tokens = tokens;
}

at::Tensor PolicySchedule::raw_outputs(const PolicyState& state, int64_t step,
                                       const at::Tensor& features) const {
  const at::NoGradGuard no_grad;
  PolicyNetwork actor = actor_;
  const at::Tensor input = settings_.network.input == "tokens" ? state.tokens : features.to(at::kFloat);
  return actor->forward(input, state.terms.row(step));
}

Action PolicySchedule::next(ScheduleState* state, int64_t step, const at::Tensor& features) const {
  auto& mine = *static_cast<PolicyState*>(state);
  mine.smoothed = map_.smooth(mine.smoothed, raw_outputs(mine, step, features));
  Action action = map_.action(map_.values(step, mine.smoothed));
  if (!shared_guidance_.empty())
    action.guidance.fill_(shared_guidance_[size_t(step)]);  // the table's, to the digit
  return action;
}

std::optional<double> PolicySchedule::known_guidance(int64_t step) const {
  if (shared_guidance_.empty()) return std::nullopt;
  return applied_guidance(shared_guidance_[size_t(step)]);
}

Json PolicySchedule::describe() const {
  Json j;
  if (!hash_.empty()) j["policy_sha256"] = hash_;
  j["policy"] = config_to_json(settings_);
  return j;
}

ScheduleTable PolicySchedule::table() const {
  if (!settings_.network.shared()) throw RunError("a policy that decides for each sample has no table");
  const at::NoGradGuard no_grad;
  PolicyNetwork actor = actor_;
  const at::Device device = actor->parameters().front().device();
  const at::Tensor t = at::arange(steps_, at::TensorOptions().dtype(at::kLong).device(device));
  return table_of(action_base(settings_, steps_), settings_.smoothing,
                  actor->step_terms(t, steps_).outputs.cpu(), settings_.rule);
}

std::string policy_file_name(int64_t steps) {
  return steps == 0 ? "policy-any.safetensors" : cat("policy-T", steps, ".safetensors");
}

void write_policy(const std::filesystem::path& file, const PolicySettings& settings, const TensorMap& actor,
                  at::ScalarType dtype) {
  settings.validate();
  TensorMap tensors;
  for (const auto& [name, tensor] : actor) tensors["actor." + name] = tensor.to(dtype);
  write_tensors(
      file, tensors,
      {{"format", kFormat}, {"config", config_to_json(settings).dump()}, {"version", ADANAT_VERSION}});
}

PolicyFile read_policy(const std::filesystem::path& file) {
  const std::string where = file.string();
  if (!std::filesystem::exists(file)) throw InputError(cat(where, ": no such policy file"));
  Metadata metadata;
  TensorMap tensors = read_tensors(file, &metadata);
  const std::string format = metadata.contains("format") ? metadata["format"] : "";
  if (format.rfind(kFormatStem, 0) != 0)
    throw InputError(cat(where, ": is no policy file (its metadata lacks format ", kFormat,
                         "); a published policy goes ", "through `adanat convert` first"));
  if (format != kFormat)
    throw InputError(
        cat(where, ": has the format ", format, ", this program reads ", kFormat, "; use a newer adanat"));
  if (!metadata.contains("config")) throw InputError(cat(where, ": its metadata lacks the key \"config\""));
  PolicyFile out;
  out.settings = config_from_json<PolicySettings>(parse_json(metadata["config"], where), where);
  const at::NoGradGuard no_grad;
  // The file must hold what its settings promise before memory is taken for it.
  uint64_t held = 0;
  for (const auto& [name, tensor] : tensors) held += uint64_t(tensor.numel());
  const PolicyNetworkConfig& net = out.settings.network;
  if (!net.shared() && uint64_t(net.flat()) * uint64_t(net.mlp) > held)
    throw InputError(cat(where, ": holds ", held, " numbers, its settings speak of more (a layer of ",
                         net.flat(), " by ", net.mlp, ")"));
  if (!net.shared() && uint64_t(net.hidden) * uint64_t(net.hidden) > held)
    throw InputError(cat(where, ": holds ", held, " numbers, its settings speak of a width of ", net.hidden));
  if (net.input == "tokens" && uint64_t(net.codes) * uint64_t(net.hidden) > held)
    throw InputError(cat(where, ": holds ", held, " numbers, its settings speak of ", net.codes,
                         " codes of width ", net.hidden));
  check_finite(tensors, where);
  TensorMap actor;
  for (const auto& [name, tensor] : tensors) {
    if (name.rfind("actor.", 0) != 0)
      throw InputError(cat(where, ": unknown tensor ", name, "; keys begin with actor."));
    actor.emplace(name.substr(6), tensor);
  }
  out.actor = PolicyNetwork(net, 4);
  load_module_state(*out.actor, actor, where);
  for (auto& parameter : out.actor->parameters()) parameter.set_requires_grad(false);
  out.actor->eval();
  out.hash = sha256_file(where);
  return out;
}

void check_policy(const PolicyFile& policy, const std::string& where, int64_t steps, int64_t width,
                  int64_t grid_height, int64_t grid_width, int64_t codes, const std::string& generator_hash) {
  const PolicySettings& s = policy.settings;
  const PolicyNetworkConfig& net = s.network;
  if (steps != 0 && !s.fits(steps))
    throw InputError(
        cat(where, ": is a policy for ", s.steps_text(), ", but ", steps, " are wanted; give ",
            s.any_steps() ? cat("--steps ", s.min_steps, "..", s.max_steps) : cat("--steps ", s.steps),
            " or another --policy"));
  if (!net.shared()) {
    if (net.grid_height != grid_height || net.grid_width != grid_width)
      throw InputError(cat(where, ": is a policy for a grid of ", net.grid_height, "x", net.grid_width,
                           " tokens, the model has ", grid_height, "x", grid_width));
    if (net.input == "features" && net.input_width != width)
      throw InputError(
          cat(where, ": reads features of width ", net.input_width, ", the model's generator has ", width));
    if (net.input == "tokens" && net.codes != codes)
      throw InputError(cat(where, ": reads tokens of ", net.codes, " codes, the model has ", codes));
  }
  if (!s.generator.empty() && !generator_hash.empty() && s.generator != generator_hash)
    warning(cat(where, ": was trained with the generator ", s.generator.substr(0, 12),
                "..., the model holds ", generator_hash.substr(0, 12), "...; its decisions may not fit"));
}

}  // namespace adanat
