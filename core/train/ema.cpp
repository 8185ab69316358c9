#include "core/train/ema.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <torch/nn/module.h>

#include <algorithm>

namespace adanat {

void EmaConfig::validate() const {
  require(decay >= 0 && decay < 1, "decay", "in [0, 1)", decay);
}

Ema::Ema(const NamedTensors& parameters, EmaConfig config) : parameters_(parameters), config_(config) {
  for (const auto& [name, parameter] : parameters_) averages_.emplace_back(name, parameter.detach().clone());
}

void Ema::update(int64_t update) {
  const at::NoGradGuard no_grad;
  const double ramp = double(1 + update) / double(10 + update);
  const double rate = config_.ramp ? std::min(config_.decay, ramp) : config_.decay;
  std::vector<at::Tensor> averages, parameters;
  for (size_t i = 0; i < averages_.size(); ++i) {
    averages.push_back(averages_[i].second);
    parameters.push_back(parameters_[i].second.detach());
  }
  if (!averages.empty()) at::_foreach_lerp_(averages, parameters, 1 - rate);
}

void Ema::swap() {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < averages_.size(); ++i) {
    const at::Tensor keep = averages_[i].second.clone();
    averages_[i].second.copy_(parameters_[i].second);
    parameters_[i].second.copy_(keep);
  }
}

void Ema::save(TensorMap& out, const std::string& prefix) const {
  for (const auto& [name, average] : averages_) out[prefix + name] = average;
}

void Ema::load(const TensorMap& in, const std::string& prefix, const std::string& where) {
  const at::NoGradGuard no_grad;
  for (auto& [name, average] : averages_) {
    const auto it = in.find(prefix + name);
    if (it == in.end()) throw InputError(cat(where, ": lacks the averaged weight ", prefix, name));
    if (it->second.sizes() != average.sizes())
      throw InputError(
          cat(where, ": ", prefix, name, " has shape ", it->second.sizes(), ", wanted ", average.sizes()));
    average.copy_(it->second);
  }
}

AveragedWeights::AveragedWeights(Ema& ema, torch::nn::Module& module) : ema_(ema), module_(module) {
  ema_.swap();
  module_.eval();
}

AveragedWeights::~AveragedWeights() {
  ema_.swap();
  module_.train();
}

}  // namespace adanat
