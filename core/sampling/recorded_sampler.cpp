#include "core/sampling/recorded_sampler.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <array>

#include "core/base/log.h"

namespace adanat {
namespace {

// Each holds the activations of a whole run in memory of its own: few, but enough for a full and a last batch
// of several classes.
constexpr size_t kMostShapes = 4;

// As `start`, with distinct conditions up to a multiple of 8 or the batch: their number differs from batch to
// batch where classes are drawn at random, and each would be a recording. A few rows are computed for
// nothing.
SamplerStart with_even_conditions(SamplerStart start) {
  constexpr int64_t kMultiple = 8;
  at::Tensor& distinct = start.classes.distinct;
  const int64_t count = distinct.size(0), batch = start.tokens.size(0);
  const int64_t extra = std::min((count + kMultiple - 1) / kMultiple * kMultiple, batch) - count;
  if (extra <= 0) return start;
  std::vector<int64_t> sizes = distinct.sizes().vec();
  sizes[0] = extra;
  distinct = at::cat({distinct, distinct.narrow(0, 0, 1).expand(sizes)});
  return start;
}

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
    warning(cat("the steps of a generation cannot be recorded as one launch, and go one by one (",
                why.substr(0, why.find('\n')), ")"));
  }
  entry.refused = entry.recording == nullptr;
  if (entry.refused) entry.start = {}, entry.priority = std::nullopt, entry.proposals = at::Tensor();
}

at::Tensor RecordedSampler::sample(const SamplerStart& start, const Schedule& schedule,
                                   const std::vector<SamplerObserver*>& observers) {
  const bool watched =
      std::any_of(observers.begin(), observers.end(), [](const auto* o) { return o->reads_steps(); });
  const bool known = start.classes.of.is_same(start.condition);
  if (!known) return adanat::sample(generator_, start, schedule, observers);

  SamplerStart now = with_even_conditions(start);
  // On a GPU every run has the sizes of the recorded one: libraries sum other sizes in another order, and
  // have their plans for these when it is recorded. A CPU records nothing.
  const SamplerStart& stepped = start.tokens.is_cuda() ? now : start;
  if (watched) return adanat::sample(generator_, stepped, schedule, observers);
  const Shape shape{schedule.serial(), now.tokens.size(0), now.tokens.size(1), now.same_tokens,
                    now.classes.distinct.size(0)};
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.shape == shape; });
  if (found == entries_.end()) {
    // One schedule is in use at a time (a search comes back to none): what others left only takes memory.
    entries_.remove_if([&](const Entry& e) { return std::get<0>(e.shape) != schedule.serial(); });
    entries_.emplace_front().shape = shape;
    if (entries_.size() > kMostShapes) entries_.pop_back();
    return adanat::sample(generator_, stepped, schedule, observers);
  }
  entries_.splice(entries_.begin(), entries_, found);
  Entry& entry = entries_.front();
  const bool fresh = entry.recording == nullptr && !entry.refused;
  if (fresh) record(entry, now, schedule);
  if (entry.refused) return adanat::sample(generator_, stepped, schedule, observers);
  if (!fresh) {
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
