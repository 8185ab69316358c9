// The sampler that records a whole run: what is renewed between two replays, what it must not mix up, and
// that the loop it records never asks the host.
#include "core/sampling/recorded_sampler.h"

#include <ATen/ATen.h>

#include "core/base/log.h"
#include "core/sampling/observers.h"
#include "support/meta_device.h"
#include "support/small_generator.h"

namespace adanat {
namespace {

constexpr int64_t kClasses = 10, kTokens = 16;

Generator small_generator() {
  return testing::procedural_generator(testing::uvit_class_config());
}

std::unique_ptr<Schedule> cosine(double guidance = 1.5) {
  return make_table_schedule("cosine", cosine_table(3, {.guidance = guidance}));
}

SamplerStart start_of(Generator& net, std::vector<int64_t> classes, int64_t seed, int64_t first = 0) {
  const auto count = int64_t(classes.size());
  return plain_start(*net, at::tensor(classes, at::kLong), seed, at::arange(first, first + count));
}

// A recording for a CPU: the work is done again, on the tensors that it was given when it was recorded.
class Again : public kernels::Recording {
 public:
  explicit Again(std::function<void()> work) : work_(std::move(work)) {}
  void replay() override { work_(); }

 private:
  std::function<void()> work_;
};

class Recorded : public ::testing::Test {
 protected:
  void SetUp() override {
    before_ = kernels::set_recorder([](c10::Device, const std::function<void()>& work) {
      ++recordings;
      return std::unique_ptr<kernels::Recording>(std::make_unique<Again>(work));
    });
    recordings = 0;
  }
  void TearDown() override { kernels::set_recorder(before_); }

  void expect_same(const SamplerStart& start, const Schedule& schedule) {
    EXPECT_TRUE(at::equal(sampler.sample(start, schedule), sample(*net, start, schedule)));
  }

  static inline int recordings = 0;
  Generator net = small_generator();
  RecordedSampler sampler{*net};

 private:
  kernels::Recorder before_ = nullptr;
};

TEST_F(Recorded, EveryRunHasItsOwnInputs) {
  const auto schedule = cosine();
  expect_same(start_of(net, {0, 1, 2, 0}, 1), *schedule);
  EXPECT_EQ(recordings, 0) << "the first run prepares";
  expect_same(start_of(net, {0, 1, 2, 0}, 1), *schedule);
  EXPECT_EQ(recordings, 1);
  expect_same(start_of(net, {0, 1, 2, 0}, 2), *schedule);     // another seed
  expect_same(start_of(net, {0, 1, 2, 0}, 2, 9), *schedule);  // other images of it
  expect_same(start_of(net, {7, 3, 7, 5}, 2), *schedule);     // other classes, as many
  EXPECT_EQ(recordings, 1);
  EXPECT_EQ(sampler.replays(), 4);
}

TEST_F(Recorded, ResultsOutliveTheNextRun) {
  const auto schedule = cosine();
  const SamplerStart start = start_of(net, {4, 4}, 1);
  sampler.sample(start, *schedule);
  const at::Tensor first = sampler.sample(start, *schedule), kept = first.clone();
  sampler.sample(start_of(net, {1, 1}, 5), *schedule);
  EXPECT_TRUE(at::equal(first, kept));
}

TEST_F(Recorded, OtherShapesAreOtherRecordings) {
  const auto schedule = cosine();
  SamplerStart known = start_of(net, {0, 1}, 1);
  known.same_tokens = false;
  known.tokens[0][3] = 5;
  for (int round = 0; round < 3; ++round) {
    expect_same(start_of(net, {0, 1}, 1), *schedule);
    expect_same(start_of(net, {0, 1, 2}, 1), *schedule);
    expect_same(known, *schedule);
  }
  EXPECT_EQ(recordings, 3);
}

TEST_F(Recorded, OneServesOtherNumbersOfConditions) {
  const auto schedule = cosine();
  for (const int64_t distinct : {10, 9, 10, 9, 9}) {
    std::vector<int64_t> classes;
    for (int64_t i = 0; i < 20; ++i) classes.push_back((i * 7 + distinct) % distinct);
    expect_same(start_of(net, classes, distinct), *schedule);
  }
  for (const auto& classes : std::vector<std::vector<int64_t>>{{0, 1, 2}, {3, 3, 3}, {4, 5, 4}})
    expect_same(start_of(net, classes, 1), *schedule);
  EXPECT_EQ(recordings, 2);
}

TEST_F(Recorded, AnotherScheduleTakesThePlace) {
  const auto schedule = cosine(), weaker = cosine(0.5);
  const SamplerStart start = start_of(net, {0, 1}, 1);
  for (const Schedule* s : {schedule.get(), weaker.get(), schedule.get()})
    for (int run = 0; run < 2; ++run) expect_same(start, *s);
  EXPECT_EQ(recordings, 3);
}

TEST_F(Recorded, KeepsFewShapes) {
  const auto schedule = cosine();
  for (int round = 0; round < 2; ++round)
    for (size_t batch = 1; batch <= 5; ++batch)
      expect_same(start_of(net, std::vector<int64_t>(batch, 0), 1), *schedule);
  EXPECT_EQ(recordings, 0) << "each was forgotten before it came again";
  expect_same(start_of(net, {0, 0, 0, 0, 0}, 1), *schedule);
  EXPECT_EQ(recordings, 1);
}

// One number decides everything.
class OneNumber : public Schedule {
 public:
  explicit OneNumber(double guidance) : guidance_(guidance) {}
  std::string name() const override { return "one number"; }
  int64_t steps() const override { return 2; }
  kernels::RemaskRule rule() const override { return kernels::RemaskRule::kMaskgit; }
  std::unique_ptr<ScheduleState> begin(int64_t, at::Device) const override { return nullptr; }
  Action next(ScheduleState*, int64_t step, const at::Tensor& features) const override {
    const at::Tensor ones = at::ones({features.size(0)}, features.options());
    return {ones * (step == 0 ? 0.5 : 0), ones, ones, ones * guidance_};
  }
  std::optional<double> known_guidance(int64_t) const override { return guidance_; }

 private:
  double guidance_;
};

TEST_F(Recorded, AScheduleInThePlaceOfAnotherIsAnother) {
  std::optional<OneNumber> place;
  const SamplerStart start = start_of(net, {0, 1}, 1);
  for (const double guidance : {0.5, 6.0}) {
    place.emplace(guidance);
    for (int run = 0; run < 3; ++run) expect_same(start, *place);
  }
  EXPECT_EQ(recordings, 2);
}

TEST_F(Recorded, ObserversThatReadStepsSeeThem) {
  const auto schedule = cosine();
  const SamplerStart start = start_of(net, {0, 1}, 1);
  InterruptObserver interrupt;
  for (int run = 0; run < 3; ++run) sampler.sample(start, *schedule, {&interrupt});
  EXPECT_EQ(sampler.replays(), 2);
  TokensObserver tokens;
  sampler.sample(start, *schedule, {&interrupt, &tokens});
  EXPECT_EQ(tokens.tokens().sizes(), (at::IntArrayRef{3, 2, kTokens}));
  EXPECT_EQ(sampler.replays(), 2);
}

TEST_F(Recorded, GoesStepByStepWhereNothingCanRecord) {
  const auto schedule = cosine();
  const SamplerStart start = start_of(net, {0, 1}, 1);
  kernels::set_recorder(nullptr);
  for (int run = 0; run < 3; ++run) expect_same(start, *schedule);
  kernels::set_recorder([](c10::Device, const std::function<void()>&) -> std::unique_ptr<kernels::Recording> {
    ++recordings;
    TORCH_CHECK(false, "operation not permitted when stream is capturing");
  });
  const auto other = cosine();
  set_quiet(true);
  for (int run = 0; run < 3; ++run) expect_same(start, *other);
  EXPECT_EQ(recordings, 1) << "not tried again";
  EXPECT_EQ(sampler.replays(), 0);
}

TEST_F(Recorded, ANanIsAnErrorOfEveryReplay) {
  const auto schedule = cosine();
  const SamplerStart start = start_of(net, {0, 1}, 1);
  for (int run = 0; run < 2; ++run) sampler.sample(start, *schedule);
  net->parameters()[0].detach().fill_(NAN);
  EXPECT_THROW(sampler.sample(start, *schedule), RunError);
}

TEST(SamplingLoop, AsksTheHostForNothing) {
  const at::Device meta(at::kMeta);
  Generator net = small_generator();
  testing::move_to_meta(*net);
  SamplerStart start = start_of(net, {0, 1, 1}, 1);
  ASSERT_TRUE(start.tokens.is_meta());
  std::vector<std::unique_ptr<Schedule>> schedules;
  schedules.push_back(cosine());
  schedules.push_back(cosine(0));
  schedules.push_back(make_halton_schedule(3, 4, 4, {}));
  for (const auto& schedule : schedules) {
    for (const bool shared : {true, false}) {
      start.same_tokens = shared;
      std::optional<at::Tensor> priority = schedule->priority();
      if (priority.has_value()) priority = priority->to(meta);
      const testing::HostReads reads;
      const at::Tensor tokens = sampling_loop(*net, start, *schedule, priority);
      EXPECT_EQ(tokens.sizes(), (at::IntArrayRef{3, kTokens}));
      EXPECT_TRUE(reads.names().empty()) << schedule->name() << " " << reads.names().front();
    }
  }
}

// What the test above looks for is found.
TEST(SamplingLoop, HostReadsAreSeen) {
  const at::Tensor far = at::zeros({2}, at::TensorOptions().device(at::kMeta)), near = at::ones({2});
  const testing::HostReads reads;
  EXPECT_TRUE(near.to(at::kMeta).is_meta());
  EXPECT_FALSE(reads.names().empty());
  EXPECT_ANY_THROW(far.sum().item<float>());
  const testing::HostWaits waits;
  EXPECT_EQ(near.sum().item<float>(), 2);
  EXPECT_EQ(waits.names(), std::vector<std::string>{"aten::_local_scalar_dense"});
}

}  // namespace
}  // namespace adanat
