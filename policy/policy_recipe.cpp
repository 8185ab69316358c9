#include "policy/policy_recipe.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>

#include "core/base/log.h"
#include "core/data/loader.h"
#include "core/io/atomic_file.h"
#include "core/nn/deferred_checks.h"
#include "core/nn/module_state.h"
#include "core/nn/out_of_memory.h"
#include "core/train/first_difference.h"
#include "kernels/philox.h"
#include "policy/collapse_watch.h"
#include "policy/policy_views.h"
#include "policy/report_values.h"
#include "policy/rollout.h"
#include "policy/schedule_plot.h"
#include "policy/update_rollouts.h"

namespace adanat {
namespace {

constexpr const char *kModel = "model.", *kOptimizer = "optimizer.", *kReward = "reward.";
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

PolicyTrainConfig checked(PolicyTrainConfig config) {
  config.validate();
  return config;
}

RecipeContext with_seed(RecipeContext context, int64_t seed) {
  context.seed = uint64_t(seed);
  return context;
}

class PolicyRecipe : public Recipe {
 public:
  PolicyRecipe(PolicyTrainConfig config, PolicyParts parts, std::shared_ptr<const ImageDataset> data,
               const PolicyFile* init, RecipeContext context)
      : config_(checked(std::move(config))),
        context_(with_seed(std::move(context), config_.seed)),
        env_(std::move(parts), std::move(data),
             {.decode_batch = config_.decode_batch,
              .reals_are_reconstructions = config_.reals == "reconstructions",
              .classes_of_data = config_.classes == "data",
              .device = context_.device,
              .threads = context_.threads,
              .seed = context_.seed}) {
    watch_ = CollapseWatch(config_.shared);
    if (context_.world_size > 1)
      throw InputError(cat("train policy: runs in one process, not in ", context_.world_size,
                           ": gradients and returns are not reduced over processes yet"));
    settings_ = policy_settings(config_, env_.sizes(), env_.parts().generator_hash);
    config_.network = settings_.network;
    if (config_.ppo.minibatch == 0) config_.ppo.minibatch = config_.rollout_batch;

    at::manual_seed(context_.seed);
    net_ = ActorCritic(settings_.network);
    if (init != nullptr) {
      const auto differs = first_difference(config_to_json(settings_in_force(init->settings)),
                                            config_to_json(settings_in_force(settings_)));
      if (differs)
        throw InputError(cat("--init: the policy there has other settings: ", differs->key, " is ",
                             differs->first.dump(), " there, ", differs->second.dump(), " in this run"));
      init_hash_ = init->hash;
      load_module_state(*net_->actor, module_state(*init->actor), "--init");
    }
    net_->to(context_.device);
    PolicyNetwork before(settings_.network, 4);
    load_module_state(*before, module_state(*net_->actor), "the policy");
    before->to(context_.device);
    views_.emplace(env_, settings_, before,
                   ViewOptions{.batch = config_.rollout_batch,
                               .evaluated_images = config_.evaluate_images,
                               .decode_batch = config_.decode_batch,
                               .threads = context_.threads});
    optimizer_ = std::make_unique<Optimizer>(named_parameters(*net_), ppo_optimizer(config_.ppo));
    std_ = config_.exploration.std;
    reward_ = env_.parts().make_reward();
    note(cat("policy for ", settings_.steps_text(), ": ", parameter_count(*net_->actor),
             " parameters (the critic, not stored, ", parameter_count(*net_->critic), "); reward ",
             reward_->name()));

    LoaderOptions options;
    options.image_size = env_.image_size();
    options.flip = config_.flip;
    options.threads = context_.threads;
    options.seed = context_.seed;
    options.rank = context_.rank, options.world_size = context_.world_size;
    if (reward_->trains() && config_.discriminator_steps > 0) {
      options.batch_size = config_.discriminator_batch, options.batch_key = "discriminator_batch";
      loader_ = std::make_unique<Loader>(env_.shared_data(), options);
    }
    choose_memory();
    rollouts_.emplace(env_, settings_, net_->actor,
                      UpdateRolloutsOptions{.seed = context_.seed,
                                            .first = context_.rank * samples_per_update(),
                                            .batch = config_.rollout_batch,
                                            .round_features = memory_ != StateMemory::kTokens});
  }

  std::string name() const override { return "policy"; }
  Json config() const override {
    Json j = config_to_json(config_);
    // Compared on resume: another generator, base table or start under the same weights would go unnoticed.
    j["trained_on"] = {
        {"generator", settings_.generator},
        {"tokenizer_hash", env_.parts().tokenizer_hash},
        {"features_hash", env_.parts().features ? env_.parts().features->file_hash() : std::string()},
        {"init", init_hash_},  // what "before" means in samples and evaluations
        {"images", env_.data().size()}};
    if (settings_.residual == "table") j["trained_on"]["table"] = config_to_json(settings_.table);
    if (env_.parts().texts) j["trained_on"]["text_encoder"] = env_.parts().texts->encoder_hash();
    return j;
  }
  const LoopConfig& loop() const override { return config_.loop; }

  StepReport step(int64_t update) override {
    try {
      return run_update(update);
    } catch (const RunError& e) {
      throw RunError(cat("train policy: update ", update, ": ", e.what(), save_diagnostics(update)));
    } catch (const c10::Error& e) {
      if (is_out_of_memory(e)) throw;
      const std::string text = e.what_without_backtrace();
      throw RunError(cat("train policy: update ", update, ": ", text.substr(0, text.find('\n')),
                         save_diagnostics(update)));
    }
  }

  Scalars evaluate() override {
    if (config_.evaluate_images == 0 || env_.parts().features == nullptr) return {};
    return views_->evaluate(net_->actor);
  }
  std::vector<NamedImage> samples() override { return views_->samples(net_->actor); }

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
  // How the states of an update are kept; said before anything that large is allocated.
  void choose_memory() {
    const GeneratorConfig& g = env_.sizes();
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
    const double image_bytes =
        double(samples_per_update()) * 3 * double(env_.image_size() * env_.image_size()) * 4;
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

  int64_t samples_per_update() const {
    const bool fresh = loader_ != nullptr && config_.fakes == "fresh";
    return config_.trajectories + (fresh ? config_.discriminator_steps * config_.discriminator_batch : 0);
  }

  StepReport run_update(int64_t update) {
    DeferredChecks checks(env_.parts().checks_at_once);
    try {
      return run_update(update, checks);
    } catch (...) {
      checks.settle();  // what was noted before came first, and may be why
      throw;
    }
  }

  // Asks a GPU once, when the report is taken. Texts and the frechet reward ask for what the host keeps.
  StepReport run_update(int64_t update, DeferredChecks& checks) {
    env_.show_real_images(*reward_);
    const int64_t steps = steps_of(update), count = config_.trajectories;
    const bool learns = updates_learned(update) >= 0;
    ReportValues values;
    at::Tensor images, classes, mean_actions;
    {
      std::optional<StateBuffer> states;
      if (learns) states.emplace(memory_, env_.generator(), count, steps, context_.device);
      const double began = monotonic_seconds();
      const UpdateSamples made =
          rollouts_->make(update, 0, count, steps, std_, states ? &*states : nullptr, checks);
      images = env_.decode(made.tokens);
      // A GPU has only been told what to do by then.
      if (images.is_cpu())
        values.add("rollout_images_per_second", double(count) / (monotonic_seconds() - began));
      classes = made.classes;
      mean_actions = made.decisions.mean_actions;
      const at::Tensor rewards = reward_->score(images, env_.reward_condition(classes), checks);
      // Nothing learns from it: no step is taken from a gradient that is not finite.
      checks.expect(rewards.isfinite().all(), [name = reward_->name()](int64_t) {
        return cat("reward ", name, " is not finite; look at its networks and at the images");
      });
      values.add("reward", rewards.mean());
      report_codes(made.tokens, env_.sizes().codes, values);
      values.add("reward_spread", rewards.to(at::kFloat).std(/*unbiased=*/true));
      if (states) learn(made.decisions, rewards, *states, steps, values, checks);
    }
    if (update % kClassCheckEvery == 0 && env_.parts().features != nullptr)
      report_classes(*env_.parts().features, images, values);
    // The reward learns from the policy as it is now, which explores as in the next update.
    const double next_std =
        learns ? exploration_after(config_.exploration, std_, updates_learned(update)) : std_;
    if (loader_) train_reward(update, steps, images, classes, next_std, values, checks);
    report_actions(mean_actions, !settings_.any_steps(), values);
    at::Tensor weights = at::zeros({}, env_.long_options().dtype(at::kFloat));
    for (const auto& [name, parameter] : optimizer_->parameters())
      weights = weights + parameter.detach().abs().sum();
    values.add("weights", weights);
    values.add("entropy", gaussian_entropy(std_));
    values.add("exploration", std_);
    values.add("steps", double(steps));

    StepReport report;
    report.images = count;
    std::map<std::string, double> host;
    for (const auto& [name, value] : values.take(checks)) {
      if (!std::isfinite(value))
        throw RunError(cat(name, " is not finite; start again with a lower ppo.learning_rate"));
      host[name] = value;
      report.values.emplace_back(name, at::scalar_tensor(value, at::kDouble));
    }
    for (const std::string& text : watch_.look(update, updates_learned(update), std_, host))
      warning(cat("update ", update, ": ", text));
    std_ = next_std;
    return report;
  }

  // 0 for the first update in which the policy learns, below it while only the reward does.
  int64_t updates_learned(int64_t update) const {
    return loader_ ? update - config_.discriminator_warmup : update;
  }

  // The policy's own steps. rewards (B) of the samples that `made` and `states` are of.
  void learn(const Decisions& made, const at::Tensor& rewards, const StateBuffer& states, int64_t steps,
             ReportValues& values, DeferredChecks& checks) {
    PpoBatch batch;
    batch.steps = steps;
    batch.step = at::arange(steps, env_.long_options()).repeat_interleave(rewards.size(0));
    batch.raw = made.raw.flatten(0, 1);
    batch.log_prob = made.log_prob.flatten();
    batch.returns = rewards.to(at::kFloat).repeat({steps});
    batch.std = std_;
    batch.inputs = [&](int64_t begin, int64_t rows) { return states.inputs(begin, rows); };
    const PpoReport ppo = ppo_update(*net_, *optimizer_, batch, config_.ppo, checks);
    values.add("approx_kl", ppo.approx_kl);
    values.add("clip_share", ppo.clip_share);
    values.add("value_error", ppo.value_error);
    values.add("advantage_spread", ppo.advantage_std);
    values.add("surrogate", ppo.surrogate);
    values.add("loss", ppo.loss);
    values.add("first_ratio_error", ppo.first_ratio_error);
  }

  // The reward's own steps: generated images of the policy as it is now, with exploration of width `std`,
  // against real ones.
  void train_reward(int64_t update, int64_t steps, const at::Tensor& images, const at::Tensor& classes,
                    double std, ReportValues& values, DeferredChecks& checks) {
    const int64_t size = config_.discriminator_batch, rounds = config_.discriminator_steps;
    at::Tensor fakes = images, fake_classes = classes;
    if (config_.fakes == "fresh") {
      const UpdateSamples made =
          rollouts_->make(update, config_.trajectories, rounds * size, steps, std, nullptr, checks);
      fakes = env_.decode(made.tokens), fake_classes = made.classes;
    }
    ReportSums sums;
    for (int64_t k = 0; k < rounds; ++k) {
      const Batch batch = loader_->batch(update * rounds + k);
      const at::Tensor rows = (env_.arange(k * size, size)).remainder(fakes.size(0));
      const RewardReport r = reward_->train_step(
          env_.real_images(batch.images), env_.reward_condition(env_.classes_of(batch)),
          fakes.index_select(0, rows), env_.reward_condition(fake_classes.index_select(0, rows)), checks);
      sums.add("discriminator_loss", r.loss);
      sums.add("accuracy_real", r.accuracy_real);
      sums.add("accuracy_fake", r.accuracy_fake);
      for (const auto& [name, value] : r.values) sums.add("discriminator/" + name, value);
    }
    sums.report(double(rounds), values);
  }

  // "; state saved in ..." for the end of an error message.
  std::string save_diagnostics(int64_t update) const {
    if (env_.parts().diagnostics.empty()) return "";
    std::error_code error;
    std::filesystem::create_directories(env_.parts().diagnostics, error);
    const auto file = env_.parts().diagnostics / cat("update-", update, ".safetensors");
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

  PolicyTrainConfig config_;
  RecipeContext context_;
  PolicyEnvironment env_;
  PolicySettings settings_;
  ActorCritic net_{nullptr};
  std::optional<UpdateRollouts> rollouts_;
  std::optional<PolicyViews> views_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Reward> reward_;
  std::unique_ptr<Loader> loader_;
  StateMemory memory_ = StateMemory::kRecompute;
  std::string init_hash_;
  double std_ = 0;
  CollapseWatch watch_;
};

}  // namespace

std::unique_ptr<Recipe> make_policy_recipe(PolicyTrainConfig config, PolicyParts parts,
                                           std::shared_ptr<const ImageDataset> data, const PolicyFile* init,
                                           RecipeContext context) {
  return std::make_unique<PolicyRecipe>(std::move(config), std::move(parts), std::move(data), init,
                                        std::move(context));
}

}  // namespace adanat
