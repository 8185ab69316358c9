#include "policy/update_rollouts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <vector>

namespace adanat {

UpdateRollouts::Draws UpdateRollouts::draws(int64_t update, int64_t begin, int64_t count,
                                            int64_t steps) const {
  Draws out;
  out.seed =
      at::full({count}, int64_t(options_.seed) + (update / kIndicesPerUpdate << 32), env_.long_options());
  const int64_t first = update % kIndicesPerUpdate * kIndicesPerUpdate + begin;
  out.index = env_.arange(first, count) + options_.first;
  out.classes = env_.labels().defined()
                    ? env_.labels().index_select(0, label_draws(out.seed, out.index, env_.labels().size(0)))
                    : label_draws(out.seed, out.index, env_.sizes().classes);
  out.noise = exploration_noise(out.seed, out.index, steps);
  return out;
}

UpdateSamples UpdateRollouts::make(int64_t update, int64_t begin, int64_t count, int64_t steps, double std,
                                   StateBuffer* states, DeferredChecks& checks) {
  const PolicySchedule& policy =
      policies_.try_emplace(steps, settings_, actor_, steps, env_.device()).first->second;
  std::vector<at::Tensor> tokens, classes, raw, log_prob, means;
  for (int64_t done = 0; done < count; done += options_.batch) {
    const int64_t size = std::min(options_.batch, count - done);
    const Draws d = draws(update, begin + done, size, steps);
    SamplerStart start = env_.start_of(d.classes, 0, d.index);
    start.seed = d.seed;
    const RolloutSchedule schedule(policy, d.noise, std, options_.round_features);
    std::vector<SamplerObserver*> observers;
    if (states != nullptr) {
      states->expect(done, start.condition);
      observers.push_back(states);
    }
    tokens.push_back(sampling_loop(env_.generator(), start, schedule, schedule.priority(), observers));
    check_drawn(tokens.back(), env_.generator().mask_id(), checks);
    // What was not drawn must not reach tables of codes before somebody hears of it.
    tokens.back() = tokens.back().clamp_max(env_.generator().mask_id() - 1);
    classes.push_back(d.classes);
    const Decisions decided = schedule.decisions();
    raw.push_back(decided.raw), log_prob.push_back(decided.log_prob), means.push_back(decided.mean_actions);
  }
  return {at::cat(tokens), at::cat(classes), {at::cat(raw, 1), at::cat(log_prob, 1), at::cat(means, 1)}};
}

}  // namespace adanat
