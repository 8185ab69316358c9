// Pictures of what a policy decides.
#pragma once
#include <ATen/core/Tensor.h>

#include "core/io/image.h"

namespace adanat {

// The four numbers of an Action, as they are logged.
inline constexpr const char* kActionNames[] = {"mask_ratio", "remask_temperature", "sampling_temperature",
                                               "guidance"};

// Mean and 10-90 % band over the samples of one action (index into kActionNames) at each step, now and before
// training. now, before (T, B, 4) f32 on the CPU, B >= 1.
Image plot_action(const at::Tensor& now, const at::Tensor& before, int64_t action);

}  // namespace adanat
