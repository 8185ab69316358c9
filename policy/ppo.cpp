#include "policy/ppo.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/min.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <vector>

#include "policy/rollout.h"

namespace adanat {

void PpoConfig::validate() const {
  require(learning_rate > 0, "learning_rate", "> 0", learning_rate);
  require(epochs >= 1 && epochs <= 1000, "epochs", "1..1000", epochs);
  require(clip > 0 && clip < 1, "clip", "in (0, 1)", clip);
  require(value_weight >= 0, "value_weight", ">= 0", value_weight);
  require(entropy_weight >= 0, "entropy_weight", ">= 0", entropy_weight);
  require(gradient_clip >= 0, "gradient_clip", ">= 0", gradient_clip);
  require(minibatch >= 0, "minibatch", ">= 0", minibatch);
}

void ExplorationConfig::validate() const {
  require(std > 0 && std <= 100, "std", "in (0, 100]", std);
  require(decrease >= 0, "decrease", ">= 0", decrease);
  require(after >= -1, "after", ">= -1", after);
  require(floor > 0 && floor <= std, "floor", cat("in (0, std = ", std, "]").c_str(), floor);
}

double exploration_after(const ExplorationConfig& config, double std, int64_t update) {
  return update == config.after ? std::max(config.floor, std - config.decrease) : std;
}

OptimizerConfig ppo_optimizer(const PpoConfig& config) {
  OptimizerConfig adam;
  adam.learning_rate = config.learning_rate;
  adam.weight_decay = 0;
  adam.beta1 = 0.9, adam.beta2 = 0.999;
  adam.warmup = 0;
  adam.clip = config.gradient_clip;
  return adam;
}

at::Tensor normalise_returns(const at::Tensor& returns) {
  return (returns - returns.mean()) / (returns.std(/*unbiased=*/true) + 1e-7);
}

namespace {

// One step, unless it would write values that are not finite into the weights or Adam's moments, or anything
// failed before. Of the gradients the squares are looked at, since those are what the second moment keeps.
void careful_step(Optimizer& optimizer, double learning_rate, int64_t epoch, const at::Tensor& surrogate,
                  const at::Tensor& value_error, DeferredChecks& checks) {
  std::vector<std::string> names = {"surrogate", "value_error"};
  std::vector<at::Tensor> sums = {surrogate, value_error};
  for (const auto& [name, parameter] : optimizer.parameters()) {
    if (!parameter.grad().defined()) continue;
    names.push_back("gradient of " + name);
    sums.push_back(parameter.grad().square().sum());
  }
  const at::Tensor fine = at::stack(sums).isfinite();
  optimizer.step(learning_rate, checks.failed_with(fine));
  checks.expect(fine, [names = std::move(names), epoch](int64_t first) {
    return cat("the policy's ", names[size_t(first)], " is not finite before step ", epoch + 1,
               " of this update, which was not taken; start again with a lower ppo.learning_rate");
  });
}

}  // namespace

PpoReport ppo_update(ActorCriticImpl& network, Optimizer& optimizer, const PpoBatch& batch,
                     const PpoConfig& config, DeferredChecks& checks,
                     const std::function<void(int64_t, const PpoEpoch&)>& observe) {
  const int64_t rows = batch.raw.size(0);
  const int64_t part = config.minibatch > 0 ? std::min(config.minibatch, rows) : rows;
  const double share = 1 / double(rows);
  const at::Tensor all_steps = at::arange(batch.steps, batch.step.options());
  const at::Tensor returns = normalise_returns(batch.returns);
  PpoReport report;
  report.return_mean = batch.returns.mean();
  report.return_std = batch.returns.std(true);
  report.entropy = gaussian_entropy(batch.std);

  at::Tensor advantage;
  for (int64_t epoch = 0; epoch < config.epochs; ++epoch) {
    std::vector<at::Tensor> means, log_probs, values, ratios, old_values;
    at::Tensor surrogate_sum, value_sum;
    for (int64_t begin = 0; begin < rows; begin += part) {
      const int64_t count = std::min(part, rows - begin);
      const auto slice = [&](const at::Tensor& x) { return x.narrow(0, begin, count); };
      const at::Tensor input = batch.inputs(begin, count), step = slice(batch.step);
      const at::Tensor mean =
          network.actor->forward(input, network.actor->step_terms(all_steps, batch.steps).rows(step));
      const at::Tensor value =
          network.critic->forward(input, network.critic->step_terms(all_steps, batch.steps).rows(step))
              .squeeze(1);
      const at::Tensor log_prob = gaussian_log_prob(slice(batch.raw), mean, batch.std);
      const at::Tensor ratio = (log_prob - slice(batch.log_prob)).exp();
      // In the first epoch the weights are still those of the rollout: the value before the update is this
      // one.
      const at::Tensor gain = epoch == 0 ? slice(returns) - value.detach() : slice(advantage);
      const at::Tensor surrogate =
          -at::minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain).sum() * share;
      const at::Tensor error = (value - slice(returns)).square().sum() * share;
      (surrogate + error * config.value_weight).backward();
      surrogate_sum = begin == 0 ? surrogate.detach() : surrogate_sum + surrogate.detach();
      value_sum = begin == 0 ? error.detach() : value_sum + error.detach();
      if (epoch == 0) old_values.push_back(value.detach());
      log_probs.push_back(log_prob.detach());
      ratios.push_back(ratio.detach());
      if (observe) means.push_back(mean.detach()), values.push_back(value.detach());
    }
    const at::Tensor ratio = at::cat(ratios), log_prob = at::cat(log_probs);
    const at::Tensor loss =
        surrogate_sum + value_sum * config.value_weight - config.entropy_weight * report.entropy;
    if (epoch == 0) {
      advantage = returns - at::cat(old_values);
      report.advantage_std = advantage.std(true);
      report.value_error = value_sum;
      report.first_ratio_error = (ratio - 1).abs().amax();
    }
    if (epoch + 1 == config.epochs) {
      report.surrogate = surrogate_sum;
      report.loss = loss;
      report.clip_share = ((ratio - 1).abs() > config.clip).to(at::kFloat).mean();
      report.approx_kl = (ratio - 1 - (log_prob - batch.log_prob)).mean();
    }
    if (observe) observe(epoch, {loss, at::cat(means), log_prob, at::cat(values), ratio});
    careful_step(optimizer, config.learning_rate, epoch, surrogate_sum, value_sum, checks);
  }
  return report;
}

}  // namespace adanat
