// The comparator is code too: it must see wrong signs, NaN, infinities, shapes and types.
#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/support.h"

namespace adanat::testing {
namespace {

at::Tensor t(std::vector<double> values) {
  return at::tensor(values, at::kFloat);
}

TEST(Close, AcceptsWhatIsWithinTolerance) {
  EXPECT_TRUE(close(t({1, -2}), t({1.0005, -2}), 1e-3));
  EXPECT_TRUE(close(t({INFINITY, -INFINITY}), t({INFINITY, -INFINITY}), 0));
  EXPECT_TRUE(close(t({}), t({}), 0));
  EXPECT_TRUE(close(at::tensor({1, 2}), at::tensor({1, 2}), 0));
}

TEST(Close, RefusesEverythingElse) {
  EXPECT_FALSE(close(t({-5}), t({-500}), 1e-3));
  EXPECT_FALSE(close(t({-5}), t({5}), 1e-3));
  EXPECT_FALSE(close(t({NAN}), t({1}), 1e9));
  EXPECT_FALSE(close(t({1}), t({NAN}), 1e9));
  EXPECT_FALSE(close(t({NAN}), t({NAN}), 1e9));
  EXPECT_FALSE(close(t({INFINITY}), t({-INFINITY}), 1e9));
  EXPECT_FALSE(close(t({INFINITY}), t({1}), 1e9));
  EXPECT_FALSE(close(t({1, 1}), t({1}), 1e9));  // no broadcasting
  EXPECT_FALSE(close(at::tensor({1}), t({1}), 1e9));
  EXPECT_FALSE(close(t({1, 1.002}), t({1, 1}), 1e-3));
}

TEST(Procedural, MatchesTheRecordedRule) {
  const auto j = nlohmann::json::parse(std::ifstream(golden_dir() / "procedural.json"));
  int checked = 0;
  for (const auto& item : j.at("fill")) {
    const auto name = item.at("name").get<std::string>();
    const auto shape = item.at("shape").get<std::vector<int64_t>>();
    const at::Tensor value = procedural_weight(name, shape).to(at::kDouble);
    EXPECT_NEAR(value.sum().item<double>(), item.at("sum_f64_of_f32").get<double>(), 1e-9) << name;
    ++checked;
  }
  EXPECT_GT(checked, 3);
}

}  // namespace
}  // namespace adanat::testing
