// Matrix products and convolutions in bfloat16 for a while.
#pragma once
#include <c10/core/Device.h>

namespace adanat {

// bfloat16 autocast for one scope, off for it where `on` is false. The converted weights that autocast keeps
// are dropped at its end, since they change at every update. Backward passes belong outside.
class AutocastScope {
 public:
  AutocastScope(bool on, c10::DeviceType device);
  ~AutocastScope();
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  c10::DeviceType device_;
  bool before_;
};

}  // namespace adanat
