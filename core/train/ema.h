// Exponential moving average of a module's parameters; sampling uses these weights.
#pragma once
#include "core/base/config.h"
#include "core/nn/tensor_file.h"
#include "core/train/optimizer.h"

namespace torch::nn {
class Module;
}

namespace adanat {

struct EmaConfig {
  double decay = 0.9999;
  bool ramp = true;

  static constexpr auto fields() {
    return std::tuple{
        field("decay", &EmaConfig::decay, "share of the old average kept at each update, [0, 1)"),
        field("ramp", &EmaConfig::ramp,
              "use min(decay, (1+s)/(10+s)) at update s, so that short runs leave the start"),
    };
  }
  void validate() const;
  bool operator==(const EmaConfig&) const = default;
};

// Holds copies of the parameters given, which it follows. Buffers are not averaged.
class Ema {
 public:
  Ema(const NamedTensors& parameters, EmaConfig config);
  // average = rate * average + (1 - rate) * parameter, after 0-based update `update`.
  void update(int64_t update);
  // The averages by name (shared storage).
  const NamedTensors& averages() const { return averages_; }
  // Exchanges values between the averages and the parameters; twice restores both.
  void swap();

  void save(TensorMap& out, const std::string& prefix) const;
  void load(const TensorMap& in, const std::string& prefix, const std::string& where);

 private:
  NamedTensors parameters_, averages_;
  EmaConfig config_;
};

// Puts the averages in the place of the weights, and the module into evaluation mode, for a scope.
class AveragedWeights {
 public:
  AveragedWeights(Ema& ema, torch::nn::Module& module);
  ~AveragedWeights();
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  Ema& ema_;
  torch::nn::Module& module_;
};

}  // namespace adanat
