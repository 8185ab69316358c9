// What a process takes, for the benchmarks that report memory.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

namespace adanat {

// A line of /proc/self/status in MiB: "VmRSS" (all that is resident), "RssAnon" (of it, what the process
// wrote itself), "RssFile" (of it, pages of mapped files).
inline double memory_mib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == key + ":") return status >> word, std::stod(word) / 1024;
  return 0;
}

// Looks at RssAnon every millisecond while it lives.
class MostAnonymous {
 public:
  MostAnonymous() {
    watcher_ = std::thread([this] {
      while (!done_) {
        most_ = std::max(most_, memory_mib("RssAnon"));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  ~MostAnonymous() {
    if (watcher_.joinable()) stop_mib();
  }
  // The most seen, in MiB. Once.
  double stop_mib() {
    done_ = true;
    watcher_.join();
    return std::max(most_, memory_mib("RssAnon"));
  }

 private:
  double most_ = 0;
  std::atomic<bool> done_{false};
  std::thread watcher_;
};

}  // namespace adanat
