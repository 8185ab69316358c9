#include "core/sampling/recorded_sampler.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <array>

#include "core/base/log.h"

namespace adanat {
namespace {

// Each holds the activations of a whole run in memory of its own: few, but enough for a full and a last batch
// of several classes.
constexpr size_t kMostShapes = 4;

// Every tensor of a start that the loop reads.
std::array<at::Tensor*, 7> tensors_of(SamplerStart& start) {
  return {&start.tokens,      &start.condition,        &start.empty,         &start.seed,
          &start.image_index, &start.classes.distinct, &start.classes.row_of};
}

}  // namespace

void RecordedSampler::record(Entry& entry, const SamplerStart& start, const Schedule& schedule) {
  entry.start = start;
  for (at::Tensor* kept : tensors_of(entry.start)) *kept = kept->clone();
  entry.start.classes.of = entry.start.condition;
  entry.proposals = at::empty_like(start.tokens);
  entry.priority = schedule.priority();
  if (entry.priority.has_value()) entry.priority = entry.priority->to(start.tokens.device());
  try {
    entry.recording = kernels::record(start.tokens.device(), [this, &entry, &schedule] {
      entry.proposals.copy_(sampling_loop(generator_, entry.start, schedule, entry.priority));
    });
  } catch (const c10::Error& e) {
    const std::string why = e.what_without_backtrace();
    warning(cat("the steps of a generation cannot be recorded as one launch, which only costs time (",
                why.substr(0, why.find('\n')), ")"));
  }
  entry.refused = entry.recording == nullptr;
}

at::Tensor RecordedSampler::sample(const SamplerStart& start, const Schedule& schedule,
                                   const std::vector<SamplerObserver*>& observers) {
  const bool watched =
      std::any_of(observers.begin(), observers.end(), [](const auto* o) { return o->reads_steps(); });
  const bool known = start.classes.of.is_same(start.condition);
  if (watched || !known) return adanat::sample(generator_, start, schedule, observers);

  const Shape shape{schedule.serial(), start.tokens.size(0), start.tokens.size(1), start.same_tokens,
                    start.classes.distinct.size(0)};
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.shape == shape; });
  if (found == entries_.end()) {
    entries_.emplace_front().shape = shape;
    if (entries_.size() > kMostShapes) entries_.pop_back();
    return adanat::sample(generator_, start, schedule, observers);
  }
  entries_.splice(entries_.begin(), entries_, found);
  Entry& entry = entries_.front();
  const bool fresh = entry.recording == nullptr && !entry.refused;
  if (fresh) record(entry, start, schedule);
  if (entry.refused) return adanat::sample(generator_, start, schedule, observers);
  if (!fresh) {
    SamplerStart now = start;
    const auto to = tensors_of(entry.start), from = tensors_of(now);
    for (size_t i = 0; i < to.size(); ++i) to[i]->copy_(*from[i], /*non_blocking=*/true);
  }
  entry.recording->replay();
  ++replays_;
  const at::Tensor proposals = entry.proposals.clone();  // the next replay writes there again
  check_drawn(proposals, generator_.mask_id());
  return proposals;
}

}  // namespace adanat
