// Training of the policy: PPO against a reward that may be trained at the same time (docs/method.md section
// 6).
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "core/data/dataset.h"
#include "core/train/recipe.h"
#include "core/train/recipe_context.h"
#include "policy/environment.h"
#include "policy/policy_schedule.h"
#include "policy/ppo.h"
#include "policy/reward.h"

namespace adanat {

// Defaults are the reference's, but for `base`, which is off there: without it a run begins with actions that
// mean nothing. One update: `trajectories` samples, `ppo.epochs` steps of the policy, then
// `discriminator_steps` steps of the reward where it trains. In the first `discriminator_warmup` updates the
// policy stays as it is: the scores of a discriminator that has seen nothing are noise.
struct PolicyTrainConfig {
  int64_t steps = 8;
  int64_t min_steps = 2;
  int64_t max_steps = 16;
  bool shared = false;
  PolicyNetworkConfig network;
  std::string base = "heuristic";
  HeuristicConfig heuristic;
  TableOptions cosine;
  double smoothing = 0;
  std::string rule = "auto";
  PpoConfig ppo;
  ExplorationConfig exploration;
  RewardConfig reward;
  int64_t trajectories = 4096;
  int64_t rollout_batch = 256;
  int64_t decode_batch = 64;
  std::string memory = "auto";
  double memory_gib = 8;
  int64_t discriminator_steps = 5;
  int64_t discriminator_batch = 128;
  int64_t discriminator_warmup = 0;
  std::string fakes = "fresh";
  std::string reals = "images";
  std::string classes = "uniform";
  bool flip = false;
  int64_t evaluate_images = 0;
  std::string data;
  std::string text_features;
  int64_t seed = 0;
  std::string store = "float32";
  std::string dtype = "auto";
  LoopConfig loop;

  static constexpr auto fields() {
    using C = PolicyTrainConfig;
    return std::tuple{
        field("steps", &C::steps,
              "generation steps T; 0 = any of min_steps to max_steps, drawn per update; --steps wins"),
        field("min_steps", &C::min_steps, "fewest steps (steps 0)"),
        field("max_steps", &C::max_steps, "most steps (steps 0)"),
        field("shared", &C::shared,
              "one schedule for all samples, learned by the same PPO: a table, no network"),
        field("network", &C::network, "sizes of actor and critic; what the generator fixes is taken from it"),
        field("base", &C::base,
              "what a new policy does: heuristic (AdaNAT's), cosine (MaskGIT's with the model folder's or "
              "these options), "
              "none, or a schedule FILE.json"),
        field("heuristic", &C::heuristic, "base heuristic"),
        field("cosine", &C::cosine,
              "base cosine; where the config does not say it, the model folder's defaults"),
        field("smoothing", &C::smoothing,
              "AdaGen's smoothing over the steps (0.8 for T > 10), [0, 1); 0 = none"),
        field("rule", &C::rule, "re-mask rule: adanat, maskgit, or auto (the base table's, else adanat)"),
        field("ppo", &C::ppo, "the policy's optimisation"),
        field("exploration", &C::exploration, "noise on the raw outputs"),
        field("reward", &C::reward, "what is rewarded"),
        field("trajectories", &C::trajectories, "samples per update and process, >= 2"),
        field("rollout_batch", &C::rollout_batch, "samples made at a time, >= 1"),
        field("decode_batch", &C::decode_batch, "images decoded at a time, >= 1"),
        field("memory", &C::memory,
              "states: store (bfloat16 features), recompute (from the tokens), auto (by memory_gib)"),
        field("memory_gib", &C::memory_gib, "largest size of stored states (memory auto), > 0"),
        field("discriminator_steps", &C::discriminator_steps, "steps of a trained reward per update, >= 0"),
        field("discriminator_batch", &C::discriminator_batch,
              "real and generated images per such step, >= 2"),
        field("discriminator_warmup", &C::discriminator_warmup,
              "first updates in which only the reward trains, >= 0 (none where it does not train); "
              "exploration.after counts from their end"),
        field("fakes", &C::fakes,
              "their generated images: fresh (by the new policy), rollout (those of the update: no cost)"),
        field("reals", &C::reals,
              "their real images: images, or reconstructions (what the tokenizer makes of them)"),
        field("classes", &C::classes,
              "classes of the samples: uniform, or data (as often as in the data); texts are the data's "
              "captions"),
        field("flip", &C::flip, "mirror half of the real images"),
        field("evaluate_images", &C::evaluate_images,
              "images of the mean policy whose FD in `features` space is logged; 0 = none"),
        field("data", &C::data, "data set of real images; --data wins"),
        field("text_features", &C::text_features,
              "file that keeps the encoded captions of the data (generators of texts); empty = beside the "
              "run's folder"),
        field("seed", &C::seed, "of the weights, the order of the data and every random draw; --seed wins"),
        field("store", &C::store, "type of the weights written: float32, float16 or bfloat16"),
        field("dtype", &C::dtype, "auto (float32 on CPUs without AMX), float32 or bfloat16"),
        field("loop", &C::loop, "updates and intervals"),
    };
  }
  void validate() const;
  bool operator==(const PolicyTrainConfig&) const = default;
};

// The settings that the policy's file will have. InputError: a base table for another T, shared without a
// fixed T.
PolicySettings policy_settings(const PolicyTrainConfig& config, const GeneratorConfig& generator,
                               const std::string& generator_hash);

// `init`: a policy to start from, or null; InputError where its settings are not those of this run (the
// generator aside). InputError too where the data has other classes than the generator, or no captions for
// one of texts (rewards see the pooled text; a broken caption counts as the empty one), and for more than one
// process: gradients and returns are not reduced over them. write_model() writes the policy (a shared one as
// schedule-T{steps}.json too) and then calls context.finish_model. step() throws RunError, after saving its
// state to `diagnostics`, where a reward, a loss or a weight is not finite.
std::unique_ptr<Recipe> make_policy_recipe(PolicyTrainConfig config, PolicyParts parts,
                                           std::shared_ptr<const ImageDataset> data, const PolicyFile* init,
                                           RecipeContext context);

}  // namespace adanat
