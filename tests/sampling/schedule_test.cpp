#include "core/sampling/schedule.h"

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <set>

#include "support/support.h"

namespace adanat {
namespace {

TEST(Tables, CosineIsMaskGits) {
  const ScheduleTable t = cosine_table(4, {.guidance = 2, .guidance_curve = "linear", .temperature = 4.5});
  const std::vector<double> ratios = {std::cos(M_PI / 8), std::cos(M_PI / 4), std::cos(3 * M_PI / 8), 0};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_DOUBLE_EQ(t.mask_ratio[i], ratios[i]);
    EXPECT_DOUBLE_EQ(t.guidance[i], 2 * double(i + 1) / 4);
    EXPECT_DOUBLE_EQ(t.remask_temperature[i], i == 3 ? 0 : 4.5 * (1 - double(i + 1) / 4));
    EXPECT_EQ(t.sampling_temperature[i], 1);
  }
  EXPECT_EQ(t.rule, "maskgit");
}

TEST(Tables, SearchStartIsTheReferences) {
  const auto& g = testing::golden("steps.safetensors");
  const ScheduleTable t = search_start_table(8);
  for (int64_t i = 0; i < 7; ++i) {
    EXPECT_NEAR(t.mask_ratio[size_t(i)], g["cosine.T8.ratios"][i].item<double>(), 1e-12);
    EXPECT_NEAR(t.remask_temperature[size_t(i)], g["cosine.T8.temps"][i].item<double>(), 1e-12);
  }
  for (int64_t i = 0; i < 8; ++i)
    EXPECT_NEAR(t.guidance[size_t(i)], g["cosine.T8.cfg"][i].item<double>(), 1e-12);
}

TEST(Tables, ConstantCurveAndLinearRatios) {
  const ScheduleTable t = linear_table(5, {.guidance = 3, .guidance_curve = "constant", .temperature = 1});
  EXPECT_DOUBLE_EQ(t.mask_ratio[0], 0.8);
  EXPECT_EQ(t.mask_ratio[4], 0);
  for (const double w : t.guidance) EXPECT_EQ(w, 3);
}

TEST(Tables, AutonatIsForEightSteps) {
  EXPECT_EQ(autonat_table(8).mask_ratio.size(), 8u);
  EXPECT_THROW(autonat_table(4), InputError);
  const auto schedule = make_table_schedule("autonat", autonat_table(8));
  EXPECT_EQ(schedule->known_guidance(0), 0);  // 1e-4 counts as none, but what is told is the table
  EXPECT_EQ(schedule->next(nullptr, 0, at::zeros({1, 2, 2})).guidance.item<float>(), 1e-4f);
  EXPECT_EQ(schedule->known_guidance(3), 0.915);
}

TEST(Halton, RanksAreAPermutationInHaltonOrder) {
  const at::Tensor ranks = halton_ranks(4, 4);
  // i = 1: (1/2, 1/3) -> cell (2, 1); i = 2: (1/4, 2/3) -> (1, 2); i = 3: (3/4, 1/9) -> (3, 0).
  EXPECT_EQ(ranks[2 * 4 + 1].item<int64_t>(), 0);
  EXPECT_EQ(ranks[1 * 4 + 2].item<int64_t>(), 1);
  EXPECT_EQ(ranks[3 * 4 + 0].item<int64_t>(), 2);
  // h2(5) = 5/8 and h3(5) = 7/9: on a grid of 9 the cell (5, 7), though 9 times a double of 7/9 is below 7.
  EXPECT_EQ(halton_ranks(9, 9)[5 * 9 + 7].item<int64_t>(), 4);
  for (const auto& [h, w] : {std::pair{1, 1}, {7, 7}, {16, 16}, {3, 5}, {32, 32}}) {
    const at::Tensor r = halton_ranks(h, w);
    EXPECT_TRUE(at::equal(std::get<0>(r.sort()), at::arange(h * w))) << h << "x" << w;
  }
}

TEST(Halton, RevealsTheReferencesCounts) {
  // T = 8, N = 256: max(t+1, floor(256 (1 - 2/pi acos((t+1)/8)))).
  for (int64_t t = 0; t < 8; ++t) {
    const auto share = int64_t(std::floor(256 * (1 - 2 / M_PI * std::acos(double(t + 1) / 8))));
    EXPECT_EQ(halton_revealed(t, 8, 256), std::max(t + 1, share));
  }
  EXPECT_EQ(halton_revealed(7, 8, 256), 256);
  EXPECT_EQ(halton_revealed(0, 64, 64), 1);
  // acos(1/2) is pi/3: half of the steps reveal a third of the tokens, exactly.
  for (const int64_t side : {3, 6, 12, 24})
    EXPECT_EQ(halton_revealed(0, 2, side * side), side * side / 3) << side;
  // The ratio handed to decode_step must give the same count through float32.
  for (const int64_t n : {49, 64, 256, 1024}) {
    for (int64_t t = 0; t < 16; ++t) {
      const int64_t masked = n - halton_revealed(t, 16, n);
      const double ratio = masked == 0 ? 0 : (double(masked) + 0.5) / double(n);
      EXPECT_EQ(int64_t(std::floor(float(n) * float(ratio))), masked);
    }
  }
}

TEST(ScheduleFile, ReadsAndRefuses) {
  const testing::TempDir dir;
  const auto write = [&](const std::string& text) {
    std::ofstream(dir / "s.json") << text;
    return (dir / "s.json").string();
  };
  const std::string good = write(
      R"({"steps":2,"mask_ratio":[0.5,0],"remask_temperature":[1,0],"sampling_temperature":[1,1],"guidance":[0,1],"rule":"adanat"})");
  const auto schedule = make_schedule(good, 2, {}, 4, 4);
  EXPECT_EQ(schedule->steps(), 2);
  EXPECT_EQ(schedule->rule(), kernels::RemaskRule::kAdanat);
  EXPECT_THROW(make_schedule(good, 3, {}, 4, 4), InputError);
  for (
      const char* bad :
      {R"({"steps":3,"mask_ratio":[0.5,0],"remask_temperature":[1,0],"sampling_temperature":[1,1],"guidance":[0,1]})",
       R"({"steps":1,"mask_ratio":[1.5],"remask_temperature":[0],"sampling_temperature":[1],"guidance":[0]})",
       R"({"steps":1,"mask_ratio":[0],"remask_temperature":[0],"sampling_temperature":[1],"guidance":[0],"rule":"x"})",
       R"({"steps":1,"mask_ratio":[0],"remask_temperature":[0],"sampling_temperature":[1],"guidance":[0],"extra":1})",
       R"({"steps":"1"})", R"({"steps":1)", "[]", ""}) {
    EXPECT_THROW(make_schedule(write(bad), 0, {}, 4, 4), InputError) << bad;
  }
  EXPECT_THROW(make_schedule("nonsense", 4, {}, 4, 4), InputError);
  EXPECT_THROW(make_schedule("cosine", 0, {}, 4, 4), InputError);
}

TEST(TableSchedule, RowsAreEqualAndCountsAreDouble) {
  const auto schedule = make_table_schedule("linear", linear_table(4, {}));
  const Action a = schedule->next(nullptr, 1, at::zeros({3, 2, 2}));
  EXPECT_EQ(a.mask_ratio.scalar_type(), at::kDouble);
  EXPECT_TRUE(at::equal(a.mask_ratio, at::full({3}, 0.5, at::kDouble)));
  EXPECT_TRUE(at::equal(a.guidance, at::full({3}, 0.5f)));
}

}  // namespace
}  // namespace adanat
