#include "policy/schedule_search.h"

#include <gtest/gtest.h>

#include <cmath>

namespace adanat {
namespace {

ScheduleSearchConfig config(const std::string& method) {
  ScheduleSearchConfig out;
  out.steps = 2;
  out.method = method;
  out.candidates = 300, out.population = 8;
  out.spread = 0.5, out.mutation = 0.3;
  out.seed = 3;
  return out;
}

// The best table lies 1 away from the start in each of the 8 numbers.
double score(const std::vector<double>& raw) {
  double sum = 0;
  for (size_t i = 0; i < raw.size(); ++i) sum += std::pow(raw[i] - (i % 2 == 0 ? 1 : -1), 2);
  return sum;
}

std::vector<SearchedTable> search(const ScheduleSearchConfig& c, int64_t count,
                                  std::vector<SearchedTable> history = {}) {
  while (int64_t(history.size()) < count) {
    SearchedTable next{propose_table(c, history), 0};
    next.score = score(next.raw);
    history.push_back(next);
  }
  return history;
}

TEST(ScheduleSearch, BeginsAtTheStart) {
  EXPECT_EQ(propose_table(config("random"), {}), std::vector<double>(8, 0));
  const ActionBase base = table_base(cosine_table(2, {}));
  EXPECT_EQ(searched_table(base, std::vector<double>(8, 0), "maskgit"), cosine_table(2, {}));
}

TEST(ScheduleSearch, EvolutionFindsWhatRandomSearchDoesNot) {
  const auto random = search(config("random"), 300), evolved = search(config("evolution"), 300);
  EXPECT_EQ(random[0].score, 8);
  EXPECT_LT(random[best_tables(random, 1)[0]].score, 5);
  EXPECT_LT(evolved[best_tables(evolved, 1)[0]].score, 0.4);
  EXPECT_GT(random[best_tables(random, 1)[0]].score, 1);
}

TEST(ScheduleSearch, GoesOnFromItsHistory) {
  const auto whole = search(config("evolution"), 60);
  auto part = search(config("evolution"), 23);
  part = search(config("evolution"), 60, part);
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_EQ(whole[i].raw, part[i].raw) << i;
}

TEST(ScheduleSearch, TheBestInOrder) {
  std::vector<SearchedTable> history = {{{}, 3}, {{}, 1}, {{}, 2}, {{}, 1}};
  EXPECT_EQ(best_tables(history, 3), (std::vector<size_t>{1, 3, 2}));
  EXPECT_EQ(best_tables(history, 9).size(), 4u);
}

}  // namespace
}  // namespace adanat
