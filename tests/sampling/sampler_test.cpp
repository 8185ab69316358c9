// The sampling loop: invariants of the method, the thrift promised in docs/architecture.md, and the recorded
// trajectory.
#include "core/sampling/sampler.h"

#include <ATen/ATen.h>

#include "core/sampling/observers.h"
#include "kernels/decode_step.h"
#include "support/small_generator.h"

namespace adanat {
namespace {

constexpr int64_t kClasses = 10, kCodes = 32, kTokens = 16;

Generator small_generator() {
  return testing::procedural_generator(testing::uvit_class_config());
}

at::Tensor run(Generator& net, const Schedule& schedule, at::Tensor classes, int64_t seed, int64_t first,
               const std::vector<SamplerObserver*>& observers = {}) {
  return sample(*net, plain_start(*net, classes, seed, at::arange(first, first + classes.size(0))), schedule,
                observers);
}

std::unique_ptr<Schedule> cosine(int64_t steps, double guidance) {
  return make_table_schedule("cosine", cosine_table(steps, {.guidance = guidance}));
}

// A schedule whose samples all differ, and whose guidance nobody knows beforehand: what a policy looks like.
class PerSampleSchedule : public Schedule {
 public:
  std::string name() const override { return "test"; }
  int64_t steps() const override { return 4; }
  kernels::RemaskRule rule() const override { return kernels::RemaskRule::kAdanat; }
  std::unique_ptr<ScheduleState> begin(int64_t, at::Device) const override { return nullptr; }
  Action next(ScheduleState*, int64_t step, const at::Tensor& features) const override {
    const at::Tensor level = features.mean({1, 2}).sigmoid();
    return {(level * (1 - double(step + 1) / 4)), level, level + 0.5, level * 2};
  }
  std::optional<double> known_guidance(int64_t) const override { return std::nullopt; }
};

// Reference trajectory: every intermediate in its order, each step from the recorded state.
TEST(GoldenSteps, EveryStepOfTheTrajectory) {
  const auto& g = testing::golden("steps.safetensors");
  Generator net = small_generator();
  const at::NoGradGuard no_grad;
  for (int64_t t = 0; t < 4; ++t) {
    const at::Tensor ids = g["adanat.ids_in"][t], classes = g["adanat.context"].view({-1});
    const at::Tensor features = net->features(at::cat({ids, ids}), at::cat({classes, net->empty_classes(3)}));
    EXPECT_CLOSE(features.narrow(0, 0, 3), g["adanat.features_in"][t], 1e-4);
    const at::Tensor logits = net->logits(features);
    EXPECT_CLOSE(logits.narrow(0, 0, 3), g["adanat.logits_cond"][t], 5e-5);
    const at::Tensor a = g["adanat.actions"][t];
    const auto column = [&](int64_t i) { return a.select(1, i).contiguous(); };
    const auto result = kernels::decode_step({.logits = logits.narrow(0, 0, 3),
                                              .logits_uncond = logits.narrow(0, 3, 3),
                                              .tokens = ids,
                                              .mask_ratio = column(0),
                                              .remask_temperature = column(1),
                                              .sampling_temperature = column(2),
                                              .guidance = column(3),
                                              .seed = at::zeros({3}, at::kLong),
                                              .image_index = at::zeros({3}, at::kLong),
                                              .step = at::full({1}, t, at::kLong),
                                              .hidden_at_start = at::full({3}, kTokens, at::kLong),
                                              .rule = kernels::RemaskRule::kAdanat,
                                              .priority = std::nullopt,
                                              .token_noise = g["adanat.G1"][t],
                                              .confidence_noise = g["adanat.G2"][t]});
    EXPECT_TRUE(at::equal(result.proposals, g["adanat.proposal"][t])) << "step " << t;
    EXPECT_CLOSE(result.confidence, g["adanat.confidence"][t], 1e-4);
    EXPECT_TRUE(at::equal(result.tokens, g["adanat.ids_out"][t])) << "step " << t;
  }
}

TEST(Sampler, RevealedTokensNeverChangeAndAllAreRevealed) {
  Generator net = small_generator();
  const at::Tensor classes = at::arange(8) % kClasses;
  const PerSampleSchedule per_sample;
  const auto table = cosine(6, 1.5), halton = make_schedule("halton", 6, {}, 4, 4);
  for (const Schedule* schedule :
       {static_cast<const Schedule*>(&per_sample), const_cast<const Schedule*>(table.get()),
        const_cast<const Schedule*>(halton.get())}) {
    TokensObserver observer;
    TraceObserver trace(net->mask_id());
    const at::Tensor tokens = run(net, *schedule, classes, 5, 0, {&observer, &trace});
    const at::Tensor steps = observer.tokens();
    for (int64_t t = 1; t < steps.size(0); ++t) {
      const at::Tensor known = steps[t - 1] != kCodes;
      EXPECT_TRUE(at::equal(steps[t].masked_select(known), steps[t - 1].masked_select(known)))
          << schedule->name();
    }
    EXPECT_TRUE(at::equal(steps[-1], tokens));
    EXPECT_LT(tokens.max().item<int64_t>(), kCodes);
    EXPECT_TRUE((trace.revealed()[-1] == kTokens).all().item<bool>());
    EXPECT_EQ(trace.actions().sizes(), (std::vector<int64_t>{schedule->steps(), 8, 4}));
  }
}

TEST(Sampler, HaltonRevealsInItsOrder) {
  Generator net = small_generator();
  const auto schedule = make_schedule("halton", 5, {}, 4, 4);
  TokensObserver observer;
  run(net, *schedule, at::arange(3), 1, 0, {&observer});
  const at::Tensor ranks = halton_ranks(4, 4);
  for (int64_t t = 0; t < 4; ++t) {
    const at::Tensor expected = (ranks < halton_revealed(t, 5, kTokens)).expand({3, kTokens});
    EXPECT_TRUE(at::equal(observer.tokens()[t] != kCodes, expected)) << t;
  }
}

TEST(Sampler, ASeedIsAnImageWhateverTheBatch) {
  Generator net = small_generator();
  const auto schedule = cosine(4, 1.0);
  const int64_t count = 1000;
  const at::Tensor classes = at::arange(count) % kClasses;
  const at::Tensor all = run(net, *schedule, classes, 9, 0);
  std::vector<at::Tensor> parts;
  for (int64_t i = 0; i < count; i += 7) {
    const int64_t size = std::min<int64_t>(7, count - i);
    parts.push_back(run(net, *schedule, classes.narrow(0, i, size), 9, i));
  }
  const at::Tensor equal = (at::cat(parts) == all).all(1);
  // Another GEMM shape may round differently, so a draw whose margin is under 1e-5 may fall the other way.
  EXPECT_GE(equal.to(at::kDouble).mean().item<double>(), 0.99);
  EXPECT_FALSE(at::equal(run(net, *schedule, classes.narrow(0, 0, 8), 10, 0), all.narrow(0, 0, 8)));
  EXPECT_FALSE(at::equal(run(net, *schedule, classes.narrow(0, 0, 8), 9, 10), all.narrow(0, 0, 8)));
}

// The first token that differs between two batchings must have been a draw with almost no margin.
TEST(Sampler, OnlyNearTiesDependOnTheBatch) {
  Generator net = small_generator();
  const auto schedule = cosine(4, 1.0);
  const at::NoGradGuard no_grad;
  const at::Tensor classes = at::arange(400) % kClasses;
  TokensObserver whole;
  run(net, *schedule, classes, 21, 0, {&whole});
  for (int64_t i = 0; i < 400; ++i) {
    TokensObserver one;
    run(net, *schedule, classes.narrow(0, i, 1), 21, i, {&one});
    for (int64_t t = 0; t < 4; ++t) {
      const at::Tensor a = whole.proposals()[t][i], b = one.proposals()[t][0];
      if (at::equal(a, b) && at::equal(whole.tokens()[t][i], one.tokens()[t][0])) continue;
      if (at::equal(a, b)) break;  // a confidence tie: masks part from here on
      const at::Tensor before = t == 0 ? at::full({1, kTokens}, kCodes, at::kLong) : one.tokens()[t - 1];
      const at::Tensor logits = net->logits(net->features(
          at::cat({before, before}), at::cat({classes.narrow(0, i, 1), net->empty_classes(1)})));
      const at::Tensor noise =
          kernels::token_noise(at::full({1}, 21, at::kLong), at::full({1}, i, at::kLong), t, kTokens, kCodes);
      const at::Tensor score = logits[0] + *schedule->known_guidance(t) * (logits[0] - logits[1]) + noise[0];
      const at::Tensor top = std::get<0>(score.topk(2, 1));
      const at::Tensor margin = (top.select(1, 0) - top.select(1, 1)).masked_select(a != b);
      EXPECT_LT(margin.max().item<double>(), 1e-5) << "image " << i << ", step " << t;
      break;
    }
  }
}

TEST(Sampler, GuidanceZeroIsUnguided) {
  Generator net = small_generator();
  const at::Tensor classes = at::arange(5);
  const at::Tensor none = run(net, *cosine(4, 0), classes, 3, 0);
  const at::Tensor tiny = run(net, *cosine(4, 5e-4), classes, 3, 0);  // counts as none
  EXPECT_TRUE(at::equal(none, tiny));
  EXPECT_FALSE(at::equal(none, run(net, *cosine(4, 5), classes, 3, 0)));
}

TEST(Sampler, RowsThroughTheGeneratorArePromisedCounts) {
  Generator net = small_generator();
  const at::Tensor classes = at::tensor({1, 1, 4, 1, 4, 1, 1, 1}, at::kLong);  // 8 images of 2 classes
  const auto rows = [&](const Schedule& schedule) {
    const int64_t before = net->rows_computed();
    run(net, schedule, classes, 3, 0);
    return net->rows_computed() - before;
  };
  // Step 0: one row per class and one unconditional; later steps: cond and uncond of all.
  EXPECT_EQ(rows(*cosine(4, 1)), (2 + 1) + 3 * 16);
  EXPECT_EQ(rows(*cosine(4, 0)), 2 + 3 * 8);
  // AutoNAT's first three steps are unguided.
  EXPECT_EQ(rows(*make_table_schedule("autonat", autonat_table(8))), 2 + 2 * 8 + 5 * 16);
  EXPECT_EQ(rows(PerSampleSchedule{}), (2 + 1) + 3 * 16);
}

// The classes found beforehand, found by the loop, and those of a condition that was replaced since: the same
// images.
TEST(Sampler, DistinctClassesAreFoundBeforehandOrInTheLoop) {
  Generator net = small_generator();
  const at::Tensor classes = at::tensor({7, 2, 7, 0}, at::kLong);
  const auto schedule = cosine(3, 1);
  const SamplerStart start = plain_start(*net, classes, 5, at::arange(4));
  EXPECT_TRUE(at::equal(start.classes.distinct, at::tensor({0, 2, 7}, at::kLong)));
  EXPECT_TRUE(at::equal(start.classes.distinct.index_select(0, start.classes.row_of), classes));
  const at::Tensor expected = sample(*net, start, *schedule);
  SamplerStart bare = start;
  bare.classes = {};
  EXPECT_TRUE(at::equal(sample(*net, bare, *schedule), expected));
  SamplerStart replaced = plain_start(*net, at::zeros({4}, at::kLong), 5, at::arange(4));
  replaced.condition = classes;
  EXPECT_TRUE(at::equal(sample(*net, replaced, *schedule), expected));
}

// What stands for the distinct classes where a GPU is not asked for them: the same images from other rows.
TEST(Sampler, ClassesNeedNotBeAskedFor) {
  Generator net = small_generator();
  const at::Tensor classes = at::tensor({7, 2, 7, 0}, at::kLong);
  const auto schedule = cosine(3, 1);
  SamplerStart start = plain_start(*net, classes, 5, at::arange(4));
  const at::Tensor expected = sample(*net, start, *schedule);
  start.classes = classes_unasked(start.condition, 1000);  // more than samples: each has its own row
  EXPECT_TRUE(start.classes.of.is_same(start.condition));
  EXPECT_TRUE(at::equal(start.classes.distinct, classes));
  EXPECT_TRUE(at::equal(start.classes.row_of, at::arange(4)));
  EXPECT_TRUE(at::equal(sample(*net, start, *schedule), expected));
  const at::Tensor many = classes.repeat({3});
  start = plain_start(*net, many, 5, at::arange(12));
  const at::Tensor all = sample(*net, start, *schedule);
  start.classes = classes_unasked(start.condition, net->config().classes);
  EXPECT_TRUE(at::equal(start.classes.distinct, at::arange(net->config().classes)));
  EXPECT_TRUE(at::equal(sample(*net, start, *schedule), all));
}

// Texts: step 0 takes one row per distinct text and one for the empty one; the images are those of the long
// way, whatever the batch and the type of the states.
TEST(Sampler, TextsShareRowsAndGiveTheSameImages) {
  GeneratorConfig config = testing::uvit_class_config();
  config.condition = "text", config.text_width = 12, config.text_tokens = 5;
  Generator net = testing::procedural_generator(config);
  const TextConditions texts{testing::input_float("texts", {3, 5, 12}, 1.5),
                             testing::input_float("empty", {1, 5, 12}, 1.5)};
  const at::Tensor text = at::tensor({2, 0, 2, 1}, at::kLong);
  const auto schedule = cosine(3, 1);
  SamplerStart start = plain_start(*net, texts, text, 5, at::arange(4));
  EXPECT_TRUE(at::equal(start.classes.distinct.index_select(0, start.classes.row_of), start.condition));
  const int64_t before = net->rows_computed();
  const at::Tensor expected = sample(*net, start, *schedule);
  EXPECT_EQ(net->rows_computed() - before, 3 + 1 + 2 * (4 + 4));
  start.classes = {};
  EXPECT_TRUE(at::equal(sample(*net, start, *schedule), expected));
  EXPECT_EQ(net->rows_computed() - before, 20 + 3 * (4 + 4));
  const TextConditions wide{texts.states.to(at::kDouble), texts.empty.to(at::kDouble)};
  EXPECT_TRUE(at::equal(sample(*net, plain_start(*net, wide, text, 5, at::arange(4)), *schedule), expected));
  for (int64_t i = 0; i < 4; ++i)
    EXPECT_TRUE(at::equal(
        sample(*net, plain_start(*net, texts, text.narrow(0, i, 1), 5, at::arange(i, i + 1)), *schedule)[0],
        expected[i]))
        << i;
  EXPECT_FALSE(at::equal(
      sample(*net, plain_start(*net, texts, at::zeros({4}, at::kLong), 5, at::arange(4)), *schedule),
      expected));
  // Without guidance the empty text is not read.
  const TextConditions odd{texts.states, at::full({1, 5, 12}, NAN)};
  const auto plain = cosine(3, 0);
  EXPECT_TRUE(at::equal(sample(*net, plain_start(*net, odd, text, 5, at::arange(4)), *plain),
                        sample(*net, plain_start(*net, texts, text, 5, at::arange(4)), *plain)));
}

TEST(Sampler, StartsFromGivenTokensAndKeepsThem) {
  Generator net = small_generator();
  SamplerStart start = plain_start(*net, at::arange(4), 1, at::arange(4));
  start.same_tokens = false;
  start.tokens = start.tokens.clone();
  start.tokens.narrow(1, 0, 10).fill_(7);
  const auto schedule = cosine(3, 1);
  const at::Tensor tokens = sample(*net, start, *schedule);
  EXPECT_TRUE((tokens.narrow(1, 0, 10) == 7).all().item<bool>());
  start.tokens.fill_(3);  // nothing to make
  EXPECT_TRUE((sample(*net, start, *schedule) == 3).all().item<bool>());
}

// Variants of one edit: step 0 takes one row per class and one for the empty one, as plain generation does,
// and draws what a step of all rows draws.
TEST(Sampler, TheSameKnownTokensShareRowsAtStepZero) {
  Generator net = small_generator();
  const at::Tensor classes = at::tensor({1, 1, 4, 1, 4, 1}, at::kLong);
  SamplerStart start = plain_start(*net, classes, 3, at::arange(6));
  start.tokens = start.tokens.clone();
  start.tokens.narrow(1, 2, 9).copy_(at::arange(9).expand({6, 9}));  // 7 of 16 tokens are to be made
  const auto rows = [&](const Schedule& schedule, bool same_tokens) {
    start.same_tokens = same_tokens;
    const int64_t before = net->rows_computed();
    const at::Tensor tokens = sample(*net, start, schedule);
    return std::pair(tokens, net->rows_computed() - before);
  };
  const PerSampleSchedule per_sample;
  const auto guided = cosine(4, 1), unguided = cosine(4, 0);
  for (const auto& [schedule, each] :
       {std::pair<const Schedule*, int64_t>{guided.get(), 12}, {unguided.get(), 6}, {&per_sample, 12}}) {
    const auto [shared, few] = rows(*schedule, true);
    const auto [apart, all] = rows(*schedule, false);
    EXPECT_EQ(few, (each == 12 ? 2 + 1 : 2) + 3 * each) << schedule->name();
    EXPECT_EQ(all, 4 * each) << schedule->name();
    EXPECT_TRUE(at::equal(shared, apart)) << schedule->name();
    EXPECT_TRUE((shared.narrow(1, 2, 9) == at::arange(9)).all().item<bool>()) << schedule->name();
  }
}

TEST(Sampler, GreedyDoesNotDependOnTheSeed) {
  Generator net = small_generator();
  ScheduleTable table = cosine_table(4, {.guidance = 1, .temperature = 0, .sampling_temperature = 0});
  const auto schedule = make_table_schedule("greedy", table);
  EXPECT_TRUE(at::equal(run(net, *schedule, at::arange(6), 1, 0), run(net, *schedule, at::arange(6), 2, 50)));
}

TEST(Sampler, LeavesTrainingModeAsItWas) {
  Generator net = small_generator();
  net->train();
  run(net, *cosine(2, 1), at::arange(2), 1, 0);
  EXPECT_TRUE(net->is_training());
}

}  // namespace
}  // namespace adanat
