#include "policy/policy_recipe.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <set>

#include "core/base/log.h"
#include "core/data/loader.h"
#include "core/io/atomic_file.h"
#include "core/metrics/frechet.h"
#include "core/nn/module_state.h"
#include "kernels/philox.h"
#include "policy/collapse_watch.h"
#include "policy/rollout.h"
#include "policy/schedule_plot.h"

namespace adanat {
namespace {

constexpr const char *kModel = "model.", *kOptimizer = "optimizer.", *kReward = "reward.";
constexpr const char* kActionFiles[] = {"mask-ratio", "remask-temperature", "sampling-temperature",
                                        "guidance"};
// Image indices of an update lie below this, so that 65536 updates fit into the 32 bits of a Philox counter.
constexpr int64_t kIndicesPerUpdate = 65536;
constexpr int64_t kSampleSeed = 42;
constexpr int64_t kPlotSamples = 256;
constexpr int64_t kClassCheckEvery = 20;

}  // namespace

void PolicyTrainConfig::validate() const {
  require(steps >= 0 && steps <= 1000, "steps", "0..1000", steps);
  require(min_steps >= 1 && min_steps <= max_steps, "min_steps", "1..max_steps", min_steps);
  require(max_steps <= 1000, "max_steps", "<= 1000", max_steps);
  require(!shared || steps > 0, "shared", "false where steps is 0 (any): a table has a fixed number of steps",
          shared);
  network.validate(), heuristic.validate(), cosine.validate(), ppo.validate(), exploration.validate();
  reward.validate(), loop.validate();
  const bool file = base.ends_with(".json");
  require(base == "heuristic" || base == "cosine" || base == "none" || file, "base",
          "heuristic, cosine, none or a FILE.json", base);
  require(!file || steps > 0, "base", "no FILE.json where steps is 0 (any)", base);
  require(smoothing >= 0 && smoothing < 1, "smoothing", "in [0, 1)", smoothing);
  require(rule == "auto" || rule == "adanat" || rule == "maskgit", "rule", "auto, adanat or maskgit", rule);
  require(trajectories >= 2 && trajectories <= kIndicesPerUpdate, "trajectories", "2..65536", trajectories);
  require(rollout_batch >= 1, "rollout_batch", ">= 1", rollout_batch);
  require(decode_batch >= 1, "decode_batch", ">= 1", decode_batch);
  require(memory == "auto" || memory == "store" || memory == "recompute", "memory",
          "auto, store or recompute", memory);
  require(memory_gib > 0, "memory_gib", "> 0", memory_gib);
  require(discriminator_steps >= 0 && discriminator_steps <= 1000, "discriminator_steps", "0..1000",
          discriminator_steps);
  require(discriminator_batch >= 2, "discriminator_batch", ">= 2", discriminator_batch);
  require(discriminator_warmup >= 0, "discriminator_warmup", ">= 0", discriminator_warmup);
  require(fakes == "fresh" || fakes == "rollout", "fakes", "fresh or rollout", fakes);
  require(reals == "images" || reals == "reconstructions", "reals", "images or reconstructions", reals);
  require(classes == "uniform" || classes == "data", "classes", "uniform or data", classes);
  require(evaluate_images == 0 || evaluate_images >= 2, "evaluate_images", "0, or 2 and more",
          evaluate_images);
  require(seed >= 0, "seed", ">= 0", seed);
  require(store == "float32" || store == "float16" || store == "bfloat16", "store",
          "float32, float16 or bfloat16", store);
  require(dtype == "auto" || dtype == "float32" || dtype == "bfloat16", "dtype", "auto, float32 or bfloat16",
          dtype);
  const int64_t fresh = fakes == "fresh" ? discriminator_steps * discriminator_batch : 0;
  require(trajectories + fresh <= kIndicesPerUpdate, "discriminator_batch",
          "small enough for trajectories + discriminator_steps * discriminator_batch <= 65536",
          discriminator_batch);
}

PolicySettings policy_settings(const PolicyTrainConfig& config, const GeneratorConfig& generator,
                               const std::string& generator_hash) {
  PolicySettings out;
  out.steps = config.steps;
  out.min_steps = config.min_steps, out.max_steps = config.max_steps;
  out.network = config.network;
  out.network.input_width = generator.width;
  out.network.codes = generator.codes;
  out.network.grid_height = generator.grid_height, out.network.grid_width = generator.grid_width;
  out.network.see_steps = config.steps == 0;
  out.network.shared_steps = config.shared ? config.steps : 0;
  out.heuristic = config.heuristic;
  out.cosine = config.cosine;
  out.smoothing = config.smoothing;
  out.generator = generator_hash;
  out.residual = config.base;
  std::string rule = "adanat";
  if (config.base.ends_with(".json")) {
    out.residual = "table";
    out.table = read_schedule_file(config.base);
    if (out.table.steps != config.steps)
      throw InputError(cat("base ", config.base, ": is a schedule of ", out.table.steps,
                           " steps, the policy is trained for ", config.steps));
    rule = out.table.rule;
  } else if (config.base == "cosine") {
    rule = "maskgit";
  }
  out.rule = config.rule == "auto" ? rule : config.rule;
  out.validate();
  return out;
}

namespace {

// Named 0-d values that go to the host together, once per update.
class ReportValues {
 public:
  void add(const std::string& name, const at::Tensor& value) {
    names_.push_back(name);
    values_.push_back(value.detach().to(at::kDouble).reshape({}));
  }
  void add(const std::string& name, double value) { host_.emplace_back(name, value); }
  // All of them on the CPU, in the order added (device values first).
  std::vector<std::pair<std::string, double>> take() const {
    std::vector<std::pair<std::string, double>> out;
    if (!values_.empty()) {
      const at::Tensor all = at::stack(values_).cpu();
      for (size_t i = 0; i < names_.size(); ++i) out.emplace_back(names_[i], all.const_data_ptr<double>()[i]);
    }
    out.insert(out.end(), host_.begin(), host_.end());
    return out;
  }

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> values_;
  std::vector<std::pair<std::string, double>> host_;
};

// The settings without what their other values leave unread, and without the generator.
PolicySettings settings_in_force(PolicySettings settings) {
  const PolicySettings fresh;
  if (!settings.any_steps()) settings.min_steps = fresh.min_steps, settings.max_steps = fresh.max_steps;
  if (settings.residual != "heuristic") settings.heuristic = fresh.heuristic;
  if (settings.residual != "cosine") settings.cosine = fresh.cosine;
  if (settings.residual != "table") settings.table = fresh.table;
  settings.generator.clear();
  return settings;
}

// "network.hidden is 8 there, 9 in this run" for the first key where two configs differ, "" if none.
std::string first_difference(const Json& there, const Json& here, const std::string& path) {
  if (!there.is_object() || !here.is_object())
    return there == here ? "" : cat(path, " is ", there.dump(), " there, ", here.dump(), " in this run");
  for (const auto& item : here.items()) {
    const std::string below = first_difference(there.value(item.key(), Json()), item.value(),
                                               path.empty() ? item.key() : path + "." + item.key());
    if (!below.empty()) return below;
  }
  return "";
}

class PolicyRecipe : public Recipe {
 public:
  PolicyRecipe(PolicyTrainConfig config, PolicyParts parts, std::shared_ptr<const ImageDataset> data,
               const PolicyFile* init, RecipeContext context)
      : config_(std::move(config)),
        parts_(std::move(parts)),
        context_(std::move(context)),
        data_(std::move(data)) {
    config_.validate();
    context_.seed = uint64_t(config_.seed);
    watch_ = CollapseWatch(config_.shared);
    if (context_.world_size > 1)
      throw InputError(cat("train policy: runs in one process, not in ", context_.world_size,
                           ": gradients and returns are not reduced over processes yet"));
    const GeneratorConfig& generator = parts_.generator->config();
    settings_ = policy_settings(config_, generator, parts_.generator_hash);
    config_.network = settings_.network;
    if (takes_texts() != parts_.texts.has_value())
      throw RunError("train policy: encoded captions are for generators of texts, and these need them");
    if (!takes_texts() && int64_t(data_->class_names().size()) != generator.classes)
      throw InputError(cat(data_->describe(), ": has ", data_->class_names().size(),
                           " classes, the generator ", generator.classes,
                           "; give the data it was trained on"));
    for (size_t i = 0; !takes_texts() && i < parts_.class_names.size() && i < data_->class_names().size();
         ++i)
      if (data_->class_names()[i] != parts_.class_names[i])
        throw InputError(cat(data_->describe(), ": its class ", i, " is \"", data_->class_names()[i],
                             "\", the generator's is \"", parts_.class_names[i],
                             "\"; give the data it was trained on"));
    if (config_.ppo.minibatch == 0) config_.ppo.minibatch = config_.rollout_batch;
    if (takes_texts()) {
      labels_ = caption_rows();
    } else if (config_.classes == "data") {
      labels_ = at::empty({data_->size()}, at::kLong);
      for (int64_t i = 0; i < data_->size(); ++i) labels_.mutable_data_ptr<int64_t>()[i] = data_->label(i);
      labels_ = labels_.to(context_.device);
    }

    at::manual_seed(context_.seed);
    net_ = ActorCritic(settings_.network);
    if (init != nullptr) {
      const std::string differs = first_difference(config_to_json(settings_in_force(init->settings)),
                                                   config_to_json(settings_in_force(settings_)), "");
      if (!differs.empty()) throw InputError(cat("--init: the policy there has other settings: ", differs));
      init_hash_ = init->hash;
      load_module_state(*net_->actor, module_state(*init->actor), "--init");
    }
    net_->to(context_.device);
    before_ = PolicyNetwork(settings_.network, 4);
    load_module_state(*before_, module_state(*net_->actor), "the policy");
    before_->to(context_.device);
    optimizer_ = std::make_unique<Optimizer>(named_parameters(*net_), ppo_optimizer(config_.ppo));
    std_ = config_.exploration.std;
    reward_ = parts_.make_reward();
    note(cat("policy for ", settings_.steps_text(), ": ", parameter_count(*net_->actor),
             " parameters (the critic, not "
             "stored, ",
             parameter_count(*net_->critic), "); reward ", reward_->name()));
    choose_memory();

    LoaderOptions options;
    options.image_size = image_size();
    options.flip = config_.flip;
    options.threads = context_.threads;
    options.seed = context_.seed;
    options.rank = context_.rank, options.world_size = context_.world_size;
    if (reward_->trains() && config_.discriminator_steps > 0) {
      options.batch_size = config_.discriminator_batch;
      loader_ = std::make_unique<Loader>(data_, options);
    }
  }

  std::string name() const override { return "policy"; }
  Json config() const override {
    Json j = config_to_json(config_);
    // Compared on resume: another generator, base table or start under the same weights would go unnoticed.
    j["trained_on"] = {{"generator", settings_.generator},
                       {"tokenizer_hash", parts_.tokenizer_hash},
                       {"features_hash", parts_.features ? parts_.features->file_hash() : std::string()},
                       {"init", init_hash_},  // what "before" means in samples and evaluations
                       {"images", data_->size()}};
    if (settings_.residual == "table") j["trained_on"]["table"] = config_to_json(settings_.table);
    if (parts_.texts) j["trained_on"]["text_encoder"] = parts_.texts->encoder_hash();
    return j;
  }
  const LoopConfig& loop() const override { return config_.loop; }

  StepReport step(int64_t update) override {
    try {
      return run_update(update);
    } catch (const RunError& e) {
      throw RunError(cat("train policy: update ", update, ": ", e.what(), save_diagnostics(update)));
    } catch (const c10::Error& e) {
      const std::string text = e.what_without_backtrace();
      if (text.find("alloc") != std::string::npos || text.find("out of memory") != std::string::npos) throw;
      throw RunError(cat("train policy: update ", update, ": ", text.substr(0, text.find('\n')),
                         save_diagnostics(update)));
    }
  }

  Scalars evaluate() override {
    if (config_.evaluate_images == 0 || parts_.features == nullptr) return {};
    const at::NoGradGuard no_grad;
    Scalars out;
    for (const int64_t steps : shown_steps()) {
      const std::string tail = settings_.any_steps() ? cat("_T", steps) : std::string();
      out.emplace_back("features_fd" + tail, features_distance(net_->actor, steps));
      const auto [before, fresh] = distance_before_.try_emplace(steps, 0);
      if (fresh) before->second = features_distance(before_, steps);
      out.emplace_back("features_fd_before" + tail, before->second);
    }
    return out;
  }

  std::vector<NamedImage> samples() override {
    std::vector<NamedImage> out;
    const at::NoGradGuard no_grad;
    for (const int64_t steps : shown_steps()) {
      const std::string tail = settings_.any_steps() ? cat("-T", steps) : std::string();
      const auto [now, actions] = show(net_->actor, steps);
      const auto [was, actions_before] = show(before_, steps);
      if (parts_.grid) {
        out.push_back({"samples" + tail, parts_.grid(now)});
        out.push_back({"samples-before" + tail, parts_.grid(was)});
      }
      for (int64_t a = 0; a < 4; ++a)
        out.push_back({cat("schedule-", kActionFiles[a], tail), plot_action(actions, actions_before, a)});
    }
    return out;
  }

  void save(TensorMap& tensors) const override {
    for (const auto& [name, tensor] : module_state(*net_)) tensors[kModel + name] = tensor;
    optimizer_->save(tensors, kOptimizer);
    reward_->save(tensors, kReward);
    tensors["exploration.std"] = at::scalar_tensor(std_, at::kDouble);
    const CollapseWatch::State seen = watch_.state();
    tensors["watch"] = at::stack({at::scalar_tensor(seen.widest_spread, at::kDouble),
                                  at::scalar_tensor(seen.first_perplexity, at::kDouble),
                                  at::scalar_tensor(seen.first_classes, at::kDouble)});
  }

  void load(const TensorMap& tensors, const std::string& where) override {
    const at::NoGradGuard no_grad;
    const auto find = [&](const std::string& name, at::IntArrayRef sizes) {
      const auto it = tensors.find(name);
      if (it == tensors.end()) throw InputError(cat(where, ": lacks the tensor ", name));
      if (it->second.scalar_type() != at::kDouble || it->second.sizes() != sizes)
        throw InputError(cat(where, ": ", name, " is not ", sizes, " float64"));
      return it->second;
    };
    TensorMap model;
    const std::string prefix = kModel;
    for (const auto& [name, tensor] : tensors)
      if (name.rfind(prefix, 0) == 0) model.emplace(name.substr(prefix.size()), tensor);
    const at::Tensor std = find("exploration.std", {}), watch = find("watch", {3});
    if (!(std.item<double>() > 0)) throw InputError(cat(where, ": exploration.std must be > 0"));
    load_module_state(*net_, model, where);
    optimizer_->load(tensors, kOptimizer, where);
    reward_->load(tensors, kReward, where);
    std_ = std.item<double>();
    watch_.restore({watch[0].item<double>(), watch[1].item<double>(), watch[2].item<double>()});
  }

  void write_model(const std::filesystem::path& folder) override {
    const at::ScalarType type = config_.store == "float16"    ? at::kHalf
                                : config_.store == "bfloat16" ? at::kBFloat16
                                                              : at::kFloat;
    write_policy(folder / policy_file_name(settings_.steps), settings_, module_state(*net_->actor), type);
    if (settings_.network.shared()) {
      const PolicySchedule schedule(settings_, net_->actor, settings_.steps, context_.device);
      write_file_atomic(folder / cat("schedule-T", settings_.steps, ".json"),
                        config_to_json(schedule.table()).dump(2) + "\n");
    }
    if (context_.finish_model) context_.finish_model(folder);
  }

  double data_wait_seconds() const override { return loader_ ? loader_->wait_seconds() : 0; }

 private:
  int64_t image_size() const { return parts_.tokenizer->config().image_size; }
  at::TensorOptions long_options() const {
    return at::TensorOptions().dtype(at::kLong).device(context_.device);
  }
  at::Tensor arange(int64_t begin, int64_t count) const {
    return at::arange(begin, begin + count, long_options());
  }

  // How the states of an update are kept; said before anything that large is allocated.
  void choose_memory() {
    const GeneratorConfig& g = parts_.generator->config();
    const int64_t steps = settings_.any_steps() ? settings_.max_steps : settings_.steps;
    const auto bytes = [&](StateMemory m) {
      return double(state_bytes(m, config_.trajectories, steps, g.tokens(), g.width));
    };
    if (settings_.network.input == "tokens") {
      memory_ = StateMemory::kTokens;
    } else {
      const bool fits = bytes(StateMemory::kFeatures) <= config_.memory_gib * double(int64_t(1) << 30);
      memory_ = config_.memory == "store" || (config_.memory == "auto" && fits) ? StateMemory::kFeatures
                                                                                : StateMemory::kRecompute;
    }
    const char* what = memory_ == StateMemory::kFeatures ? "bfloat16 features"
                       : memory_ == StateMemory::kTokens ? "tokens"
                                                         : "tokens, features computed again in every epoch";
    char size[32];
    std::snprintf(size, sizeof size, "%.1f", bytes(memory_) / double(1 << 20));
    const double image_bytes = double(samples_per_update()) * 3 * double(image_size() * image_size()) * 4;
    char images[32];
    std::snprintf(images, sizeof images, "%.1f", image_bytes / double(1 << 20));
    note(cat("states of one update: ", size, " MiB (", config_.trajectories, " samples x ", steps, " steps, ",
             what, "), its images ", images, " MiB"));
  }

  // T of an update: fixed, or drawn.
  int64_t steps_of(int64_t update) const {
    if (!settings_.any_steps()) return settings_.steps;
    const auto words = kernels::draw(context_.seed, 1, 0, uint32_t(update), 0, kernels::Stream::kData);
    return settings_.min_steps +
           kernels::bounded(words.x, uint32_t(settings_.max_steps - settings_.min_steps + 1));
  }

  // Samples begin, begin+1, ... of an update: every draw is a function of the run's seed, the update and the
  // number.
  struct Draws {
    at::Tensor seed, index, classes;  // (B) i64
    at::Tensor noise;                 // (B, T, 4) f32
  };
  Draws draws(int64_t update, int64_t begin, int64_t count, int64_t steps) const {
    Draws out;
    out.seed = at::full({count}, int64_t(context_.seed) + (update / kIndicesPerUpdate << 32), long_options());
    const int64_t first = update % kIndicesPerUpdate * kIndicesPerUpdate + begin;
    out.index = arange(first, count) + context_.rank * samples_per_update();
    const int64_t classes = parts_.generator->config().classes;
    out.classes = labels_.defined()
                      ? labels_.index_select(0, label_draws(out.seed, out.index, labels_.size(0)))
                      : label_draws(out.seed, out.index, classes);
    out.noise = exploration_noise(out.seed, out.index, steps);
    return out;
  }
  int64_t samples_per_update() const {
    const bool fresh = loader_ != nullptr && config_.fakes == "fresh";
    return config_.trajectories + (fresh ? config_.discriminator_steps * config_.discriminator_batch : 0);
  }

  bool takes_texts() const { return parts_.generator->config().condition == "text"; }

  // The captions of the data as places among the encoded texts. With them a sample's "class" is its text's
  // place.
  at::Tensor caption_rows() const {
    if (!data_->has_captions())
      throw InputError(
          cat(data_->describe(), ": has no captions, but the generator makes images from texts"));
    std::vector<std::string> captions;
    int64_t broken = 0;
    for (int64_t i = 0; i < data_->size(); ++i) {
      try {
        captions.push_back(data_->caption(i));
      } catch (const InputError&) {
        captions.emplace_back();
        ++broken;
      }
    }
    if (broken > 0) warning(cat(data_->describe(), ": ", broken, " captions are broken and count as empty"));
    return parts_.texts->rows_of(captions).to(context_.device);
  }
  SamplerStart start_of(const at::Tensor& classes, int64_t seed, const at::Tensor& index) const {
    if (!parts_.texts) return plain_start(*parts_.generator, classes, seed, index);
    const auto states = [&](const at::Tensor& rows) {
      return parts_.texts->states(rows.cpu()).to(context_.device).to(at::kFloat);
    };
    const TextConditions texts{states(classes), states(at::zeros({1}, at::kLong))};
    return plain_start(*parts_.generator, texts, at::arange(classes.size(0), at::kLong), seed, index);
  }
  // What a reward is shown of them: the class, or the text's pooled state.
  at::Tensor reward_condition(const at::Tensor& classes) const {
    return parts_.texts ? parts_.texts->pooled(classes.cpu()).to(context_.device, at::kFloat) : classes;
  }
  at::Tensor classes_of(const Batch& batch) const {
    return takes_texts() ? labels_.index_select(0, batch.indices.to(context_.device))
                         : batch.labels.to(context_.device);
  }
  // Classes in turn, or texts from all over the data, for samples `index` of `count`.
  at::Tensor in_turn(const at::Tensor& index, int64_t count, int64_t classes) const {
    return takes_texts() ? labels_.index_select(0, (index * data_->size()).div(count, "trunc"))
                         : index.remainder(classes);
  }

  struct Made {
    at::Tensor tokens, classes;  // (B, N), (B) i64
    Decisions decisions;         // of all B samples
  };
  // Rolls samples [begin, begin + count) of an update out, in parts.
  Made roll_out(const PolicySchedule& policy, int64_t update, int64_t begin, int64_t count,
                StateBuffer* states) {
    std::vector<at::Tensor> tokens, classes, raw, log_prob, means;
    const bool round = memory_ == StateMemory::kFeatures || memory_ == StateMemory::kRecompute;
    for (int64_t done = 0; done < count; done += config_.rollout_batch) {
      const int64_t size = std::min(config_.rollout_batch, count - done);
      const Draws d = draws(update, begin + done, size, policy.steps());
      SamplerStart start = start_of(d.classes, 0, d.index);
      start.seed = d.seed;
      const RolloutSchedule schedule(policy, d.noise, std_, round);
      std::vector<SamplerObserver*> observers;
      if (states != nullptr) {
        states->expect(done, start.condition);
        observers.push_back(states);
      }
      tokens.push_back(sample(*parts_.generator, start, schedule, observers));
      classes.push_back(d.classes);
      const Decisions decided = schedule.decisions();
      raw.push_back(decided.raw), log_prob.push_back(decided.log_prob), means.push_back(decided.mean_actions);
    }
    return {at::cat(tokens), at::cat(classes), {at::cat(raw, 1), at::cat(log_prob, 1), at::cat(means, 1)}};
  }

  // tokens (B, N) -> (B, 3, S, S) f32 in [0, 1].
  at::Tensor decode(const at::Tensor& tokens) {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < tokens.size(0); begin += config_.decode_batch)
      parts.push_back(parts_.tokenizer->decode(
          tokens.narrow(0, begin, std::min(config_.decode_batch, tokens.size(0) - begin))));
    return at::cat(parts).to(at::kFloat).clamp(0, 1).contiguous();
  }

  // bytes (B, 3, S, S) u8 of the data -> what a discriminator sees as real.
  at::Tensor real_images(const at::Tensor& bytes) {
    const at::Tensor images = bytes.to(context_.device).to(at::kFloat) / 255;
    if (config_.reals == "images") return images;
    const at::NoGradGuard no_grad;
    return decode(parts_.tokenizer->encode(images));
  }

  at::Tensor pooled(const at::Tensor& images) { return parts_.features->forward(images, {"pool"})[0]; }

  // Rewards that compare with real images (a distance) are shown theirs once, before the first score.
  void show_real_images() {
    const int64_t wanted = reward_->wants_real();
    if (wanted == 0) return;
    LoaderOptions options;
    options.image_size = image_size();
    options.threads = context_.threads;
    options.seed = context_.seed + 1;
    options.batch_size = std::min<int64_t>({config_.decode_batch, wanted, data_->size()});
    Loader loader(data_, options);
    for (int64_t i = 0, left = wanted; left > 0 && i < loader.batches_per_epoch(); ++i) {
      const at::Tensor images = loader.batch(i).images;
      reward_->observe_real(real_images(images.narrow(0, 0, std::min(left, images.size(0)))));
      left -= images.size(0);
    }
  }

  StepReport run_update(int64_t update) {
    show_real_images();
    const int64_t steps = steps_of(update), count = config_.trajectories;
    const bool learns = updates_learned(update) >= 0;
    ReportValues values;
    at::Tensor images, classes, mean_actions;
    {
      const PolicySchedule policy(settings_, net_->actor, steps, context_.device);
      std::optional<StateBuffer> states;
      if (learns) states.emplace(memory_, *parts_.generator, count, steps, context_.device);
      const Made made = roll_out(policy, update, 0, count, states ? &*states : nullptr);
      images = decode(made.tokens);
      classes = made.classes;
      mean_actions = made.decisions.mean_actions;
      const at::Tensor rewards = reward_->score(images, reward_condition(classes));
      // Found out before anything learns from it. On a GPU the reward's own check has waited for it already.
      if (rewards.is_cpu() && !rewards.isfinite().all().item<bool>())
        throw RunError(
            cat("reward ", reward_->name(), " is not finite; look at its networks and at the images"));
      values.add("reward", rewards.mean());
      watch_codes(made.tokens, values);

      values.add("reward_spread", rewards.to(at::kFloat).std(/*unbiased=*/true));
      if (states) learn(made.decisions, rewards, *states, steps, values);
    }
    if (update % kClassCheckEvery == 0) watch_classes(images, values);
    if (loader_) train_reward(update, steps, images, classes, values);
    report_actions(mean_actions, values);
    at::Tensor weights = at::zeros({}, long_options().dtype(at::kFloat));
    for (const auto& [name, parameter] : optimizer_->parameters())
      weights = weights + parameter.detach().abs().sum();
    values.add("weights", weights);
    values.add("entropy", gaussian_entropy(std_));
    values.add("exploration", std_);
    values.add("steps", double(steps));

    StepReport report;
    report.images = count;
    std::map<std::string, double> host;
    for (const auto& [name, value] : values.take()) {
      if (!std::isfinite(value))
        throw RunError(
            cat(name, " is not finite; lower ppo.learning_rate or resume from an earlier checkpoint"));
      host[name] = value;
      report.values.emplace_back(name, at::scalar_tensor(value, at::kDouble));
    }
    for (const std::string& text : watch_.look(update, updates_learned(update), std_, host))
      warning(cat("update ", update, ": ", text));
    if (learns) std_ = exploration_after(config_.exploration, std_, updates_learned(update));
    return report;
  }

  // 0 for the first update in which the policy learns, below it while only the reward does.
  int64_t updates_learned(int64_t update) const {
    return loader_ ? update - config_.discriminator_warmup : update;
  }

  // The policy's own steps. rewards (B) of the samples that `made` and `states` are of.
  void learn(const Decisions& made, const at::Tensor& rewards, const StateBuffer& states, int64_t steps,
             ReportValues& values) {
    PpoBatch batch;
    batch.steps = steps;
    batch.step = at::arange(steps, long_options()).repeat_interleave(rewards.size(0));
    batch.raw = made.raw.flatten(0, 1);
    batch.log_prob = made.log_prob.flatten();
    batch.returns = rewards.to(at::kFloat).repeat({steps});
    batch.std = std_;
    batch.inputs = [&](int64_t begin, int64_t rows) { return states.inputs(begin, rows); };
    const PpoReport ppo = ppo_update(*net_, *optimizer_, batch, config_.ppo);
    values.add("approx_kl", ppo.approx_kl);
    values.add("clip_share", ppo.clip_share);
    values.add("value_error", ppo.value_error);
    values.add("advantage_spread", ppo.advantage_std);
    values.add("surrogate", ppo.surrogate);
    values.add("loss", ppo.loss);
    values.add("first_ratio_error", ppo.first_ratio_error);
  }

  // The reward's own steps: generated images of the policy as it is now, with exploration, against real ones.
  void train_reward(int64_t update, int64_t steps, const at::Tensor& images, const at::Tensor& classes,
                    ReportValues& values) {
    const int64_t size = config_.discriminator_batch, rounds = config_.discriminator_steps;
    at::Tensor fakes = images, fake_classes = classes;
    if (config_.fakes == "fresh") {
      const PolicySchedule policy(settings_, net_->actor, steps, context_.device);
      const Made made = roll_out(policy, update, config_.trajectories, rounds * size, nullptr);
      fakes = decode(made.tokens), fake_classes = made.classes;
    }
    std::vector<std::pair<std::string, at::Tensor>> sums;
    const auto add = [&](const std::string& name, const at::Tensor& value) {
      if (!value.defined()) return;
      for (auto& [known, sum] : sums)
        if (known == name) {
          sum = sum + value.detach();
          return;
        }
      sums.emplace_back(name, value.detach());
    };
    for (int64_t k = 0; k < rounds; ++k) {
      const Batch batch = loader_->batch(update * rounds + k);
      const at::Tensor rows = (arange(k * size, size)).remainder(fakes.size(0));
      const RewardReport r = reward_->train_step(
          real_images(batch.images), reward_condition(classes_of(batch)), fakes.index_select(0, rows),
          reward_condition(fake_classes.index_select(0, rows)));
      add("discriminator_loss", r.loss);
      add("accuracy_real", r.accuracy_real);
      add("accuracy_fake", r.accuracy_fake);
      for (const auto& [name, value] : r.values) add("discriminator/" + name, value);
    }
    for (const auto& [name, sum] : sums) values.add(name, sum / double(rounds));
  }

  // Mean and spread over the samples of each action at each step (of all steps together where T changes).
  void report_actions(const at::Tensor& actions, ReportValues& values) {
    const at::Tensor mean = actions.mean(1), spread = actions.std({1}, /*unbiased=*/false);  // (T, 4)
    for (int64_t a = 0; a < 4; ++a) {
      if (settings_.any_steps()) {
        values.add(cat("actions/", kActionNames[a], "_mean"), mean.select(1, a).mean());
        values.add(cat("actions/", kActionNames[a], "_spread"), spread.select(1, a).mean());
        continue;
      }
      for (int64_t t = 0; t < mean.size(0); ++t) {
        values.add(cat("actions/", kActionNames[a], "_mean_t", t), mean[t][a]);
        values.add(cat("actions/", kActionNames[a], "_spread_t", t), spread[t][a]);
      }
    }
    // Step 0 sees nothing but the class, and most numbers of the last step change nothing.
    values.add("actions/spread",
               mean.size(0) > 1 ? spread.narrow(0, 1, spread.size(0) - 1).mean() : spread.mean());
  }

  void watch_codes(const at::Tensor& tokens, ReportValues& values) {
    const at::Tensor flat = tokens.reshape({-1});
    at::Tensor counts = at::zeros({parts_.generator->config().codes}, long_options().dtype(at::kFloat));
    counts.index_add_(0, flat, at::ones({flat.size(0)}, counts.options()));
    const at::Tensor p = counts / double(flat.size(0));
    values.add("code_perplexity", (p * p.clamp_min(1e-12).log()).sum().neg().exp());
  }

  // Classes that the features network recognises among the samples.
  void watch_classes(const at::Tensor& images, ReportValues& values) {
    if (parts_.features == nullptr) return;
    const at::NoGradGuard no_grad;
    const at::Tensor logits = parts_.features->forward(images, {"logits"})[0];
    at::Tensor seen = at::zeros({logits.size(1)}, logits.options());
    seen.index_fill_(0, logits.argmax(1), 1);
    values.add("classes_seen", seen.sum());
  }

  // "; state saved in ..." for the end of an error message.
  std::string save_diagnostics(int64_t update) const {
    if (parts_.diagnostics.empty()) return "";
    std::error_code error;
    std::filesystem::create_directories(parts_.diagnostics, error);
    const auto file = parts_.diagnostics / cat("update-", update, ".safetensors");
    try {
      TensorMap tensors;
      save(tensors);
      write_tensors(file, tensors,
                    {{"recipe", name()}, {"step", std::to_string(update)}, {"version", ADANAT_VERSION}});
    } catch (const std::exception& e) {
      return cat("; its state could not be saved (", e.what(), ")");
    }
    return cat("; state saved in ", file.string());
  }

  // Numbers of steps that samples and evaluations show.
  std::vector<int64_t> shown_steps() const {
    if (!settings_.any_steps()) return {settings_.steps};
    std::set<int64_t> out = {settings_.min_steps, settings_.max_steps};
    for (const int64_t steps : {4, 8})
      if (settings_.fits(steps)) out.insert(steps);
    return {out.begin(), out.end()};
  }

  // Images (bytes) of the same seeds each time and the actions (T, B, 4) behind them, by the mean of `actor`.
  std::pair<at::Tensor, at::Tensor> show(PolicyNetwork actor, int64_t steps) {
    const int64_t classes = takes_texts() ? 16 : parts_.generator->config().classes, count = kPlotSamples;
    const int64_t shown = std::min<int64_t>(64, std::max<int64_t>(16, classes));
    const PolicySchedule policy(settings_, actor, steps, context_.device);
    std::vector<at::Tensor> actions, images;
    for (int64_t begin = 0; begin < count; begin += config_.rollout_batch) {
      const at::Tensor index = arange(begin, std::min(config_.rollout_batch, count - begin));
      const RolloutSchedule schedule(policy, {}, 0, false);
      const at::Tensor tokens =
          sample(*parts_.generator, start_of(in_turn(index, count, classes), kSampleSeed, index), schedule);
      actions.push_back(schedule.decisions().mean_actions.cpu());
      if (begin < shown)
        images.push_back(decode(tokens.narrow(0, 0, std::min(shown - begin, tokens.size(0)))));
    }
    return {(at::cat(images) * 255).round().to(at::kByte).cpu(), at::cat(actions, 1)};
  }

  // Of images of the mean policy, the same seeds each time, from the data in `features` space.
  double features_distance(const PolicyNetwork& actor, int64_t steps) {
    const GaussianStats& real = real_stats();
    const PolicySchedule schedule(settings_, actor, steps, context_.device);
    GaussianAccumulator made(real.mean.size(0));
    for (int64_t begin = 0; begin < config_.evaluate_images; begin += config_.rollout_batch) {
      const int64_t count = std::min(config_.rollout_batch, config_.evaluate_images - begin);
      const at::Tensor index = arange(begin, count);
      const at::Tensor classes =
          labels_.defined()
              ? labels_.index_select(0, (index * data_->size()).div(config_.evaluate_images, "trunc"))
              : index.remainder(parts_.generator->config().classes);
      made.add(pooled(decode(sample(*parts_.generator, start_of(classes, kSampleSeed, index), schedule))));
    }
    return frechet_distance(made.stats(), real);
  }

  const GaussianStats& real_stats() {
    if (real_stats_) return *real_stats_;
    LoaderOptions options;
    options.image_size = image_size();
    options.threads = context_.threads;
    options.shuffle = false, options.drop_last = false;
    options.batch_size = std::min(config_.decode_batch, data_->size());
    Loader loader(data_, options);
    std::optional<GaussianAccumulator> all;
    for (int64_t i = 0; i < loader.batches_per_epoch(); ++i) {
      const at::Tensor features = pooled(loader.batch(i).images.to(context_.device).to(at::kFloat) / 255);
      if (!all) all.emplace(features.size(1));
      all->add(features);
    }
    return real_stats_.emplace(all->stats());
  }

  PolicyTrainConfig config_;
  PolicyParts parts_;
  RecipeContext context_;
  std::shared_ptr<const ImageDataset> data_;
  PolicySettings settings_;
  ActorCritic net_{nullptr};
  PolicyNetwork before_{nullptr};  // as training began
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Reward> reward_;
  std::unique_ptr<Loader> loader_;
  at::Tensor labels_;  // of every image of the data (classes data)
  StateMemory memory_ = StateMemory::kRecompute;
  std::string init_hash_;
  double std_ = 0;
  CollapseWatch watch_;
  std::optional<GaussianStats> real_stats_;
  std::map<int64_t, double> distance_before_;  // by number of steps
};

}  // namespace

std::unique_ptr<Recipe> make_policy_recipe(PolicyTrainConfig config, PolicyParts parts,
                                           std::shared_ptr<const ImageDataset> data, const PolicyFile* init,
                                           RecipeContext context) {
  return std::make_unique<PolicyRecipe>(std::move(config), std::move(parts), std::move(data), init,
                                        std::move(context));
}

}  // namespace adanat
