#include "core/train/first_difference.h"

#include <gtest/gtest.h>

namespace adanat {
namespace {

TEST(FirstDifference, NamesTheKeyAndBothSides) {
  const Json a = {{"loop", 1}, {"model", {{"depth", 2}, {"width", 8}}}};
  EXPECT_FALSE(first_difference(a, a));
  Json b = a;
  b["model"]["width"] = 9;
  const auto found = first_difference(a, b);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->key, "model.width");
  EXPECT_EQ(found->first, 8);
  EXPECT_EQ(found->second, 9);
}

TEST(FirstDifference, MissingKeysDifferOnEitherSide) {
  const Json whole = {{"model", {{"depth", 2}}}}, empty = {{"model", Json::object()}};
  for (const bool swapped : {false, true}) {
    const auto found = swapped ? first_difference(empty, whole) : first_difference(whole, empty);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->key, "model.depth");
    EXPECT_TRUE((swapped ? found->first : found->second).is_null());
  }
  EXPECT_EQ(first_difference({{"a", Json::object()}}, {{"a", 1}})->key, "a");
  EXPECT_EQ(first_difference(1, 2)->key, "");
}

TEST(FirstDifference, IgnoresKeysByTheirWholeNames) {
  const Json a = {{"run", 1}, {"model", {{"run", 1}}}}, b = {{"run", 2}, {"model", {{"run", 1}}}};
  EXPECT_FALSE(first_difference(a, b, {"run"}));
  EXPECT_FALSE(first_difference({{"run", 1}}, Json::object(), {"run"}));
  EXPECT_FALSE(first_difference(Json::object(), {{"run", 1}}, {"run"}));
  EXPECT_EQ(first_difference(a, {{"run", 2}, {"model", {{"run", 3}}}}, {"run"})->key, "model.run");
  EXPECT_FALSE(first_difference(a, {{"run", 1}, {"model", {{"run", 3}}}}, {"model.run"}));
  EXPECT_EQ(first_difference(a, b, {"model.run"})->key, "run");
}

}  // namespace
}  // namespace adanat
