#include "policy/schedule_search.h"

#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <numeric>

#include "kernels/philox.h"
#include "policy/rollout.h"

namespace adanat {

void ScheduleSearchConfig::validate() const {
  require(steps >= 1 && steps <= 1000, "--steps", "1..1000", steps);
  require(method == "random" || method == "evolution", "--method", "random or evolution", method);
  require(candidates >= 1 && candidates <= 100000, "--candidates", "1..100000", candidates);
  require(population >= 1 && population <= candidates, "--population", "1..--candidates", population);
  require(spread > 0, "--spread", "> 0", spread);
  require(mutation > 0, "--mutation", "> 0", mutation);
  require(images >= 2, "--count", ">= 2", images);
  require(final_images == 0 || final_images >= 2, "--final-count", "0, or 2 and more", final_images);
  require(seed >= 0, "--seed", ">= 0", seed);
}

std::vector<size_t> best_tables(const std::vector<SearchedTable>& history, int64_t count) {
  std::vector<size_t> order(history.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return history[a].score < history[b].score; });
  order.resize(std::min(order.size(), size_t(count)));
  return order;
}

std::vector<double> propose_table(const ScheduleSearchConfig& config,
                                  const std::vector<SearchedTable>& history) {
  const auto i = uint32_t(history.size());
  std::vector<double> raw(size_t(config.steps) * 4, 0);
  if (i == 0) return raw;
  const at::Tensor noise = exploration_noise(at::full({1}, config.seed, at::kLong),
                                             at::full({1}, int64_t(i), at::kLong), config.steps)
                               .contiguous();
  const float* normal = noise.const_data_ptr<float>();
  if (config.method == "random" || history.size() < size_t(config.population)) {
    for (size_t k = 0; k < raw.size(); ++k) raw[k] = config.spread * double(normal[k]);
    return raw;
  }
  // A child: half of the numbers of one of the best are moved, at least one.
  const auto best = best_tables(history, config.population);
  const auto pick = kernels::draw(uint64_t(config.seed), 1, 0, i, 0, kernels::Stream::kExploration);
  raw = history[best[kernels::bounded(pick.x, uint32_t(best.size()))]].raw;
  const size_t always = kernels::bounded(pick.y, uint32_t(raw.size()));
  for (size_t k = 0; k < raw.size(); ++k) {
    const auto coin =
        kernels::draw(uint64_t(config.seed), 2, uint32_t(k), i, 0, kernels::Stream::kExploration);
    if (k == always || (coin.x & 1u) != 0) raw[k] += config.mutation * double(normal[k]);
  }
  return raw;
}

ScheduleTable searched_table(const ActionBase& start, const std::vector<double>& raw,
                             const std::string& rule) {
  return table_of(start, 0, at::tensor(raw, at::kDouble).view({-1, 4}), rule);
}

}  // namespace adanat
