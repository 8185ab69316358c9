#include "core/train/precision.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/train/random_state.h"
#include "core/train/recipe.h"

namespace adanat {
namespace {

// A GPU returns from step() before its work is done.
void wait_for(at::Device device) {
  if (device.is_cuda()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

constexpr double kNever = std::numeric_limits<double>::infinity();

// The state of a run that updates are tried from.
struct Origin {
  TensorMap state, random;
  at::Device device = at::kCPU;

  explicit Origin(const Recipe& recipe) {
    recipe.save(state);
    for (auto& [name, tensor] : state) {
      if (tensor.is_cuda()) device = tensor.device();
      // Not on a GPU, whose memory the run may need to the last.
      tensor = tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
    }
    save_random_state(random);
  }
  void restore(Recipe& recipe) const {
    recipe.load(state, "the start of the run");
    load_random_state(random, "the start of the run");
  }
};

// Seconds of the update `step` in this precision, less what it waited for data; kNever where float32 finds no
// memory on a GPU.
double update_seconds(Recipe& recipe, const std::string& dtype, int64_t step, const Origin& origin) {
  recipe.set_dtype(dtype);
  const double start = monotonic_seconds(), waited = recipe.data_wait_seconds();
  double seconds = kNever;
  try {
    recipe.step(step);
    wait_for(origin.device);
    seconds = monotonic_seconds() - start - (recipe.data_wait_seconds() - waited);
  } catch (const c10::OutOfMemoryError&) {
    if (dtype != "float32") throw;
  }
  origin.restore(recipe);
  return seconds;
}

}  // namespace

void require_dtype(const std::string& dtype) {
  require(dtype == "auto" || dtype == "float32" || dtype == "bfloat16", "dtype", "auto, float32 or bfloat16",
          dtype);
}

DtypeChoice choose_dtype(Recipe& recipe) {
  constexpr double kSeconds = 3, kGain = 0.95, kClear = 1.3;
  constexpr int kMostPairs = 6;
  const Origin origin(recipe);
  const std::vector<int64_t> phases = recipe.phases();
  const int64_t steps = recipe.loop().steps;
  DtypeChoice choice;
  for (size_t p = 0; p < phases.size(); ++p) {
    const int64_t from = phases[p], until = p + 1 < phases.size() ? std::min(phases[p + 1], steps) : steps;
    if (from >= until) continue;
    double full = kNever, half = kNever;
    const double began = monotonic_seconds();
    // The least of the times is that of the update alone: first calls and other programs only add to it. So a
    // second pair is taken, however long, where the first (which also paid for first calls) left it open.
    for (int pair = 0; pair < kMostPairs; ++pair) {
      check_interrupt();  // nothing is begun that would have to be saved
      if (pair > 0 && full == kNever) break;
      // A GPU's first update also pays for the context, the libraries and the memory: short ones are never
      // clear after one.
      const bool clear = std::max(full, half) > kClear * std::min(full, half) &&
                         (origin.device.is_cpu() || std::min(full, half) > kSeconds);
      if (pair > (clear ? 0 : 1) && monotonic_seconds() - began > kSeconds / double(phases.size())) break;
      half = std::min(half, update_seconds(recipe, "bfloat16", from, origin));  // needs less memory: first
      full = std::min(full, update_seconds(recipe, "float32", from, origin));
    }
    const double share = double(until - from) / double(steps);
    choice.float32_seconds += full * share;
    choice.bfloat16_seconds += half * share;
  }
  choice.dtype = choice.bfloat16_seconds < kGain * choice.float32_seconds ? "bfloat16" : "float32";
  recipe.set_dtype(choice.dtype);
  return choice;
}

}  // namespace adanat
