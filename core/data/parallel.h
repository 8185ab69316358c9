// Decoding many images at once.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace adanat {

// work(i) for every i in [0, count), in no order, on as many threads as there are cores (this one among them,
// eight at most). work must not throw.
template <class Work>
void for_each_in_parallel(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
  };
  std::vector<std::jthread> helpers;
  const auto threads = int64_t(std::clamp(std::thread::hardware_concurrency(), 1u, 8u));
  for (int64_t t = 1; t < std::min(threads, count); ++t) helpers.emplace_back(run);
  run();
}

}  // namespace adanat
