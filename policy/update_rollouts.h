// The samples of one update of policy training: which they are, and rolling them out.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>

#include "core/nn/deferred_checks.h"
#include "policy/environment.h"
#include "policy/policy_schedule.h"
#include "policy/rollout.h"

namespace adanat {

// Image indices of an update lie below this, so that 65536 updates fit into the 32 bits of a Philox counter.
inline constexpr int64_t kIndicesPerUpdate = 65536;

struct UpdateRolloutsOptions {
  uint64_t seed = 0;
  int64_t first = 0;  // number of this process's first sample of an update
  int64_t batch = 1;  // samples made at a time
  // Whether the policy reads features as a state buffer keeps them, in bfloat16 (StateMemory).
  bool round_features = false;
};

// Samples of an update that were made. B in all.
struct UpdateSamples {
  at::Tensor tokens, classes;  // (B, N) ids in [0, V), and (B): both i64
  Decisions decisions;
};

// Every draw is a function of the seed, the update and the sample's number in it. Not thread-safe.
class UpdateRollouts {
 public:
  // `env`, `settings` and `actor` outlive it; the actor's weights may change between rollouts.
  UpdateRollouts(PolicyEnvironment& env, const PolicySettings& settings, const PolicyNetwork& actor,
                 UpdateRolloutsOptions options)
      : env_(env), settings_(settings), actor_(actor), options_(options) {}

  // Samples [begin, begin + count) of an update in `steps` steps, begin + count <= kIndicesPerUpdate, with
  // exploration of width `std` (0: the mean action). `states`, or null, is shown them. A logit that is not a
  // number is noted in `checks`. On a GPU nothing waits.
  UpdateSamples make(int64_t update, int64_t begin, int64_t count, int64_t steps, double std,
                     StateBuffer* states, DeferredChecks& checks);

 private:
  struct Draws {
    at::Tensor seed, index, classes;  // (B) i64
    at::Tensor noise;                 // (B, T, 4) f32
  };
  Draws draws(int64_t update, int64_t begin, int64_t count, int64_t steps) const;

  PolicyEnvironment& env_;
  const PolicySettings& settings_;
  const PolicyNetwork& actor_;
  UpdateRolloutsOptions options_;
  std::map<int64_t, PolicySchedule> policies_;  // by their steps: made once, since that asks a GPU
};

}  // namespace adanat
