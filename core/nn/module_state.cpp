#include "core/nn/module_state.h"

#include <torch/nn/module.h>

#include "core/base/error.h"

namespace adanat {

TensorMap module_state(const torch::nn::Module& module) {
  TensorMap out;
  for (const auto& item : module.named_parameters()) out.emplace(item.key(), item.value().detach());
  for (const auto& item : module.named_buffers()) out.emplace(item.key(), item.value().detach());
  return out;
}

void load_module_state(torch::nn::Module& module, const TensorMap& tensors, const std::string& where) {
  const TensorMap own = module_state(module);
  const auto list = [](const std::vector<std::string>& names) {
    std::string text;
    for (size_t i = 0; i < names.size() && i < 8; ++i) text += (i == 0 ? "" : ", ") + names[i];
    if (names.size() > 8) text += cat(" and ", names.size() - 8, " more");
    return text;
  };
  std::vector<std::string> missing, extra;
  for (const auto& [name, tensor] : own)
    if (!tensors.contains(name)) missing.push_back(name);
  for (const auto& [name, tensor] : tensors)
    if (!own.contains(name)) extra.push_back(name);
  if (!missing.empty()) throw InputError(cat(where, ": lacks the tensors ", list(missing)));
  if (!extra.empty()) throw InputError(cat(where, ": holds tensors that the model does not have: ", list(extra)));
  for (const auto& [name, tensor] : own) {
    const at::Tensor& source = tensors.at(name);
    if (source.sizes() != tensor.sizes())
      throw InputError(cat(where, ": ", name, " has shape ", source.sizes(), ", the model's config wants ",
                           tensor.sizes()));
  }
  for (const auto& [name, tensor] : own) tensor.copy_(tensors.at(name));
}

int64_t parameter_count(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
}

}  // namespace adanat
