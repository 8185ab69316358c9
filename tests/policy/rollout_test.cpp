// Rollouts, stored policies and the schedule they make, on a generator small enough for milliseconds.
#include "policy/rollout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <fstream>
#include <numbers>

#include "core/nn/module_state.h"
#include "core/sampling/observers.h"
#include "kernels/philox.h"
#include "policy/ppo.h"
#include "support/meta_device.h"
#include "support/small_generator.h"

namespace adanat {
namespace {

using testing::TempDir;

Generator tiny_generator() {
  at::set_num_threads(1);
  return testing::procedural_generator(testing::tiny_generator_config(/*grid_width=*/3, /*classes=*/5));
}

PolicySettings tiny_settings(int64_t steps = 3) {
  PolicySettings out;
  out.steps = steps;
  out.network.input_width = 16;
  out.network.codes = 24;
  out.network.grid_height = 4, out.network.grid_width = 3;
  out.network.hidden = 8, out.network.channels = 4, out.network.mlp = 12;
  return out;
}

PolicyNetwork tiny_actor(const PolicySettings& settings) {
  PolicyNetwork actor(settings.network, 4);
  testing::fill_procedural(*actor, "actor.");
  return actor;
}

at::Tensor ids(std::vector<int64_t> values) {
  return at::tensor(values, at::kLong);
}

TEST(Exploration, IsPhiloxThroughBoxMuller) {
  const at::Tensor seed = ids({7, int64_t(0x123456789abcdef0), -1}), index = ids({0, 4000000000, 12});
  const at::Tensor noise = exploration_noise(seed, index, 3);
  ASSERT_EQ(noise.sizes(), (std::vector<int64_t>{3, 3, 4}));
  for (int64_t b = 0; b < 3; ++b)
    for (int64_t t = 0; t < 3; ++t) {
      const auto w =
          kernels::draw(uint64_t(seed[b].item<int64_t>()), 0, 0, uint32_t(index[b].item<int64_t>()),
                        uint32_t(t), kernels::Stream::kExploration);
      const uint32_t words[] = {w.x, w.y, w.z, w.w};
      for (int64_t k = 0; k < 4; ++k) {
        const double radius = std::sqrt(-2 * std::log(double(kernels::unit_open(words[k / 2 * 2]))));
        const double angle = 2 * std::numbers::pi * double(kernels::unit_open(words[k / 2 * 2 + 1]));
        const double want = radius * (k % 2 == 0 ? std::cos(angle) : std::sin(angle));
        EXPECT_NEAR(noise[b][t][k].item<double>(), want, 1e-6) << b << " " << t << " " << k;
      }
    }
  // Of 40,000 numbers: mean within 5/sqrt(n), variance within 5 sqrt(2/n), columns uncorrelated.
  const at::Tensor many =
      exploration_noise(at::full({2500}, 3, at::kLong), at::arange(2500), 4).view({-1, 4}).to(at::kDouble);
  EXPECT_TRUE((many.mean(0).abs() < 0.05).all().item<bool>());
  EXPECT_TRUE(((many.var(0, true) - 1).abs() < 0.0708).all().item<bool>());
  const at::Tensor correlation = at::corrcoef(many.t()) - at::eye(4, at::kDouble);
  EXPECT_LT(correlation.abs().max().item<double>(), 0.05);
}

TEST(Exploration, LabelsAreUniformAndThoseOfPhilox) {
  const at::Tensor seed = at::full({4300}, 11, at::kLong), index = at::arange(4300) + 4294960000;
  const at::Tensor labels = label_draws(seed, index.bitwise_and(0xFFFFFFFF), 43);
  const auto w = kernels::draw(11, 0, 0, uint32_t(index[5].item<int64_t>()), 0, kernels::Stream::kData);
  EXPECT_EQ(labels[5].item<int64_t>(), kernels::bounded(w.x, 43));
  const at::Tensor counts = at::bincount(labels, {}, 43).to(at::kDouble);
  const double chi_square = ((counts - 100).square() / 100).sum().item<double>();
  EXPECT_LT(chi_square, 87);  // 42 degrees of freedom: 1 in 30,000
}

struct Trajectories {
  at::Tensor tokens, classes;
  Decisions decisions;
  std::unique_ptr<StateBuffer> states;
};

Trajectories roll_out(GeneratorImpl& generator, const PolicySchedule& policy, StateMemory memory, double std,
                      int64_t parts = 1, int64_t count = 6) {
  Trajectories out;
  out.states = std::make_unique<StateBuffer>(memory, generator, count, policy.steps(), at::kCPU);
  std::vector<at::Tensor> tokens, classes, raw, log_prob, means;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t size = count / parts;
    const at::Tensor index = at::arange(part * size, (part + 1) * size),
                     seed = at::full({size}, 9, at::kLong);
    const at::Tensor mine = label_draws(seed, index, 5);
    const RolloutSchedule schedule(policy, exploration_noise(seed, index, policy.steps()), std,
                                   memory == StateMemory::kFeatures || memory == StateMemory::kRecompute);
    out.states->expect(part * size, mine);
    tokens.push_back(sample(generator, plain_start(generator, mine, 9, index), schedule, {out.states.get()}));
    classes.push_back(mine);
    const Decisions d = schedule.decisions();
    raw.push_back(d.raw), means.push_back(d.mean_actions);
    if (d.log_prob.defined()) log_prob.push_back(d.log_prob);
  }
  out.tokens = at::cat(tokens), out.classes = at::cat(classes);
  out.decisions = {at::cat(raw, 1), log_prob.empty() ? at::Tensor() : at::cat(log_prob, 1),
                   at::cat(means, 1)};
  return out;
}

// What was recorded is what the same network says of the kept states: the first ratio is exactly 1.
TEST(Rollout, LogProbsRecomputedAreEqual) {
  Generator generator = tiny_generator();
  const PolicySettings settings = tiny_settings();
  const PolicyNetwork actor = tiny_actor(settings);
  const PolicySchedule policy(settings, actor, 3, at::kCPU);
  const Trajectories run = roll_out(*generator, policy, StateMemory::kFeatures, 0.6);
  PolicyNetwork net = actor;
  const at::Tensor terms = at::arange(3);
  for (int64_t t = 0; t < 3; ++t) {
    const at::Tensor mean = net->forward(run.states->inputs(t * 6, 6),
                                         net->step_terms(terms, 3).rows(at::full({6}, t, at::kLong)));
    const at::Tensor log_prob = gaussian_log_prob(run.decisions.raw[t], mean, 0.6);
    EXPECT_TRUE(at::equal(log_prob.detach(), run.decisions.log_prob[t])) << t;
  }
}

// The same, through ppo_update: every ratio of the first epoch is 1 to the last bit.
TEST(Rollout, TheFirstRatioIsExactlyOne) {
  Generator generator = tiny_generator();
  const PolicySettings settings = tiny_settings();
  ActorCritic net(settings.network);
  testing::fill_procedural(*net);
  const PolicySchedule policy(settings, net->actor, 3, at::kCPU);
  const Trajectories run = roll_out(*generator, policy, StateMemory::kFeatures, 0.6, /*parts=*/2);
  PpoBatch batch{3,
                 at::arange(3).repeat_interleave(6),
                 run.decisions.raw.flatten(0, 1),
                 run.decisions.log_prob.flatten(),
                 at::rand({6}).repeat({3}),
                 0.6,
                 [&](int64_t b, int64_t c) { return run.states->inputs(b, c); }};
  PpoConfig config;
  config.minibatch = 3;  // the parts of the rollout
  Optimizer optimizer(named_parameters(*net), ppo_optimizer(config));
  DeferredChecks checks;
  const PpoReport report = ppo_update(*net, optimizer, batch, config, checks);
  EXPECT_EQ(report.first_ratio_error.item<double>(), 0);
  EXPECT_GT(std::abs(report.approx_kl.item<double>()), 0);  // and later epochs have moved
}

TEST(Rollout, KeptAndRecomputedFeaturesGiveTheSameGradients) {
  Generator generator = tiny_generator();
  const PolicySettings settings = tiny_settings();
  std::vector<NamedTensors> gradients;
  std::vector<at::Tensor> tokens;
  for (const StateMemory memory : {StateMemory::kFeatures, StateMemory::kRecompute}) {
    ActorCritic net(settings.network);
    testing::fill_procedural(*net);
    const PolicySchedule policy(settings, net->actor, 3, at::kCPU);
    const Trajectories run = roll_out(*generator, policy, memory, 0.6);
    tokens.push_back(run.tokens);
    PpoBatch batch{3,
                   at::arange(3).repeat_interleave(6),
                   run.decisions.raw.flatten(0, 1),
                   run.decisions.log_prob.flatten(),
                   run.tokens.to(at::kFloat).mean(1).repeat({3}),
                   0.6,
                   [&](int64_t b, int64_t c) { return run.states->inputs(b, c); }};
    PpoConfig config;
    config.minibatch = 4;  // rows of two steps in one part
    Optimizer optimizer(named_parameters(*net), ppo_optimizer(config));
    NamedTensors first;
    DeferredChecks checks;
    ppo_update(*net, optimizer, batch, config, checks, [&](int64_t epoch, const PpoEpoch&) {
      for (const auto& [name, parameter] : optimizer.parameters())
        if (epoch == 0) first.emplace_back(name, parameter.grad().clone());
    });
    gradients.push_back(first);
  }
  EXPECT_CLOSE(tokens[0], tokens[1], 0);
  double largest = 0;
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    largest = std::max(largest, gradients[0][i].second.abs().max().item<double>());
    // Another batch shape rounds the features differently, and bfloat16 then makes 2^-8 of a few of them.
    EXPECT_CLOSE(gradients[0][i].second, gradients[1][i].second, 2e-3) << gradients[0][i].first;
  }
  EXPECT_GT(largest, 0.05);
}

TEST(Rollout, DoesNotDependOnItsParts) {
  Generator generator = tiny_generator();
  const PolicySettings settings = tiny_settings();
  const PolicySchedule policy(settings, tiny_actor(settings), 3, at::kCPU);
  const Trajectories whole = roll_out(*generator, policy, StateMemory::kFeatures, 0.6, 1);
  const Trajectories parts = roll_out(*generator, policy, StateMemory::kFeatures, 0.6, 3);
  EXPECT_CLOSE(whole.tokens, parts.tokens, 0);
  EXPECT_CLOSE(whole.decisions.raw, parts.decisions.raw, 1e-5);
  EXPECT_CLOSE(whole.states->inputs(0, 18), parts.states->inputs(0, 18),
               0.02);  // one step of bfloat16 near 2
}

TEST(Rollout, WithoutExplorationItIsTheMeanPolicy) {
  Generator generator = tiny_generator();
  PolicySettings settings = tiny_settings();
  settings.smoothing = 0.5;
  const PolicySchedule policy(settings, tiny_actor(settings), 3, at::kCPU);
  const Trajectories run = roll_out(*generator, policy, StateMemory::kTokens, 0);
  TraceObserver trace(generator->mask_id());
  const at::Tensor index = at::arange(6);
  const at::Tensor tokens =
      sample(*generator, plain_start(*generator, run.classes, 9, index), policy, {&trace});
  EXPECT_CLOSE(run.tokens, tokens, 0);
  EXPECT_CLOSE(run.decisions.mean_actions.to(at::kDouble), trace.actions(), 1e-6);
}

TEST(PolicySchedule, TheFirstActionDependsOnTheClassAlone) {
  Generator generator = tiny_generator();
  const PolicySettings settings = tiny_settings();
  const PolicySchedule policy(settings, tiny_actor(settings), 3, at::kCPU);
  const auto first = [&](int64_t seed, int64_t begin) {
    TraceObserver trace(generator->mask_id());
    const at::Tensor classes = ids({0, 1, 2, 1, 0});
    sample(*generator, plain_start(*generator, classes, seed, at::arange(begin, begin + 5)), policy,
           {&trace});
    return trace.actions();
  };
  const at::Tensor a = first(1, 0), b = first(77, 1000);
  EXPECT_CLOSE(a[0], b[0], 0);
  EXPECT_CLOSE(a[0][1], a[0][3], 1e-6);  // rows of one matrix product may round differently
  EXPECT_GT((a[0][0] - a[0][1]).abs().max().item<double>(), 1e-3);  // another class, another action
  EXPECT_GT((a[1] - b[1]).abs().max().item<double>(), 1e-4);        // and later the sample matters
  EXPECT_GT((a[1][1] - a[1][3]).abs().max().item<double>(), 1e-4);
}

TEST(PolicySchedule, AnUntrainedOneIsItsTable) {
  Generator generator = tiny_generator();
  PolicySettings settings = tiny_settings(4);
  settings.residual = "cosine", settings.rule = "maskgit";
  settings.cosine.guidance = 2.5;
  const PolicySchedule policy(settings, PolicyNetwork(settings.network, 4), 4, at::kCPU);
  const auto table = make_table_schedule("cosine", cosine_table(4, settings.cosine));
  const at::Tensor index = at::arange(9), classes = index.remainder(5);
  EXPECT_CLOSE(sample(*generator, plain_start(*generator, classes, 3, index), policy),
               sample(*generator, plain_start(*generator, classes, 3, index), *table), 0);
}

TEST(PolicySchedule, ASharedOneIsTheTableItWrites) {
  Generator generator = tiny_generator();
  PolicySettings settings = tiny_settings(4);
  settings.network.shared_steps = 4;
  settings.residual = "cosine", settings.rule = "maskgit";
  settings.cosine.guidance = 0.001;  // at the first steps below what counts as guidance
  PolicyNetwork actor(settings.network, 4);
  testing::fill_procedural(*actor, "shared.");
  const at::NoGradGuard no_grad;
  for (auto& p : actor->parameters()) p.mul_(0.01);
  const PolicySchedule policy(settings, actor, 4, at::kCPU);
  const auto table = make_table_schedule("x", policy.table());
  const at::Tensor index = at::arange(9), classes = index.remainder(5);
  for (int64_t t = 0; t < 4; ++t) EXPECT_EQ(*policy.known_guidance(t), *table->known_guidance(t));
  EXPECT_CLOSE(sample(*generator, plain_start(*generator, classes, 3, index), policy),
               sample(*generator, plain_start(*generator, classes, 3, index), *table), 0);
  PolicySettings adaptive = tiny_settings(4);
  EXPECT_THROW(PolicySchedule(adaptive, tiny_actor(adaptive), 4, at::kCPU).table(), RunError);
}

// On a device without values: whatever needs one on the host throws, and copies from the host are noted.
TEST(PolicySchedule, AsksTheHostForNothing) {
  const at::Device meta(at::kMeta);
  Generator net = tiny_generator();
  testing::move_to_meta(*net);
  const SamplerStart start = plain_start(*net, ids({0, 4, 4}), 1, ids({0, 1, 2}));
  for (const std::string residual : {"none", "heuristic", "cosine"}) {
    for (const std::string input : {"features", "tokens"}) {
      PolicySettings settings = tiny_settings();
      settings.residual = residual, settings.network.input = input, settings.smoothing = 0.3;
      PolicyNetwork actor = tiny_actor(settings);
      testing::move_to_meta(*actor);
      const PolicySchedule schedule(settings, actor, 3, meta);
      const testing::HostReads reads;
      const at::Tensor tokens = sampling_loop(*net, start, schedule, std::nullopt);
      EXPECT_EQ(tokens.sizes(), (at::IntArrayRef{3, 12}));
      EXPECT_TRUE(reads.names().empty()) << residual << " " << input << " " << reads.names().front();
    }
  }
}

// The rollout and the policy's steps of an update, on the same device: what RewardTest.AsksAGpuForNothing
// leaves out, but for the decoding and the data.
TEST(Rollout, LearnsWithoutAskingTheHost) {
  const at::TensorOptions meta(at::kMeta);
  Generator generator = tiny_generator();
  testing::move_to_meta(*generator);
  PolicySettings apart = tiny_settings(), shared = tiny_settings();
  shared.network.shared_steps = 3;
  for (const PolicySettings& settings : {apart, shared}) {
    ActorCritic net(settings.network);
    const PolicySchedule policy(settings, net->actor, 3, at::kMeta);  // once per run
    testing::move_to_meta(*net);
    for (const int64_t shown : {2, 6}) {  // classes, of which the generator has 5
      for (const StateMemory memory : {StateMemory::kFeatures, StateMemory::kRecompute}) {
        Optimizer optimizer(named_parameters(*net), ppo_optimizer({}));
        const at::Tensor index = at::empty({shown}, meta.dtype(at::kLong)),
                         rewards = at::empty({shown}, meta);
        const testing::HostReads reads;
        DeferredChecks checks;
        SamplerStart start = plain_start(*generator, index, 1, index);
        StateBuffer states(memory, *generator, shown, 3, at::kMeta);
        states.expect(0, start.condition);
        const RolloutSchedule schedule(policy, exploration_noise(index, index, 3), 0.6, /*round=*/true);
        const at::Tensor tokens = sampling_loop(*generator, start, schedule, std::nullopt, {&states});
        check_drawn(tokens, generator->mask_id(), checks);
        const Decisions made = schedule.decisions();
        PpoBatch batch{3,
                       at::arange(3, index.options()).repeat_interleave(shown),
                       made.raw.flatten(0, 1),
                       made.log_prob.flatten(),
                       rewards.expand({3, shown}).reshape({-1}),
                       0.6,
                       [&](int64_t b, int64_t c) { return states.inputs(b, c); }};
        ppo_update(*net, optimizer, batch, {}, checks);
        EXPECT_GT(checks.flags().size(0), 5);
        EXPECT_TRUE(reads.names().empty()) << reads.names().front();
      }
    }
  }
}

TEST(PolicySchedule, MayReadTokensInstead) {
  Generator generator = tiny_generator();
  PolicySettings settings = tiny_settings();
  settings.network.input = "tokens";
  const PolicySchedule policy(settings, tiny_actor(settings), 3, at::kCPU);
  const Trajectories run = roll_out(*generator, policy, StateMemory::kTokens, 0.6);
  EXPECT_TRUE((run.states->inputs(0, 6) == generator->mask_id()).all().item<bool>());
  EXPECT_FALSE((run.states->inputs(6, 6) == generator->mask_id()).all().item<bool>());
  // All samples start with the same tokens: one first action for every class.
  EXPECT_CLOSE(run.decisions.mean_actions[0][0], run.decisions.mean_actions[0][5], 1e-6);
}

TEST(PolicyFiles, RoundTrip) {
  const TempDir folder;
  PolicySettings settings = tiny_settings(0);
  settings.network.see_steps = true;
  settings.smoothing = 0.8;
  settings.generator = "abc";
  const PolicyNetwork actor = tiny_actor(settings);
  const auto file = folder / policy_file_name(0);
  EXPECT_EQ(file.filename(), "policy-any.safetensors");
  EXPECT_EQ(policy_file_name(4), "policy-T4.safetensors");
  write_policy(file, settings, module_state(*actor));
  const PolicyFile back = read_policy(file);
  EXPECT_EQ(back.settings, settings);
  const TensorMap a = module_state(*actor), b = module_state(*back.actor);
  for (const auto& [name, tensor] : a) EXPECT_CLOSE(b.at(name), tensor, 0) << name;
}

void expect_input_error(const std::function<void()>& run, std::initializer_list<const char*> words) {
  try {
    run();
    FAIL() << "no error";
  } catch (const InputError& e) {
    for (const char* word : words) EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
  }
}

TEST(PolicyFiles, ErrorsSayBothSides) {
  const TempDir folder;
  const PolicySettings settings = tiny_settings(4);
  const auto file = folder / "p.safetensors";
  write_policy(file, settings, module_state(*tiny_actor(settings)));
  const PolicyFile policy = read_policy(file);
  check_policy(policy, "p", 4, 16, 4, 3, 24, "");
  expect_input_error([&] { check_policy(policy, "p", 8, 16, 4, 3, 24, ""); }, {"p", "4 steps", "8"});
  expect_input_error([&] { check_policy(policy, "p", 4, 16, 8, 8, 24, ""); }, {"4x3", "8x8"});
  expect_input_error([&] { check_policy(policy, "p", 4, 192, 4, 3, 24, ""); }, {"16", "192"});
  expect_input_error([&] { PolicySchedule(settings, policy.actor, 5, at::kCPU); }, {"4 steps", "5"});
  PolicySettings any = tiny_settings(0);
  expect_input_error([&] { PolicySchedule(any, policy.actor, 17, at::kCPU); }, {"2 to 16 steps", "17"});

  TensorMap diverged;
  for (const auto& [name, tensor] : module_state(*policy.actor)) diverged[name] = tensor.clone();
  diverged.begin()->second.flatten()[0] = NAN;
  write_policy(folder / "nan.safetensors", settings, diverged);
  expect_input_error([&] { read_policy(folder / "nan.safetensors"); },
                     {"nan.safetensors", diverged.begin()->first.c_str(), "NaN"});
  expect_input_error([&] { read_policy(folder / "absent.safetensors"); }, {"absent.safetensors", "no such"});
  TensorMap tensors;
  Metadata metadata;
  tensors = read_tensors(file, &metadata);
  const auto broken = folder / "broken.safetensors";
  const auto with = [&](const std::string& key, const std::string& value) {
    Metadata changed = metadata;
    changed[key] = value;
    write_tensors(broken, tensors, changed);
    return [&] { read_policy(broken); };
  };
  expect_input_error(with("format", "adanat-generator-1"), {"broken", "no policy"});
  expect_input_error(with("format", "adanat-policy-2"), {"adanat-policy-2", "adanat-policy-1"});
  expect_input_error(with("config", "{\"steps\": 4, \"hue\": 1}"), {"broken", "hue"});
  // Settings that promise more than the file holds take no memory.
  Json huge = config_to_json(settings);
  huge["network"]["mlp"] = 65536;
  expect_input_error(with("config", huge.dump()), {"broken", "holds"});
  huge = config_to_json(settings);
  huge["network"]["input"] = "tokens", huge["network"]["codes"] = 1 << 24;
  expect_input_error(with("config", huge.dump()), {"broken", "16777216 codes"});
  Json wider = config_to_json(settings);
  wider["network"]["mlp"] = 13;
  expect_input_error(with("config", wider.dump()), {"broken", "adaLN2", "[24]", "[26]"});
}

}  // namespace
}  // namespace adanat
