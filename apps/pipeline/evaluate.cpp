#include "apps/pipeline/evaluate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>

namespace adanat {

void MeasuredSet::add(const at::Tensor& images, const at::Tensor& labels) {
  const at::NoGradGuard no_grad;
  const auto taps = net_.forward(images.to(at::kFloat) / 255, {"pool", "logits"});
  if (!accumulator_) {
    dimensions_ = taps[0].size(1);
    accumulator_.emplace(dimensions_);
  }
  accumulator_->add(taps[0]);
  if (keep_features_) kept_.push_back(taps[0].cpu());
  if (labels.defined()) {
    right_ += (taps[1].argmax(1) == labels).sum().item<int64_t>();
    labelled_ += labels.size(0);
  }
}

at::Tensor MeasuredSet::features() const {
  return at::cat(kept_);
}

std::optional<double> MeasuredSet::accuracy() const {
  if (labelled_ == 0) return std::nullopt;
  return double(right_) / double(labelled_);
}

}  // namespace adanat
