// Independent pieces of work on several threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace adanat {

// work(i) for every i in [0, count), in no order, on `threads` threads, this one among them. The first
// exception comes through once all have ended; what had not begun by then is left out.
template <class Work>
void for_each_in_parallel(int64_t count, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  std::mutex lock;
  std::exception_ptr failure;
  const auto run = [&] {
    try {
      for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
    } catch (...) {
      const std::lock_guard guard(lock);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int64_t t = 1; t < std::min(threads, count); ++t) helpers.emplace_back(run);
    run();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace adanat
