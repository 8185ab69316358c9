#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>

#include "apps/pipeline/convert_parts.h"
#include "core/base/list_names.h"
#include "core/base/log.h"
#include "core/base/text.h"

namespace adanat {
namespace {

constexpr const char* kAnchor = "linear3.weight";
constexpr const char* kSettings = "args.";  // where training keeps its argparse.Namespace
// The reference's names of the four actions, in the order that this program has them in.
constexpr std::array<const char*, 4> kActions = {"manual_gen_ratios", "manual_temp", "manual_samp_temp",
                                                 "manual_cfg"};
constexpr double kAdagenSmoothing = 0.8;
constexpr int64_t kAdagenSmoothsAbove = 10;  // steps

bool ends_with_part(const std::string& prefix, const std::string& part) {
  return prefix == part || prefix.ends_with("." + part);
}

// What argparse.Namespace says, as far as it matters here.
struct Settings {
  std::optional<bool> heuristic;
  std::optional<int64_t> steps;
  std::vector<std::string> actions;
};

Settings settings_of(const WeightSource& source) {
  const auto& scalars = source.scalars();
  const auto number = [&](const char* key) -> std::optional<int64_t> {
    const auto it = scalars.find(std::string(kSettings) + key);
    if (it == scalars.end() || it->second.kind == PthScalar::Kind::kNone) return std::nullopt;
    if (it->second.kind != PthScalar::Kind::kInt && it->second.kind != PthScalar::Kind::kBool)
      throw InputError(cat(source.where(), ": ", kSettings, key, " is no integer"));
    return it->second.integer;
  };
  Settings out;
  if (const auto heu = number("heu")) out.heuristic = *heu != 0;
  out.steps = number("gen_steps");
  for (size_t i = 0;; ++i) {
    const auto it = scalars.find(cat(kSettings, "upd_set.", i));
    if (it == scalars.end()) break;
    out.actions.push_back(it->second.text);
  }
  return out;
}

// Which tensors of the file are the actor's, and how they came to be.
struct Actor {
  WeightNames weights;
  bool bare = false;  // AdaGen's: names without a prefix
};

Actor find_actor(const WeightSource& source) {
  std::vector<std::string> prefixes;
  for (const auto& [name, entry] : source.entries()) {
    if (!name.ends_with(kAnchor)) continue;
    const std::string prefix = name.substr(0, name.size() - std::string(kAnchor).size());
    if ((prefix.empty() || prefix.ends_with('.')) && !ends_with_part(prefix, "critic."))
      prefixes.push_back(prefix);
  }
  if (prefixes.empty())
    throw InputError(cat(source.where(), ": is no policy: it lacks ", kAnchor,
                         " (under any prefix); `adanat info` lists what is in the file"));
  // The old policy is the one that acts; in a checkpoint from between two updates the new one differs.
  std::string chosen = prefixes[0];
  std::vector<std::string> old;
  std::copy_if(prefixes.begin(), prefixes.end(), std::back_inserter(old),
               [](const std::string& prefix) { return ends_with_part(prefix, "policy_old.actor."); });
  if (old.size() == 1) chosen = old[0];
  std::string newer = chosen;
  if (old.size() == 1) newer.replace(newer.rfind("policy_old."), 11, "policy.");
  for (const std::string& prefix : prefixes)
    if (prefix != chosen && prefix != newer)
      throw InputError(cat(source.where(), ": holds several policies (", printable(chosen + kAnchor), ", ",
                           printable(prefix + kAnchor), "); save the one that is wanted alone"));
  Actor out;
  out.weights.prefix = chosen;
  out.bare = !ends_with_part(chosen, "actor.");
  for (const auto& [name, entry] : source.entries()) {
    if (name.starts_with(chosen))
      out.weights.names[name.substr(chosen.size())] = name;
    else if (newer != chosen && name.starts_with(newer))
      out.weights.names.emplace(name.substr(newer.size()), name);
    else
      out.weights.left_out.push_back(name);
  }
  return out;
}

ShapeMap actor_shapes(const PolicyNetworkConfig& c, int64_t outputs) {
  ShapeMap shapes;
  const auto layer = [&](const std::string& name, std::vector<int64_t> weight) {
    shapes[name + ".bias"] = {weight[0]};
    shapes[name + ".weight"] = std::move(weight);
  };
  if (c.input_width != c.hidden) layer("x_embedder", {c.hidden, c.input_width});
  layer("t_embedder.mlp.0", {c.hidden, 256});
  layer("t_embedder.mlp.2", {c.hidden, c.hidden});
  layer("adaLN1.adaLN_modulation.1", {2 * c.hidden, c.hidden});
  layer("adaLN2.adaLN_modulation.1", {2 * c.mlp, c.hidden});
  layer("adaLN3.adaLN_modulation.1", {2 * c.hidden, c.hidden});
  layer("dw_conv", {c.hidden, 1, 3, 3});
  layer("pw_conv", {c.channels, c.hidden, 1, 1});
  layer("linear1", {c.mlp, c.flat()});
  layer("linear2", {c.hidden, c.mlp});
  layer("linear3", {outputs, c.hidden});
  return shapes;
}

PolicyNetworkConfig sizes_of(const std::string& where, const ShapeMap& found,
                             const GeneratorConfig& generator) {
  PolicyNetworkConfig config;
  const bool embeds = found.contains("x_embedder.weight") || found.contains("x_embedder.bias");
  config.hidden = 1, config.input_width = embeds ? 2 : 1;  // names follow from whether they differ
  check_names(where, found, actor_shapes(config, 1));
  config.hidden = size_of_tensor(where, found, kAnchor, 2, 1);
  config.channels = size_of_tensor(where, found, "pw_conv.weight", 4, 0);
  config.mlp = size_of_tensor(where, found, "linear1.weight", 2, 0);
  config.grid_height = generator.grid_height, config.grid_width = generator.grid_width;
  config.input_width = generator.width, config.codes = generator.codes;
  config.validate();
  const int64_t reads = embeds ? size_of_tensor(where, found, "x_embedder.weight", 2, 1) : config.hidden;
  if (reads != generator.width)
    throw InputError(cat(where, ": reads features of width ", reads, ", the generator's are ",
                         generator.width, " wide; it belongs to another generator"));
  if (const int64_t flat = size_of_tensor(where, found, "linear1.weight", 2, 1); flat != config.flat())
    throw InputError(cat(where, ": linear1.weight reads ", flat, " values, a grid of ", config.grid_height,
                         "x", config.grid_width, " tokens gives ", config.flat(),
                         "; it belongs to a generator of another grid"));
  return config;
}

// Row i of the result is the file's row for action i of ours. InputError: the settings name other actions.
std::array<int64_t, 4> rows_of_actions(const std::string& where, const std::vector<std::string>& actions) {
  std::array<int64_t, 4> rows = {0, 1, 2, 3};
  if (actions.empty()) return rows;
  std::vector<std::string> shown;
  for (const std::string& action : actions) shown.push_back(printable(action));
  for (size_t i = 0; i < kActions.size(); ++i) {
    const auto it = std::find(actions.begin(), actions.end(), kActions[i]);
    if (it == actions.end() || actions.size() != kActions.size())
      throw InputError(cat(where, ": its ", kSettings, "upd_set is (", list_names(shown),
                           "); a policy here decides all of ", kActions[0], ", ", kActions[1], ", ",
                           kActions[2], " and ", kActions[3]));
    rows[i] = it - actions.begin();
  }
  return rows;
}

int64_t steps_of(const std::string& where, int64_t given, const std::optional<int64_t>& said) {
  if (given == 0 && !said)
    throw InputError(cat(where, ": does not say for how many steps it is; give --policy ", where, ":T"));
  if (said && (*said < 1 || *said > 1000))
    throw InputError(cat(where, ": ", kSettings, "gen_steps is ", *said, ", it must be 1..1000"));
  if (given != 0 && said && given != *said)
    warning(cat(where, ": was trained for ", *said, " steps, is stored for ", given, " as --policy says"));
  return given != 0 ? given : *said;
}

std::string residual_of(const std::string& where, const std::optional<bool>& flag, const Settings& settings,
                        const PolicyPreset& preset) {
  if (flag && settings.heuristic && *flag != *settings.heuristic)
    warning(cat(where, ": was trained with heu ", int(*settings.heuristic), ", --policy-residual ",
                *flag ? "on" : "off", " is taken"));
  if (flag) return *flag ? "heuristic" : "none";
  if (settings.heuristic) return *settings.heuristic ? "heuristic" : "none";
  if (!preset.residual.empty()) return preset.residual;
  throw InputError(cat(where, ": does not say whether its outputs are added to the heuristic schedule; give ",
                       "--policy-residual off (AdaNAT's default) or on (AdaGen's), or --config"));
}

}  // namespace

PolicyPart read_published_policy(const WeightSource& source, int64_t steps, std::optional<bool> residual,
                                 const PolicyPreset& preset, const GeneratorConfig& generator) {
  const std::string& where = source.where();
  if (const auto it = source.metadata().find("format");
      it != source.metadata().end() && it->second.starts_with("adanat-policy-"))
    throw InputError(
        cat(where, ": is a policy of this program already; `adanat generate --policy` reads it"));
  const Actor actor = find_actor(source);
  const Settings said = settings_of(source);
  PolicyPart part;
  part.left_out = actor.weights.left_out;
  part.settings.steps = steps_of(where, steps, said.steps);
  part.settings.residual = residual_of(where, residual, said, preset);
  part.settings.heuristic = preset.heuristic;
  const bool adagen = actor.bare && part.settings.residual == "heuristic";
  part.settings.smoothing = preset.smoothing >= 0                                 ? preset.smoothing
                            : adagen && part.settings.steps > kAdagenSmoothsAbove ? kAdagenSmoothing
                                                                                  : 0;
  if (preset.smoothing < 0 && part.settings.smoothing > 0)
    note(cat(where, ": names without \"actor.\" and more than ", kAdagenSmoothsAbove,
             " steps: taken for AdaGen's, which smooths its actions with beta ", kAdagenSmoothing,
             "; --config can say otherwise"));
  const auto rows = rows_of_actions(where, said.actions);

  const ShapeMap found = actor.weights.shapes(source);
  try {
    part.settings.network = sizes_of(where, found, generator);
  } catch (const InputError& e) {
    const std::string what = e.what();
    throw InputError(what.starts_with(where) ? what : cat(where, ": ", what));
  }
  check_weights(where, found, actor_shapes(part.settings.network, int64_t(kActions.size())));
  part.actor = source.read(actor.weights.names);
  for (const char* name : {"linear3.weight", "linear3.bias"}) {
    at::Tensor& tensor = part.actor.at(name);
    const at::Tensor from = tensor;
    tensor = from.clone();
    for (size_t i = 0; i < rows.size(); ++i) tensor.select(0, int64_t(i)).copy_(from.select(0, rows[i]));
  }
  return part;
}

PolicyPart policy_of_table(const ScheduleTable& table, const GeneratorConfig& generator) {
  PolicyPart part;
  part.settings.steps = part.settings.network.shared_steps = table.steps;
  part.settings.network.input_width = generator.width, part.settings.network.codes = generator.codes;
  part.settings.network.grid_height = generator.grid_height;
  part.settings.network.grid_width = generator.grid_width;
  part.settings.residual = "table";
  part.settings.table = table;
  part.settings.rule = table.rule;
  part.actor.emplace("table", at::zeros({table.steps, 4}));
  return part;
}

}  // namespace adanat
