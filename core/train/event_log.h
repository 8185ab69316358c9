// What a run reports: log.jsonl (one object per line) and TensorBoard event files, side by side in one
// folder.
#pragma once
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/io/image.h"

namespace adanat {

using Scalars = std::vector<std::pair<std::string, double>>;

// Not thread-safe. Throws InputError if the folder cannot be written, RunError if the disk is full.
class EventLog {
 public:
  // Continues logs that are there: lines of log.jsonl whose step is >= first_step (a run that went on after
  // the checkpoint that is now resumed) are dropped; a new event file is begun that TensorBoard merges.
  EventLog(const std::filesystem::path& folder, int64_t first_step);
  ~EventLog();

  // One line {"step":..,"time":..(unix seconds),"name":value,..}; non-finite values are written as null.
  // `kind` is stored under "kind" ("train", "evaluate") and put in front of the TensorBoard tag
  // ("train/loss").
  void scalars(int64_t step, const std::string& kind, const Scalars& values);
  void image(int64_t step, const std::string& tag, const Image& image);
  void text(int64_t step, const std::string& tag, const std::string& text);
  void flush();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace adanat
