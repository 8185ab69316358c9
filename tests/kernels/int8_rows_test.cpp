// The loops around an int8 product: rounding, edge values, and the same bits in every instruction set.
#include "kernels/int8_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace adanat::kernels {
namespace {

std::vector<Isa> sets() {
  std::vector<Isa> out;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (isa_available(isa)) out.push_back(isa);
  return out;
}

constexpr int64_t kSizes[] = {0, 1, 31, 33, 257, 1023};

std::vector<float> random_row(int64_t size, float scale, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> row(static_cast<size_t>(size));
  for (float& x : row) x = normal(engine);
  return row;
}

bool same_bits(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

TEST(Int8Rows, AreTheNearestIntegers) {
  for (const Isa isa : sets()) {
    for (const int64_t size : kSizes) {
      for (const float scale : {1e-20f, 0.02f, 3.0f, 1e20f}) {
        const std::vector<float> row = random_row(size, scale, unsigned(size) + 1);
        std::vector<int8_t> q(row.size(), 99);
        const float step = int8_rows(isa).quantize(row.data(), size, q.data());
        float largest = 0;
        for (const float x : row) largest = std::max(largest, std::abs(x));
        EXPECT_FLOAT_EQ(step, largest / 127) << isa_name(isa) << " " << size;
        for (size_t i = 0; i < row.size(); ++i) {
          ASSERT_GE(q[i], -127);
          // Half a step, and what the multiplication by the rounded 127 / max may add to it.
          ASSERT_LE(std::abs(double(row[i]) / step - q[i]), 0.5 + 1e-4) << isa_name(isa) << " " << row[i];
        }
      }
    }
  }
}

TEST(Int8Rows, EdgeValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const Isa isa : sets()) {
    const auto quantize = int8_rows(isa).quantize;
    std::vector<int8_t> q(33, 99);
    EXPECT_TRUE(same_bits(quantize(std::vector<float>(33, 0.0f).data(), 33, q.data()), 0));
    EXPECT_EQ(q, std::vector<int8_t>(33, 0));
    // Too small for 127 / max to be a number: zeros.
    EXPECT_EQ(quantize(std::vector<float>(33, 1e-38f).data(), 33, q.data()), 0);
    EXPECT_EQ(q, std::vector<int8_t>(33, 0));
    for (const float bad : {nan, -nan, inf, -inf}) {
      std::vector<float> row(33, 1.0f);
      row[17] = bad;
      EXPECT_TRUE(std::isnan(quantize(row.data(), 33, q.data()))) << isa_name(isa) << bad;
    }
    std::vector<float> ends(33, 0.5f);
    ends[0] = -127, ends[32] = 126.4f;
    EXPECT_FLOAT_EQ(quantize(ends.data(), 33, q.data()), 1);
    EXPECT_EQ(q[0], -127);
    EXPECT_EQ(q[32], 126);
    EXPECT_EQ(q[5], 0);  // ties go to even
  }
}

TEST(Int8Rows, SumsBecomeFloats) {
  for (const Isa isa : sets()) {
    for (const int64_t size : kSizes) {
      const std::vector<float> scale = random_row(size, 0.01f, 3), bias = random_row(size, 1, 4);
      std::vector<int32_t> sum;
      for (const float x : random_row(size, 1e5f, 5)) sum.push_back(int32_t(x));
      std::vector<float> plain(sum.size()), shifted(sum.size()), gelu(sum.size());
      int8_rows(isa).dequantize(sum.data(), size, 0.02f, scale.data(), nullptr, plain.data());
      int8_rows(isa).dequantize(sum.data(), size, 0.02f, scale.data(), bias.data(), shifted.data());
      int8_rows(isa).dequantize_gelu(sum.data(), size, 0.02f, scale.data(), bias.data(), gelu.data());
      for (size_t j = 0; j < sum.size(); ++j) {
        const double x = double(sum[j]) * 0.02f * double(scale[j]), y = x + double(bias[j]);
        const double g = y * (1 + std::erf(y / std::sqrt(2.0))) / 2;
        // A handful of float roundings.
        ASSERT_NEAR(plain[j], x, 3e-7 * std::abs(x)) << isa_name(isa);
        ASSERT_NEAR(shifted[j], y, 3e-7 * (std::abs(x) + std::abs(y)));
        ASSERT_NEAR(gelu[j], g, 1e-6 * std::max(1.0, std::abs(x)));
      }
    }
  }
}

TEST(Int8Rows, TheSameBitsInEveryInstructionSet) {
  for (const int64_t size : kSizes) {
    const std::vector<float> row = random_row(size, 2, 6), scale = random_row(size, 0.01f, 7);
    std::vector<int32_t> sum;
    for (const float x : random_row(size, 1e4f, 8)) sum.push_back(int32_t(x));
    std::vector<int8_t> q(row.size());
    std::vector<float> out(row.size());
    const float step = int8_rows(Isa::kBaseline).quantize(row.data(), size, q.data());
    int8_rows(Isa::kBaseline).dequantize_gelu(sum.data(), size, step, scale.data(), row.data(), out.data());
    for (const Isa isa : sets()) {
      std::vector<int8_t> other_q(row.size());
      std::vector<float> other(row.size());
      EXPECT_TRUE(same_bits(int8_rows(isa).quantize(row.data(), size, other_q.data()), step));
      EXPECT_EQ(other_q, q) << isa_name(isa) << " " << size;
      int8_rows(isa).dequantize_gelu(sum.data(), size, step, scale.data(), row.data(), other.data());
      for (size_t j = 0; j < out.size(); ++j) ASSERT_TRUE(same_bits(other[j], out[j])) << isa_name(isa);
    }
  }
}

}  // namespace
}  // namespace adanat::kernels
