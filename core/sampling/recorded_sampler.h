// sample() for a GPU: all steps of a run as one launch.
#pragma once
#include <cstdint>
#include <list>
#include <memory>
#include <tuple>

#include "core/sampling/sampler.h"
#include "kernels/recording.h"

namespace adanat {

// Keeps what it records for one generator, whose weights must not change meanwhile, and one schedule: that of
// the last run. The first run of a shape (batch, about as many distinct conditions) goes step by step, which
// also prepares the libraries; the second one is recorded, and replayed from then on. Where nothing can
// record, where the start does not know its classes or an observer reads the steps, it is sample(). Not
// thread-safe.
class RecordedSampler {
 public:
  explicit RecordedSampler(GeneratorImpl& generator) : generator_(generator) {}

  // As sample(), with the same errors: the same tokens, whether a run is replayed or goes step by step. (On a
  // GPU a few more rows go through step 0 in both, which may turn the draws that are nearly ties against
  // sample().)
  at::Tensor sample(const SamplerStart& start, const Schedule& schedule,
                    const std::vector<SamplerObserver*>& observers = {});

  // Runs that were replayed.
  int64_t replays() const { return replays_; }

 private:
  // {serial of the schedule, batch, tokens, the same in all samples, distinct conditions}.
  using Shape = std::tuple<uint64_t, int64_t, int64_t, bool, int64_t>;
  struct Entry {
    Shape shape;
    SamplerStart start;                             // what the recording reads
    std::optional<at::Tensor> priority;             // as well
    at::Tensor proposals;                           // what it writes
    std::unique_ptr<kernels::Recording> recording;  // null after the first run
    bool refused = false;                           // nothing can record it
  };

  void record(Entry& entry, const SamplerStart& start, const Schedule& schedule);

  GeneratorImpl& generator_;
  std::list<Entry> entries_;  // the one last used comes first
  int64_t replays_ = 0;
};

}  // namespace adanat
