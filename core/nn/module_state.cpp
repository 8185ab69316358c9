#include "core/nn/module_state.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/sum.h>
#include <torch/nn/module.h>

#include <charconv>
#include <cmath>

#include "core/base/error.h"
#include "core/base/list_names.h"
#include "core/base/text.h"

namespace adanat {

TensorMap module_state(const torch::nn::Module& module) {
  TensorMap out;
  for (const auto& item : module.named_parameters()) out.emplace(item.key(), item.value().detach());
  for (const auto& item : module.named_buffers()) out.emplace(item.key(), item.value().detach());
  return out;
}

namespace {

// Both maps' keys are names.
template <class Found, class Expected>
void compare_names(const Found& found, const Expected& expected, const std::string& where) {
  std::vector<std::string> missing, extra;
  for (const auto& [name, value] : expected)
    if (!found.contains(name)) missing.push_back(name);
  for (const auto& [name, value] : found)
    if (!expected.contains(name)) extra.push_back(printable(name));
  if (missing.empty() && extra.empty()) return;
  std::string what;
  if (!missing.empty()) what = "lacks " + list_names(missing);
  if (!extra.empty())
    what += cat(what.empty() ? "" : "; ", "holds ", list_names(extra), ", which the model does not have");
  throw InputError(cat(where, ": ", what, missing.empty() ? ";" : kWhyMissing,
                       " `adanat info` lists what is in the file"));
}

// shape_of takes a value of either.
template <class Found, class Expected, class ShapeOf>
void check_names_and_shapes(const Found& found, const Expected& expected, const std::string& where,
                            ShapeOf shape_of) {
  compare_names(found, expected, where);
  for (const auto& [name, value] : expected) {
    const at::IntArrayRef is = shape_of(found.at(name)), wanted = shape_of(value);
    if (is != wanted)
      throw InputError(cat(where, ": ", name, " has shape ", is, ", the model's config wants ", wanted));
  }
}

}  // namespace

void check_names(const std::string& where, const ShapeMap& found, const ShapeMap& expected) {
  compare_names(found, expected, where);
}

int64_t count_layers(const ShapeMap& found, const std::string& prefix, int64_t tensors) {
  constexpr int64_t kMaxLayers = 512;  // more than any model here may have
  std::map<int64_t, int64_t> held;
  for (auto it = found.lower_bound(prefix); it != found.end() && it->first.starts_with(prefix); ++it) {
    const char *first = it->first.data() + prefix.size(), *end = it->first.data() + it->first.size();
    int64_t layer = 0;
    const auto [last, code] = std::from_chars(first, end, layer);
    const bool plain = *first != '-' && (*first != '0' || last == first + 1);
    if (code == std::errc() && plain && last != end && *last == '.' && layer < kMaxLayers) ++held[layer];
  }
  while (!held.empty() && 2 * held.rbegin()->second < tensors) held.erase(std::prev(held.end()));
  return held.empty() ? 0 : held.rbegin()->first + 1;
}

void check_shapes(const SafetensorsFile& file, const ShapeMap& expected) {
  ShapeMap found;
  for (const TensorEntry& entry : file.entries()) found.emplace(entry.name, entry.shape);
  check_names_and_shapes(found, expected, file.path().string(),
                         [](const std::vector<int64_t>& shape) { return at::IntArrayRef(shape); });
}

void check_finite(const TensorMap& tensors, const std::string& where) {
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.is_floating_point()) continue;
    const at::Tensor values = tensor.scalar_type() == at::kDouble ? tensor.to(at::kFloat) : tensor;
    // NaN and infinity survive a sum, which reads the tensor once and allocates nothing; a sum that overflows
    // is looked at again, value by value.
    if (std::isfinite(at::sum(values, at::kFloat).item<float>()) || at::isfinite(values).all().item<bool>())
      continue;
    throw InputError(
        cat(where, ": ", name, " holds NaN or infinity; the file is damaged, or its training went wrong"));
  }
}

void load_module_state(torch::nn::Module& module, const TensorMap& tensors, const std::string& where) {
  const TensorMap own = module_state(module);
  check_names_and_shapes(tensors, own, where, [](const at::Tensor& tensor) { return tensor.sizes(); });
  for (const auto& [name, tensor] : own) {
    const at::ScalarType is = tensors.at(name).scalar_type();
    if (at::isFloatingType(is) != tensor.is_floating_point())
      throw InputError(cat(where, ": ", name, " holds ", name_of(dtype_of(is)), ", the model wants ",
                           name_of(dtype_of(tensor.scalar_type()))));
  }
  for (const auto& [name, tensor] : own) tensor.copy_(tensors.at(name));
}

int64_t parameter_count(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
}

}  // namespace adanat
