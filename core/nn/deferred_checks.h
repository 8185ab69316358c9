// Conditions on values that lie on a device, noted while work goes on and asked for together: each question
// of its own would make a GPU finish all that is queued.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace adanat {

// On the CPU, where an answer costs nothing, a condition that does not hold throws where it is noted: before
// noting one, leave everything as it shall stay then. Not thread-safe.
class DeferredChecks {
 public:
  // What to say where flags[i] (of the flags flattened) is the first that is false.
  using Failure = std::function<std::string(int64_t i)>;

  // `at_once` false: nothing is thrown before settle(), on the CPU neither.
  explicit DeferredChecks(bool at_once = true) : at_once_(at_once) {}

  // flags: bool of any shape, all on one device. RunError with `failure` on the CPU (above).
  void expect(const at::Tensor& flags, Failure failure);
  void expect(const at::Tensor& flags, const char* failure);

  // 1 where one of `flags`, or of those noted and not settled yet, is false, else 0: 0-d f32 on their device,
  // for Optimizer::step to skip what would follow a failure that nobody has heard of.
  at::Tensor failed_with(const at::Tensor& flags) const;

  // What has been noted since the last settle(): (n) bool on its device; undefined where nothing was.
  at::Tensor flags() const;
  // Forgets what was noted. RunError with the failure of the first flag that is false. `values` is flags() on
  // the CPU; without it the device is asked.
  void settle(const at::Tensor& values);
  void settle();

 private:
  bool at_once_;
  std::vector<std::pair<at::Tensor, Failure>> noted_;  // (n) bool each
  at::Tensor failed_;                                  // of these together; undefined where there are none
};

}  // namespace adanat
