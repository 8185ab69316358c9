#include "core/nn/autocast.h"

#include <ATen/autocast_mode.h>

namespace adanat {

AutocastScope::AutocastScope(bool on, c10::DeviceType device)
    : device_(device), before_(at::autocast::is_autocast_enabled(device)) {
  at::autocast::set_autocast_enabled(device_, on);
  if (on) at::autocast::set_autocast_dtype(device_, at::kBFloat16);
}

AutocastScope::~AutocastScope() {
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, before_);
}

}  // namespace adanat
