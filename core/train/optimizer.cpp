#include "core/train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/nn/module.h>

#include <cmath>
#include <numbers>
#include <optional>

namespace adanat {

void OptimizerConfig::validate() const {
  require(learning_rate > 0, "learning_rate", "> 0", learning_rate);
  require(weight_decay >= 0, "weight_decay", ">= 0", weight_decay);
  require(beta1 >= 0 && beta1 < 1, "beta1", "in [0, 1)", beta1);
  require(beta2 >= 0 && beta2 < 1, "beta2", "in [0, 1)", beta2);
  require(epsilon > 0, "epsilon", "> 0", epsilon);
  require(warmup >= 0, "warmup", ">= 0", warmup);
  require(schedule == "constant" || schedule == "cosine", "schedule", "constant or cosine", schedule);
  require(final_ratio >= 0 && final_ratio <= 1, "final_ratio", "in [0, 1]", final_ratio);
  require(clip >= 0, "clip", ">= 0", clip);
  require(accumulate >= 1, "accumulate", ">= 1", accumulate);
}

double learning_rate_at(const OptimizerConfig& config, int64_t update, int64_t total) {
  if (config.warmup > 0 && update - 1 < config.warmup)
    return config.learning_rate * std::max(0.0, double(update - 1)) / double(config.warmup);
  if (config.schedule == "constant") return config.learning_rate;
  const double span = std::max<double>(1, double(total - config.warmup));
  const double done = std::min(1.0, double(update - config.warmup) / span);
  const double ratio =
      config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + std::cos(std::numbers::pi * done));
  return config.learning_rate * ratio;
}

Optimizer::Optimizer(NamedTensors parameters, OptimizerConfig config)
    : parameters_(std::move(parameters)), config_(std::move(config)) {
  for (const auto& [name, parameter] : parameters_) {
    // Laid out as the parameter is (channels-last weights, say): the fused update walks them together.
    moments_.push_back({at::zeros_like(parameter), at::zeros_like(parameter),
                        at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false))});
  }
}

at::Tensor Optimizer::step(double learning_rate, const at::Tensor& skip) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parameters, gradients, exp_avgs, exp_avg_sqs, steps;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& parameter = parameters_[i].second;
    if (!parameter.grad().defined()) continue;
    parameters.push_back(parameter);
    gradients.push_back(parameter.grad().strides() == parameter.strides()
                            ? parameter.grad()
                            : at::zeros_like(parameter).copy_(parameter.grad()));
    exp_avgs.push_back(moments_[i].exp_avg);
    exp_avg_sqs.push_back(moments_[i].exp_avg_sq);
    steps.push_back(moments_[i].step);
  }
  at::Tensor norm;
  if (parameters.empty()) return norm;
  // The fused update reads the count that includes this update.
  if (skip.defined())
    at::_foreach_add_(steps, 1 - skip);
  else
    at::_foreach_add_(steps, 1);
  if (config_.clip > 0) {
    norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients)));
    const at::Tensor scale = (config_.clip / (norm + 1e-6)).clamp_max(1.0);
    at::_foreach_mul_(gradients, scale);
  }
  at::_fused_adamw_(parameters, gradients, exp_avgs, exp_avg_sqs, /*max_exp_avg_sqs=*/{}, steps,
                    learning_rate, config_.beta1, config_.beta2, config_.weight_decay, config_.epsilon,
                    /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/std::nullopt,
                    /*found_inf=*/skip.defined() ? std::optional(skip) : std::nullopt);
  zero_grad();
  return norm;
}

void Optimizer::zero_grad() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad().reset();
}

void Optimizer::save(TensorMap& out, const std::string& prefix) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::string base = prefix + parameters_[i].first;
    out[base + ".exp_avg"] = moments_[i].exp_avg;
    out[base + ".exp_avg_sq"] = moments_[i].exp_avg_sq;
    out[base + ".step"] = moments_[i].step;
  }
}

void Optimizer::load(const TensorMap& in, const std::string& prefix, const std::string& where) {
  const at::NoGradGuard no_grad;
  zero_grad();
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::string base = prefix + parameters_[i].first;
    const auto load_one = [&](const char* tail, at::Tensor& into) {
      const auto it = in.find(base + tail);
      if (it == in.end()) throw InputError(cat(where, ": lacks the optimizer's tensor ", base, tail));
      if (it->second.sizes() != into.sizes())
        throw InputError(
            cat(where, ": ", base, tail, " has shape ", it->second.sizes(), ", wanted ", into.sizes()));
      into.copy_(it->second);
    };
    load_one(".exp_avg", moments_[i].exp_avg);
    load_one(".exp_avg_sq", moments_[i].exp_avg_sq);
    load_one(".step", moments_[i].step);
  }
}

NamedTensors named_parameters(const torch::nn::Module& module) {
  NamedTensors out;
  for (const auto& item : module.named_parameters())
    if (item.value().requires_grad()) out.emplace_back(item.key(), item.value());
  return out;
}

}  // namespace adanat
