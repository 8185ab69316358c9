// Adam and AdamW with the learning-rate law of the reference, over LibTorch's fused update.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/base/config.h"
#include "core/nn/tensor_file.h"

namespace torch::nn {
class Module;
}

namespace adanat {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

struct OptimizerConfig {
  double learning_rate = 4e-4;
  double weight_decay = 0.03;
  double beta1 = 0.99;
  double beta2 = 0.99;
  double epsilon = 1e-8;
  int64_t warmup = 5000;
  std::string schedule = "constant";
  double final_ratio = 0.0;
  double clip = 0.0;
  int64_t accumulate = 1;

  static constexpr auto fields() {
    using C = OptimizerConfig;
    return std::tuple{
        field("learning_rate", &C::learning_rate, "base learning rate, > 0"),
        field("weight_decay", &C::weight_decay, "decoupled weight decay on every parameter, >= 0"),
        field("beta1", &C::beta1, "decay of the first moment, 0..1"),
        field("beta2", &C::beta2, "decay of the second moment, 0..1"),
        field("epsilon", &C::epsilon, "added to the root of the second moment, > 0"),
        field("warmup", &C::warmup, "updates until the learning rate is reached, linearly; 0 = none"),
        field("schedule", &C::schedule,
              "after the warm-up: constant, or cosine down to final_ratio at the last step"),
        field("final_ratio", &C::final_ratio, "cosine: last learning rate as a share of the base, 0..1"),
        field("clip", &C::clip, "largest L2 norm of the whole gradient, 0 = no clipping"),
        field("accumulate", &C::accumulate, "micro-batches per update, >= 1"),
    };
  }
  void validate() const;
  bool operator==(const OptimizerConfig&) const = default;
};

// Learning rate of 0-based update i out of `total`: with a warm-up 0 for i = 0 and 1, then
// base * min((i-1)/warmup, 1) (the reference counts one behind), after the warm-up the chosen schedule.
double learning_rate_at(const OptimizerConfig& config, int64_t update, int64_t total);

// AdamW (decoupled weight decay) where the config has one, plain Adam otherwise: the same arithmetic.
// Parameters without a gradient at an update keep their value and moments. Not thread-safe.
class Optimizer {
 public:
  Optimizer(NamedTensors parameters, OptimizerConfig config);

  // Clips (if configured), updates with this learning rate, clears the gradients.
  // Returns the gradient's L2 norm before clipping as a 0-d tensor (undefined where clipping is off).
  // `skip`, 0-d float on the parameters' device: where it is 1, parameters, moments and counts keep their
  // values; the host need not know.
  at::Tensor step(double learning_rate, const at::Tensor& skip = {});
  void zero_grad();

  // Moments and update counts under "<prefix><parameter>.{exp_avg,exp_avg_sq,step}".
  void save(TensorMap& out, const std::string& prefix) const;
  // Clears the gradients too: an update that broke off may have left some.
  void load(const TensorMap& in, const std::string& prefix, const std::string& where);

  const NamedTensors& parameters() const { return parameters_; }

 private:
  struct Moments {
    at::Tensor exp_avg, exp_avg_sq, step;
  };
  NamedTensors parameters_;
  std::vector<Moments> moments_;
  OptimizerConfig config_;
};

// Every parameter of a module that wants a gradient, by dotted name.
NamedTensors named_parameters(const torch::nn::Module& module);

}  // namespace adanat
