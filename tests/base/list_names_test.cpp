// Many names in one line: which are folded, how, and how many are shown.
#include "core/base/list_names.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace adanat {
namespace {

TEST(ListNames, OneNumberBecomesARange) {
  EXPECT_EQ(list_names({"b.0.w", "b.1.w", "b.2.w", "b.3.w"}), "b.{0-3}.w");
  EXPECT_EQ(list_names({"b.0.w", "b.1.w"}), "b.{0,1}.w");
  EXPECT_EQ(list_names({"extra.7", "extra.8", "extra.9"}), "extra.{7-9}");
  EXPECT_EQ(list_names({"0.w", "1.w", "2.w"}), "{0-2}.w");
  EXPECT_EQ(list_names({"b.3.w"}), "b.3.w");
}

TEST(ListNames, TwoNumbersFoldOneAfterTheOther) {
  std::vector<std::string> names;
  for (int level = 0; level < 5; ++level)
    for (int block = 0; block < 2; ++block) names.push_back(cat("up.", level, ".block.", block, ".conv1.w"));
  EXPECT_EQ(list_names(names), "up.{0-4}.block.{0,1}.conv1.w");
  names.pop_back();  // no longer equal at every level
  EXPECT_EQ(list_names(names), "up.{0-4}.block.0.conv1.w, up.{0-3}.block.1.conv1.w");
}

TEST(ListNames, SixNumbersOfANameAreFolded) {
  std::vector<std::string> names;
  for (const char* tail : {"0", "1"})
    for (int bits = 0; bits < 64; ++bits) {
      names.emplace_back("a");
      for (int i = 0; i < 6; ++i) names.back() += cat(".", bits >> i & 1);
      names.back() += cat(".", tail);
    }
  const std::string folded = "a.{0,1}.{0,1}.{0,1}.{0,1}.{0,1}.{0,1}";
  EXPECT_EQ(list_names(names), cat(folded, ".0, ", folded, ".1"));
}

TEST(ListNames, GapsStayGaps) {
  EXPECT_EQ(list_names({"b.0.w", "b.2.w", "b.3.w", "b.4.w"}), "b.{0,2-4}.w");
  EXPECT_EQ(list_names({"b.10.w", "b.0.w", "b.9.w", "b.11.w", "b.5.w"}), "b.{0,5,9-11}.w");  // in any order
  EXPECT_EQ(list_names({"b.0.w", "b.0.w"}), "b.0.w");
}

TEST(ListNames, OnlyWholeNumbersBetweenDotsAreFolded) {
  EXPECT_EQ(list_names({}), "");
  EXPECT_EQ(list_names({"a", "c", "b"}), "a, c, b");
  EXPECT_EQ(list_names({"adaLN1.w", "adaLN2.w"}), "adaLN1.w, adaLN2.w");
  EXPECT_EQ(list_names({"b.00.w", "b.01.w", "b.-1.w", "b.+1.w"}), "b.00.w, b.01.w, b.-1.w, b.+1.w");
  EXPECT_EQ(list_names({"b.99999999999999999998.w", "b.99999999999999999999.w"}),
            "b.99999999999999999998.w, b.99999999999999999999.w");
  EXPECT_EQ(list_names({"b.{0,1}.w", "b.0.w", "b.1.w"}), "b.{0,1}.w, b.{0,1}.w");  // one is called so
  EXPECT_EQ(list_names({"b.{0,1}.3", "b.0.4", "b.1.4"}), "b.{0,1}.3, b.{0,1}.4");
  EXPECT_EQ(list_names({"", ".", ".a.", "..1", "..2"}), ", ., .a., ..{1,2}");
  EXPECT_EQ(list_names({"a.0.w", "a.1.w.x", "a.w"}), "a.0.w, a.1.w.x, a.w");
}

TEST(ListNames, TheOrderIsThatOfTheFirstNames) {
  EXPECT_EQ(list_names({"z.0.b", "z.0.a", "y", "z.1.a", "x.5", "z.1.b"}), "z.{0,1}.b, z.{0,1}.a, y, x.5");
}

TEST(ListNames, CountsTheNamesBeyondAHundred) {
  std::vector<std::string> names;
  for (int i = 0; i < 100; ++i) names.push_back(cat("t", i, ".0"));
  const std::string all = list_names(names);
  EXPECT_TRUE(all.ends_with(", t98.0, t99.0")) << all;
  for (int i = 0; i < 7; ++i) names.push_back(cat("u.", i, ".w"));  // one more to list, of seven names
  EXPECT_EQ(list_names(names), all + " and 7 more");
}

TEST(ListNumbers, RangesFromThreeOn) {
  EXPECT_EQ(list_numbers({}), "");
  EXPECT_EQ(list_numbers({4}), "4");
  EXPECT_EQ(list_numbers({4, 5}), "4,5");
  EXPECT_EQ(list_numbers({0, 1, 2, 7, 9, 10, 11}), "0-2,7,9-11");
  std::vector<int64_t> even;
  for (int64_t i = 0; i < 64; ++i) even.push_back(2 * i);
  EXPECT_TRUE(list_numbers(even).ends_with(",124,126"));
  even.push_back(128);
  EXPECT_TRUE(list_numbers(even).ends_with(",124,126,..."));
}

}  // namespace
}  // namespace adanat
