#include "kernels/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "kernels/decode_step_row.h"
#include "kernels/isa.h"

namespace adanat::kernels {
namespace {

// Random123's kat_vectors, philox4x32 10 rounds.
TEST(Philox, KnownAnswers) {
  const auto expect = [](Philox4 counter, uint64_t key, std::vector<uint32_t> words) {
    const Philox4 r = philox4x32_10(counter, key);
    EXPECT_EQ(words, (std::vector<uint32_t>{r.x, r.y, r.z, r.w}));
  };
  expect({0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect({~0u, ~0u, ~0u, ~0u}, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822ull,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Philox, DrawPutsStepAndStreamIntoTheLastWord) {
  const Philox4 a = draw(7, 1, 2, 3, 5, Stream::kData), b = philox4x32_10({1, 2, 3, 5u | 3u << 16}, 7);
  EXPECT_EQ(a.x, b.x);
  EXPECT_EQ(a.w, b.w);
}

TEST(Philox, EveryCoordinateChangesTheDraw) {
  std::set<uint32_t> seen;
  seen.insert(draw(1, 0, 0, 0, 0, Stream::kToken).x);
  seen.insert(draw(2, 0, 0, 0, 0, Stream::kToken).x);
  seen.insert(draw(1ull << 32 | 1, 0, 0, 0, 0, Stream::kToken).x);
  seen.insert(draw(1, 1, 0, 0, 0, Stream::kToken).x);
  seen.insert(draw(1, 0, 1, 0, 0, Stream::kToken).x);
  seen.insert(draw(1, 0, 0, 1, 0, Stream::kToken).x);
  seen.insert(draw(1, 0, 0, 0, 1, Stream::kToken).x);
  seen.insert(draw(1, 0, 0, 0, 0, Stream::kConfidence).x);
  seen.insert(draw(1, 0, 0, 0, 0, Stream::kExploration).x);
  seen.insert(draw(1, 0, 0, 0, 0, Stream::kData).x);
  EXPECT_EQ(seen.size(), 10u);
}

TEST(Noise, UniformStaysStrictlyInsideTheUnitInterval) {
  EXPECT_EQ(unit_open(0), 0x1p-24f);
  EXPECT_EQ(unit_open(~0u), 1.0f - 0x1p-24f);
  EXPECT_LT(unit_open(~0u), 1.0f);
  EXPECT_EQ(unit_open(0x80000000u), 0.5f + 0x1p-24f);
}

TEST(Noise, GumbelRange) {
  EXPECT_NEAR(gumbel(0), -2.8114, 1e-3);
  EXPECT_NEAR(gumbel(~0u), 16.6355, 1e-3);
}

// Every value the noise can take (2^23), against libm in float64.
TEST(Noise, GumbelIsAccurateOverAllItsArguments) {
  double worst = 0, worst_log_ulp = 0;
  for (uint32_t k = 0; k < (1u << 23); ++k) {
    const uint32_t bits = k << 9;
    const double u = (static_cast<double>(k) + 0.5) * 0x1p-23;
    const double u32 = static_cast<double>(unit_open(bits));
    ASSERT_NEAR(u32, u, 0x1p-24 * u);
    const double exact_log = std::log(u32);
    const double ulp = std::ldexp(1.0, std::ilogb(exact_log) - 23);
    worst_log_ulp =
        std::max(worst_log_ulp, std::abs(static_cast<double>(log_rn(unit_open(bits))) - exact_log) / ulp);
    worst = std::max(worst, std::abs(static_cast<double>(gumbel(bits)) + std::log(-exact_log)));
  }
  EXPECT_LT(worst_log_ulp, 2.0) << "log_rn, in units of the last place";
  EXPECT_LT(worst, 2e-6) << "gumbel, absolute";  // its values reach 16.6, whose last place is 1.9e-6
  RecordProperty("log_ulp", std::to_string(worst_log_ulp));
  RecordProperty("gumbel_abs", std::to_string(worst));
}

TEST(Noise, ExpIsAccurate) {
  EXPECT_EQ(exp_nonpositive_rn(0.0f), 1.0f);
  double worst = 0;
  for (int i = 0; i <= 870000; ++i) {
    const float x = -1e-4f * static_cast<float>(i);
    if (x < -87.0f) break;
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(exp_nonpositive_rn(x)) - exact) / exact);
  }
  EXPECT_LT(worst, 3e-7);
  EXPECT_LT(exp_nonpositive_rn(-kInfinity), 2e-38f);
  EXPECT_LT(exp_nonpositive_rn(-1e30f), 2e-38f);
}

TEST(Noise, BoundedCoversTheRange) {
  EXPECT_EQ(bounded(0, 7), 0u);
  EXPECT_EQ(bounded(~0u, 7), 6u);
  EXPECT_EQ(bounded(~0u, 1), 0u);
  EXPECT_EQ(bounded(0x80000000u, 10), 5u);
}

class EachIsa : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam())) GTEST_SKIP() << isa_name(GetParam()) << " is not available here";
  }
};

TEST_P(EachIsa, NoiseHasTheBitsOfTheDefinition) {
  for (int64_t vocab : {1, 31, 257, 1024, 1500}) {
    RowInput row;
    row.vocab = vocab;
    row.seed = 0xfedcba9876543210ull;
    row.position = 255;
    row.image = 0xfffffff0u;
    row.step = 65535;
    std::vector<float> noise(static_cast<size_t>(row_scratch_size(vocab) / 2));
    noise_function(GetParam())(row, noise.data());
    for (int64_t v = 0; v < vocab; ++v) {
      const Philox4 words =
          draw(row.seed, static_cast<uint32_t>(v / 4), 255, row.image, 65535, Stream::kToken);
      const uint32_t word[4] = {words.x, words.y, words.z, words.w};
      ASSERT_EQ(float_bits(noise[static_cast<size_t>(v)]), float_bits(gumbel(word[v % 4]))) << "code " << v;
    }
  }
}

TEST_P(EachIsa, RowsHaveTheBitsOfTheBaseline) {
  for (int64_t vocab : {1, 31, 33, 64, 257, 1023, 1024}) {
    std::vector<float> cond(static_cast<size_t>(vocab)), uncond(cond.size());
    std::vector<uint16_t> half(cond.size());
    std::vector<float> scratch(static_cast<size_t>(row_scratch_size(vocab)));
    for (uint32_t trial = 0; trial < 200; ++trial) {
      for (size_t v = 0; v < cond.size(); ++v) {
        const Philox4 words = draw(trial, static_cast<uint32_t>(v), 0, 0, 0, Stream::kData);
        cond[v] = 8.0f * unit_open(words.x);
        uncond[v] = 8.0f * unit_open(words.y);
        half[v] = static_cast<uint16_t>(0x3c00u + (words.z >> 20));  // a finite half and a finite bfloat16
      }
      RowInput row;
      row.cond = cond.data();
      row.vocab = vocab;
      row.seed = trial;
      row.position = trial;
      row.temperature = trial % 5 == 0 ? 0.0f : 0.3f + 0.01f * static_cast<float>(trial);
      if (trial % 2 == 0) row.uncond = uncond.data(), row.guidance = 1.7f;
      if (trial % 4 == 1)
        row.cond = half.data(), row.type = trial % 8 == 1 ? LogitType::kBFloat16 : LogitType::kFloat16;
      const RowDraw expected = row_function(Isa::kBaseline)(row, scratch.data());
      const RowDraw actual = row_function(GetParam())(row, scratch.data());
      ASSERT_EQ(expected.id, actual.id) << "vocab " << vocab << " trial " << trial;
      ASSERT_EQ(float_bits(expected.log_prob), float_bits(actual.log_prob))
          << "vocab " << vocab << " trial " << trial;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, EachIsa, ::testing::Values(Isa::kBaseline, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& info) {
                           return std::string(info.param == Isa::kBaseline ? "baseline"
                                              : info.param == Isa::kAvx2   ? "avx2"
                                                                           : "avx512");
                         });

// All 65536 halves and bfloat16s against the compiler's own conversion.
TEST(LogitTypes, HalfPrecisionConversionIsExact) {
  for (uint32_t h = 0; h < 0x10000u; ++h) {
    _Float16 half;
    const auto stored = static_cast<uint16_t>(h);
    std::memcpy(&half, &stored, sizeof(half));
    const float expected = static_cast<float>(half), actual = Float16::load(stored);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << h;
    } else {
      ASSERT_EQ(float_bits(expected), float_bits(actual)) << h;
    }
    ASSERT_EQ(float_bits(BFloat16::load(stored)), h << 16);
  }
}

}  // namespace
}  // namespace adanat::kernels
