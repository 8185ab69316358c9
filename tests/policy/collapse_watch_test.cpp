#include "policy/collapse_watch.h"

#include <gtest/gtest.h>

#include <cmath>

namespace adanat {
namespace {

using Figures = std::map<std::string, double>;
constexpr double kStd = 0.4;

// A healthy update's figures.
Figures healthy() {
  return {{"clip_share", 0.1},      {"accuracy_real", 0.8},     {"accuracy_fake", 0.7},
          {"actions/spread", 0.05}, {"code_perplexity", 400.0}, {"classes_seen", 40.0}};
}

Figures with(const std::string& key, double value) {
  Figures out = healthy();
  out[key] = value;
  return out;
}

// The only warning of an update after a healthy one, "" if there is none.
std::string after_healthy(const Figures& figures, double std = kStd, bool shared = false) {
  CollapseWatch watch(shared);
  EXPECT_TRUE(watch.look(0, 0, kStd, healthy()).empty());
  const std::vector<std::string> said = watch.look(1, 1, std, figures);
  EXPECT_LE(said.size(), 1u);
  return said.empty() ? "" : said[0];
}

TEST(CollapseWatch, SaysNothingOfAHealthyRun) {
  EXPECT_EQ(after_healthy(healthy()), "");
  EXPECT_EQ(after_healthy({}), "");
  EXPECT_EQ(after_healthy(with("clip_share", std::nan(""))), "");
}

TEST(CollapseWatch, NamesEachSign) {
  EXPECT_NE(after_healthy(with("clip_share", 0.51)).find("clipped; lower ppo.learning_rate"),
            std::string::npos);
  EXPECT_NE(after_healthy(healthy(), 0.019).find("exploration is down to 0.019"), std::string::npos);
  EXPECT_NE(after_healthy(with("code_perplexity", 199)).find("perplexity 199, was 400"), std::string::npos);
  EXPECT_NE(after_healthy(with("classes_seen", 27)).find("27 recognised, 40 at the start"),
            std::string::npos);
  EXPECT_EQ(after_healthy(with("classes_seen", 28)), "");
  EXPECT_NE(after_healthy(with("actions/spread", 0.002)).find("no longer differ"), std::string::npos);
  EXPECT_EQ(after_healthy(with("actions/spread", 0.003)), "");
  EXPECT_EQ(after_healthy(with("actions/spread", 0), kStd, /*shared=*/true), "");
}

TEST(CollapseWatch, LooksAtEachDiscriminatorOfASum) {
  Figures one = healthy();
  one["accuracy_real"] = one["accuracy_fake"] = 1;
  EXPECT_NE(after_healthy(one).find("the discriminator tells every"), std::string::npos);
  Figures parts = one;
  parts["discriminator/conv.accuracy_real"] = parts["discriminator/conv.accuracy_fake"] = 0.8;
  EXPECT_EQ(after_healthy(parts), "");
  parts["discriminator/features.accuracy_real"] = parts["discriminator/features.accuracy_fake"] = 0.995;
  EXPECT_NE(after_healthy(parts).find("the discriminator features tells every"), std::string::npos);
  parts["discriminator/features.accuracy_fake"] = 0.9;
  EXPECT_EQ(after_healthy(parts), "");
}

TEST(CollapseWatch, ANewPolicyMayStayUniformForAWhile) {
  CollapseWatch watch;
  EXPECT_TRUE(watch.look(60, 49, kStd, with("actions/spread", 0)).empty());
  EXPECT_EQ(watch.look(61, 50, kStd, with("actions/spread", 0)).size(), 1u);
}

TEST(CollapseWatch, RepeatsItselfOnlyAfterAWhileAndRemembersAcrossAStop) {
  CollapseWatch watch;
  EXPECT_TRUE(watch.look(0, 0, kStd, healthy()).empty());
  const Figures bad = with("code_perplexity", 100);
  EXPECT_EQ(watch.look(5, 5, kStd, bad).size(), 1u);
  EXPECT_TRUE(watch.look(104, 104, kStd, bad).empty());
  EXPECT_EQ(watch.look(105, 105, kStd, bad).size(), 1u);

  CollapseWatch resumed;
  resumed.restore(watch.state());
  EXPECT_EQ(resumed.look(106, 106, kStd, bad).size(), 1u);
}

}  // namespace
}  // namespace adanat
