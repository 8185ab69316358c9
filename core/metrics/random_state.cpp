#include "core/metrics/random_state.h"

#include <numeric>
#include <utility>

#include "core/base/error.h"

namespace adanat {

std::vector<int64_t> RandomState::permutation(int64_t count) {
  if (count < 0 || count > (int64_t{1} << 32))
    throw RunError(cat("permutation: cannot order ", count, " items"));
  std::vector<int64_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), int64_t{0});
  for (int64_t i = count - 1; i >= 1; --i) {
    // The smallest 2^k - 1 that holds i; draws above i are thrown away.
    uint32_t mask = uint32_t(i);
    for (const int shift : {1, 2, 4, 8, 16}) mask |= mask >> shift;
    uint32_t value;
    do value = uint32_t(engine_()) & mask;
    while (int64_t(value) > i);
    std::swap(out[size_t(i)], out[value]);
  }
  return out;
}

std::vector<int64_t> RandomState::choice(int64_t count, int64_t size) {
  if (size < 0 || size > count)
    throw RunError(cat("choice: cannot take ", size, " different items out of ", count));
  std::vector<int64_t> out = permutation(count);
  out.resize(size_t(size));
  return out;
}

}  // namespace adanat
