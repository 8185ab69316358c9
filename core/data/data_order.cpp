#include "core/data/data_order.h"

#include <algorithm>
#include <utility>

#include "kernels/philox.h"

namespace adanat {
namespace {

kernels::Philox4 draw_item(uint64_t seed, int64_t epoch, int64_t item) {
  return kernels::draw(seed, 0, static_cast<uint32_t>(item), static_cast<uint32_t>(epoch), 0,
                       kernels::Stream::kData);
}

}  // namespace

std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t size) {
  std::vector<std::pair<uint64_t, int64_t>> keyed(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const kernels::Philox4 words = draw_item(seed, epoch, i);
    keyed[static_cast<size_t>(i)] = {static_cast<uint64_t>(words.x) << 32 | words.y, i};
  }
  std::sort(keyed.begin(), keyed.end());
  std::vector<int64_t> order(keyed.size());
  std::transform(keyed.begin(), keyed.end(), order.begin(), [](const auto& pair) { return pair.second; });
  return order;
}

bool is_flipped(uint64_t seed, int64_t epoch, int64_t item) {
  return draw_item(seed, epoch, item).z >> 31 != 0;
}

}  // namespace adanat
