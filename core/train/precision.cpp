#include "core/train/precision.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
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

}  // namespace

void require_dtype(const std::string& dtype) {
  require(dtype == "auto" || dtype == "float32" || dtype == "bfloat16", "dtype", "auto, float32 or bfloat16",
          dtype);
}

DtypeChoice choose_dtype(Recipe& recipe) {
  constexpr double kSeconds = 3, kGain = 0.95;
  constexpr int kMostPairs = 6;
  constexpr std::array<const char*, 2> kNames{"float32", "bfloat16"};
  at::Device device = at::kCPU;
  TensorMap before;
  recipe.save(before);
  for (auto& [name, tensor] : before) {
    if (tensor.is_cuda()) device = tensor.device();
    tensor = tensor.detach().clone();
  }
  TensorMap random;
  save_random_state(random);

  const std::vector<int64_t> phases = recipe.phases();
  const int64_t steps = recipe.loop().steps;
  std::array<double, 2> mean{};
  for (size_t p = 0; p < phases.size(); ++p) {
    const int64_t from = phases[p], until = p + 1 < phases.size() ? std::min(phases[p + 1], steps) : steps;
    if (from >= until) continue;
    std::array<double, 2> least{std::numeric_limits<double>::infinity(),
                                std::numeric_limits<double>::infinity()};
    const double began = monotonic_seconds();
    // The least of the times is that of the update alone: first calls and other programs only add to it. So a
    // second pair is taken, however long, where the first (which also paid for first calls) left it open.
    for (int pair = 0; pair < kMostPairs; ++pair) {
      check_interrupt();  // nothing is begun that would have to be saved
      // A GPU's first update also pays for the context, the libraries and the memory: never clear after one.
      const bool clear = device.is_cpu() && std::max(least[0], least[1]) > 1.3 * std::min(least[0], least[1]);
      if (pair > (clear ? 0 : 1) && monotonic_seconds() - began > kSeconds / double(phases.size())) break;
      for (size_t i = 0; i < 2; ++i) {
        recipe.set_dtype(kNames[i]);
        const double start = monotonic_seconds(), waited = recipe.data_wait_seconds();
        recipe.step(from);
        wait_for(device);
        least[i] = std::min(least[i], monotonic_seconds() - start - (recipe.data_wait_seconds() - waited));
        recipe.load(before, "the start of the run");
        load_random_state(random, "the start of the run");
      }
    }
    for (size_t i = 0; i < 2; ++i) mean[i] += least[i] * double(until - from) / double(steps);
  }
  const DtypeChoice choice{kNames[mean[1] < kGain * mean[0]], mean[0], mean[1]};
  recipe.set_dtype(choice.dtype);
  return choice;
}

}  // namespace adanat
