// The policy network: the generator's features and the step in, four numbers per sample out. The critic is
// the same network with one output. Source: docs/method.md section 5; the parameter names are those of the
// published files. Legend: B samples, N tokens on a grid of h x w, D generator width, H hidden, T steps.
#pragma once
#include <torch/nn/module.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include "core/base/config.h"

namespace adanat {

// Sizes of the published policy are the defaults. What the generator fixes (input width, grid, codes) is
// filled in from it.
struct PolicyNetworkConfig {
  std::string input = "features";
  int64_t input_width = 768;
  int64_t codes = 1024;
  int64_t grid_height = 16;
  int64_t grid_width = 16;
  int64_t hidden = 512;
  int64_t channels = 128;
  int64_t mlp = 1024;
  bool see_step = true;
  bool see_steps = false;
  int64_t shared_steps = 0;

  // Values behind the strided convolution: channels * ceil(h/2) * ceil(w/2).
  int64_t flat() const { return channels * ((grid_height + 1) / 2) * ((grid_width + 1) / 2); }
  bool shared() const { return shared_steps > 0; }

  static constexpr auto fields() {
    using C = PolicyNetworkConfig;
    return std::tuple{
        field("input", &C::input, "what the policy reads: features (of the generator) or tokens"),
        field("input_width", &C::input_width, "width D of the generator; taken from it"),
        field("codes", &C::codes, "codebook size V (input tokens); taken from the generator"),
        field("grid_height", &C::grid_height, "tokens down an image; taken from the generator"),
        field("grid_width", &C::grid_width, "tokens across an image; taken from the generator"),
        field("hidden", &C::hidden, "width per token and of the step's embedding, 1..8192"),
        field("channels", &C::channels, "channels behind the strided convolution, 1..8192"),
        field("mlp", &C::mlp, "width of the layer behind the flattened grid, 1..65536"),
        field("see_step", &C::see_step, "whether the step is known (off only to measure what it is worth)"),
        field("see_steps", &C::see_steps,
              "embed the number of steps T besides t (policies for any number of steps)"),
        field(
            "shared_steps", &C::shared_steps,
            "T of a schedule that is the same for all samples: a table of 4 numbers per step; 0 = a network"),
    };
  }
  void validate() const;
  bool operator==(const PolicyNetworkConfig&) const = default;
};

// What depends on the step alone: computed once for all steps of a run, then picked by row.
struct StepTerms {
  at::Tensor adaln1, adaln2, adaln3;  // (R, 2 width): shift, scale
  at::Tensor outputs;                 // (R, outputs): of a shared table, where the others are undefined

  // Row i of the result is row index[i]; index (M) i64.
  StepTerms rows(const at::Tensor& index) const;
  StepTerms row(int64_t i) const;
};

// Intermediate values for the golden test.
struct PolicyTaps {
  at::Tensor adaln1;   // (B, N, H)
  at::Tensor dw_conv;  // (B, H, h', w') before its GELU
  at::Tensor pw_conv;  // (B, channels, h', w') before its GELU
  at::Tensor adaln2;   // (B, mlp) before its GELU
  at::Tensor adaln3;   // (B, H) before its GELU
};

// 256 sinusoids of a number: cosines first, then sines, longest period 10000. t (R) i64 -> (R, 256) f32.
at::Tensor step_sinusoids(const at::Tensor& t);

// Two linear layers on the sinusoids; keys mlp.0 and mlp.2.
class StepEmbedderImpl : public torch::nn::Module {
 public:
  explicit StepEmbedderImpl(int64_t hidden);
  at::Tensor forward(const at::Tensor& t);

 private:
  torch::nn::Sequential mlp_;
};
TORCH_MODULE(StepEmbedder);

// (shift, scale) = Linear(SiLU(c)), zero-initialised; key adaLN_modulation.1. Applied by adaln().
class ModulationImpl : public torch::nn::Module {
 public:
  ModulationImpl(int64_t hidden, int64_t width);
  at::Tensor forward(const at::Tensor& condition);  // (R, H) -> (R, 2 width)

 private:
  torch::nn::Sequential adaLN_modulation_;
};
TORCH_MODULE(Modulation);

// Outputs are zero until trained. Weights are drawn from torch's default generator. Forward passes under
// NoGradGuard may run concurrently.
class PolicyNetworkImpl : public torch::nn::Module {
 public:
  // InputError for impossible sizes. outputs: 4 for an actor, 1 for a critic.
  PolicyNetworkImpl(PolicyNetworkConfig config, int64_t outputs);

  // t (R) i64 in [0, steps).
  StepTerms step_terms(const at::Tensor& t, int64_t steps);
  at::Tensor step_embedding(const at::Tensor& t, int64_t steps);  // (R, H)
  // input: features (B, N, D) f32, or tokens (B, N) i64 in [0, V]; only its number of rows is read by a
  // shared table. terms: B rows, or one for all. -> (B, outputs) f32.
  at::Tensor forward(const at::Tensor& input, const StepTerms& terms, PolicyTaps* taps = nullptr);

  const PolicyNetworkConfig& config() const { return config_; }

 private:
  PolicyNetworkConfig config_;
  at::Tensor table_;
  torch::nn::Linear x_embedder_{nullptr}, linear1_{nullptr}, linear2_{nullptr}, linear3_{nullptr};
  torch::nn::Embedding token_embedder_{nullptr};
  StepEmbedder t_embedder_{nullptr}, steps_embedder_{nullptr};
  Modulation adaLN1_{nullptr}, adaLN2_{nullptr}, adaLN3_{nullptr};
  torch::nn::Conv2d dw_conv_{nullptr}, pw_conv_{nullptr};
};
TORCH_MODULE(PolicyNetwork);

// Actor and critic under the published keys `actor.` and `critic.`. Of a shared schedule only the actor is a
// table: its critic sees the sample as any other does, so that both are trained by the same PPO.
class ActorCriticImpl : public torch::nn::Module {
 public:
  explicit ActorCriticImpl(const PolicyNetworkConfig& config);
  PolicyNetwork actor{nullptr}, critic{nullptr};
};
TORCH_MODULE(ActorCritic);

}  // namespace adanat
