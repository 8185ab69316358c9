#include "core/train/finite.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>

#include "core/base/error.h"

namespace adanat {

std::string first_non_finite(const TensorMap& tensors) {
  std::vector<std::string> names;
  std::vector<at::Tensor> fine;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.is_floating_point() || tensor.numel() == 0) continue;
    names.push_back(name);
    fine.push_back(at::isfinite(tensor.detach()).all());
    if (tensor.device() != fine.front().device()) fine.back() = fine.back().to(fine.front().device());
  }
  if (fine.empty()) return "";
  const at::Tensor answers = at::stack(fine).cpu();
  for (size_t i = 0; i < names.size(); ++i)
    if (!answers.const_data_ptr<bool>()[i]) return names[i];
  return "";
}

void require_finite_weights(const TensorMap& written, const std::string& who, const std::string& store) {
  const std::string name = first_non_finite(written);
  if (!name.empty())
    throw RunError(
        cat(who, ": the weight ", name, " is not finite in ", store, ", the type to be written; ",
            store == "float16" ? "store bfloat16 or lower the learning rate" : "lower the learning rate"));
}

}  // namespace adanat
