// The small residual network behind `features` and `measure`: a classifier whose inner activations are what
// perceptual losses, rewards and Frechet distances look at. Small enough to be trained on two CPU cores in
// minutes.
//
//   stem      conv k x k, norm, act                        -> stem_width channels
//   stage i   blocks[i] residual blocks of widths[i]; the first block of every stage halves the grid (of
//   stage 1 only
//             where halve_first is set)
//   pool      mean over space                              -> widths.back()
//   logits    dropout, linear                              -> classes
//
// Block: conv 3x3, norm, act, conv 3x3, norm, + shortcut, act. Where width or grid change the shortcut is a
// 2x2 mean (if the grid halves), then a 1x1 conv and a norm: a strided 1x1 conv would look at one pixel in
// four. Norm is batch normalisation: a frozen network folds it into its convolutions, which leaves nothing to
// pay where these networks are used most, inside another model's training.
#pragma once
#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/config.h"

namespace adanat {

struct ClassifierConfig {
  int64_t image_size = 32;
  int64_t classes = 0;
  int64_t stem_kernel = 3;
  int64_t stem_stride = 1;
  int64_t stem_width = 0;
  bool halve_first = false;
  std::vector<int64_t> widths = {16, 32, 64};
  std::vector<int64_t> blocks = {1, 1, 1};
  std::string activation = "relu";
  double dropout = 0.0;
  std::vector<double> mean = {0.5, 0.5, 0.5};
  std::vector<double> deviation = {0.25, 0.25, 0.25};

  static constexpr auto fields() {
    using C = ClassifierConfig;
    return std::tuple{
        field("image_size", &C::image_size, "side of the square input, 8..512"),
        field("classes", &C::classes, "number of classes; 0 = as many as the training data has"),
        field("stem_kernel", &C::stem_kernel, "side of the first kernel, odd"),
        field("stem_stride", &C::stem_stride, "1: the stem's grid is the image's; 2: half of it"),
        field("stem_width", &C::stem_width, "channels of the stem; 0 = those of the first stage"),
        field("halve_first", &C::halve_first,
              "halve the grid in stage 1 too: full-size details in the stem at little cost"),
        field("widths", &C::widths, "channels of each stage; the last is the size of the pooled features"),
        field("blocks", &C::blocks, "residual blocks of each stage"),
        field("activation", &C::activation, "relu or silu"),
        field("dropout", &C::dropout, "share of pooled features dropped in training, [0, 1)"),
        field("mean", &C::mean, "per channel, subtracted from images in [0, 1]"),
        field("deviation", &C::deviation, "per channel, the difference is divided by it"),
    };
  }
  void validate() const;
  bool operator==(const ClassifierConfig&) const = default;
};

// A convolution without bias and its batch normalisation. Not thread-safe.
class ConvNorm : public torch::nn::Module {
 public:
  ConvNorm(int64_t in, int64_t out, int64_t kernel, int64_t stride);
  at::Tensor forward(const at::Tensor& x);  // (B, in, h, w) -> (B, out, h/stride, w/stride)
  // From now on one convolution with bias gives what evaluation mode gave. For frozen networks: no way back.
  void fold();

 private:
  int64_t kernel_, stride_;
  at::Tensor weight_, gamma_, beta_, running_mean_, running_var_;
  at::Tensor folded_weight_, folded_bias_;
};

class ResidualBlock : public torch::nn::Module {
 public:
  ResidualBlock(int64_t in, int64_t out, int64_t stride, bool silu);
  at::Tensor forward(const at::Tensor& x);

 private:
  bool silu_, halve_;
  std::shared_ptr<ConvNorm> first_, second_, shortcut_;
};

// Parameters and buffers: stem.{weight,gamma,beta,running_mean,running_var},
// stage{i}.block{j}.{first,second,shortcut}.* (i from 1, j from 0), head.{weight,bias}. Not thread-safe.
class ClassifierNet : public torch::nn::Module {
 public:
  // Weights: He-normal convolutions, last norm of each block at zero gain, small linear head; drawn from
  // torch's default generator. config.classes must be >= 1.
  explicit ClassifierNet(const ClassifierConfig& config);

  // stem, stage1 .. stageK, pool, logits.
  static std::vector<std::string> tap_names(const ClassifierConfig& config);

  // images (B, 3, H, W) float in [0, 1]; another size than image_size is resized (antialiased, bilinear)
  // first. Runs as far as the deepest tap asked for and returns the taps in the order asked: (B, C, h, w) of
  // stem and stages, (B, widths.back()) pool, (B, classes) logits. InputError for a name that is no tap.
  std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps);

  // Evaluation mode, no gradients of weights, norms folded into convolutions.
  void freeze();

  const ClassifierConfig& config() const { return config_; }

 private:
  ClassifierConfig config_;
  std::vector<std::string> names_;
  std::shared_ptr<ConvNorm> stem_;
  std::vector<std::vector<std::shared_ptr<ResidualBlock>>> stages_;
  at::Tensor mean_, deviation_;  // not registered: they are in the config
  at::Tensor head_weight_, head_bias_;
};

// Names and sizes of the state of a ClassifierNet of this config, without building one. InputError as from
// config.validate().
std::map<std::string, std::vector<int64_t>> classifier_shapes(const ClassifierConfig& config);

}  // namespace adanat
