// numpy's legacy random stream, so that subsets and shuffles are those of the Python tools bit for bit.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace adanat {

// numpy.random.RandomState(seed): the Mersenne twister of the standard, and numpy's masked rejection on top
// of it. Not thread-safe.
class RandomState {
 public:
  explicit RandomState(uint32_t seed) : engine_(seed) {}
  // RandomState.permutation(count), count in 0..2^32.
  std::vector<int64_t> permutation(int64_t count);
  // RandomState.choice(count, size, replace=False): the head of a whole permutation. RunError if size >
  // count.
  std::vector<int64_t> choice(int64_t count, int64_t size);

 private:
  std::mt19937 engine_;
};

}  // namespace adanat
