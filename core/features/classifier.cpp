#include "core/features/classifier.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

namespace adanat {
namespace {

constexpr double kNormEpsilon = 1e-5, kNormMomentum = 0.1;

at::Tensor activate(at::Tensor x, bool silu) {
  return silu ? at::silu(x) : at::relu_(x);
}

}  // namespace

void ClassifierConfig::validate() const {
  require(image_size >= 8 && image_size <= 512, "image_size", "in [8, 512]", image_size);
  require(classes >= 0, "classes", ">= 0", classes);
  require(stem_kernel >= 1 && stem_kernel % 2 == 1 && stem_kernel <= 15, "stem_kernel", "odd and at most 15",
          stem_kernel);
  require(stem_stride == 1 || stem_stride == 2, "stem_stride", "1 or 2", stem_stride);
  require(stem_width >= 0 && stem_width <= 4096, "stem_width", "in [0, 4096]", stem_width);
  require(!widths.empty() && widths.size() <= 6, "widths", "a list of 1 to 6 numbers", widths.size());
  require(blocks.size() == widths.size(), "blocks", "as long as widths", blocks.size());
  for (const int64_t width : widths) require(width >= 1 && width <= 4096, "widths", "in [1, 4096]", width);
  for (const int64_t count : blocks) require(count >= 1 && count <= 100, "blocks", "in [1, 100]", count);
  require(activation == "relu" || activation == "silu", "activation", "relu or silu", activation);
  require(dropout >= 0 && dropout < 1, "dropout", "in [0, 1)", dropout);
  require(mean.size() == 3, "mean", "a list of 3 numbers", mean.size());
  require(deviation.size() == 3, "deviation", "a list of 3 numbers", deviation.size());
  for (const double value : deviation) require(value > 0, "deviation", "> 0", value);
}

ConvNorm::ConvNorm(int64_t in, int64_t out, int64_t kernel, int64_t stride)
    : kernel_(kernel), stride_(stride) {
  at::Tensor weight = at::empty({out, in, kernel, kernel});
  weight.normal_(0.0, std::sqrt(2.0 / double(in * kernel * kernel)));
  weight_ = register_parameter("weight", weight);
  gamma_ = register_parameter("gamma", at::ones({out}));
  beta_ = register_parameter("beta", at::zeros({out}));
  running_mean_ = register_buffer("running_mean", at::zeros({out}));
  running_var_ = register_buffer("running_var", at::ones({out}));
}

// Module::to exchanges the data inside the registered tensors, so these members stay valid on another device.
at::Tensor ConvNorm::forward(const at::Tensor& x) {
  const int64_t padding = (kernel_ - 1) / 2;
  if (folded_weight_.defined())
    return at::conv2d(x, folded_weight_, folded_bias_, at::IntArrayRef({stride_, stride_}),
                      at::IntArrayRef({padding, padding}));
  const at::Tensor h =
      at::conv2d(x, weight_, {}, at::IntArrayRef({stride_, stride_}), at::IntArrayRef({padding, padding}));
  return at::batch_norm(h, gamma_, beta_, running_mean_, running_var_, is_training(), kNormMomentum,
                        kNormEpsilon,
                        /*cudnn_enabled=*/true);
}

void ConvNorm::fold() {
  const at::NoGradGuard no_grad;
  // In float64: the folded network should differ from the unfolded one by float32 noise only.
  const at::Tensor scale = gamma_.to(at::kDouble) / (running_var_.to(at::kDouble) + kNormEpsilon).sqrt();
  folded_weight_ = (weight_.to(at::kDouble) * scale.view({-1, 1, 1, 1})).to(weight_.scalar_type());
  folded_weight_ = folded_weight_.contiguous(at::MemoryFormat::ChannelsLast);
  folded_bias_ = (beta_.to(at::kDouble) - running_mean_.to(at::kDouble) * scale).to(weight_.scalar_type());
}

ResidualBlock::ResidualBlock(int64_t in, int64_t out, int64_t stride, bool silu)
    : silu_(silu), halve_(stride == 2) {
  first_ = register_module("first", std::make_shared<ConvNorm>(in, out, 3, stride));
  second_ = register_module("second", std::make_shared<ConvNorm>(out, out, 3, 1));
  if (in != out || stride != 1)
    shortcut_ = register_module("shortcut", std::make_shared<ConvNorm>(in, out, 1, 1));
  // A block starts as its shortcut: short trainings gain most from it.
  const at::NoGradGuard no_grad;
  second_->named_parameters()["gamma"].zero_();
}

at::Tensor ResidualBlock::forward(const at::Tensor& x) {
  const at::Tensor h = second_->forward(activate(first_->forward(x), silu_));
  at::Tensor through = x;
  if (shortcut_)
    through = shortcut_->forward(halve_ ? at::avg_pool2d(x, {2, 2}, {}, 0, /*ceil_mode=*/true) : x);
  return activate(h + through, silu_);
}

ClassifierNet::ClassifierNet(const ClassifierConfig& config) : config_(config), names_(tap_names(config)) {
  config.validate();
  require(config.classes >= 1, "classes", ">= 1", config.classes);
  const bool silu = config.activation == "silu";
  int64_t width = config.stem_width > 0 ? config.stem_width : config.widths[0];
  stem_ =
      register_module("stem", std::make_shared<ConvNorm>(3, width, config.stem_kernel, config.stem_stride));
  for (size_t i = 0; i < config.widths.size(); ++i) {
    auto holder = register_module(cat("stage", i + 1), std::make_shared<torch::nn::Module>());
    auto& stage = stages_.emplace_back();
    for (int64_t j = 0; j < config.blocks[i]; ++j) {
      const int64_t stride = j == 0 && (i > 0 || config.halve_first) ? 2 : 1;
      stage.push_back(holder->register_module(
          cat("block", j), std::make_shared<ResidualBlock>(width, config.widths[i], stride, silu)));
      width = config.widths[i];
    }
  }
  auto head = register_module("head", std::make_shared<torch::nn::Module>());
  head_weight_ = head->register_parameter("weight", at::empty({config.classes, width}).normal_(0.0, 0.01));
  head_bias_ = head->register_parameter("bias", at::zeros({config.classes}));
  mean_ = at::tensor(config.mean, at::kFloat).view({1, 3, 1, 1});
  deviation_ = at::tensor(config.deviation, at::kFloat).view({1, 3, 1, 1});
}

std::vector<std::string> ClassifierNet::tap_names(const ClassifierConfig& config) {
  std::vector<std::string> names{"stem"};
  for (size_t i = 0; i < config.widths.size(); ++i) names.push_back(cat("stage", i + 1));
  names.insert(names.end(), {"pool", "logits"});
  return names;
}

std::vector<at::Tensor> ClassifierNet::forward(const at::Tensor& images,
                                               const std::vector<std::string>& taps) {
  std::vector<at::Tensor> out(taps.size());
  size_t deepest = 0;
  for (const std::string& tap : taps) {
    const auto found = std::find(names_.begin(), names_.end(), tap);
    if (found == names_.end())
      throw InputError(
          cat("no tap ", tap, "; this network has stem, stage1..stage", stages_.size(), ", pool, logits"));
    deepest = std::max(deepest, size_t(found - names_.begin()));
  }
  size_t at_tap = 0;
  // True where nothing deeper is wanted.
  const auto keep = [&](const at::Tensor& value) {
    for (size_t i = 0; i < taps.size(); ++i)
      if (taps[i] == names_[at_tap]) out[i] = value;
    return at_tap++ >= deepest;
  };

  const bool silu = config_.activation == "silu";
  if (mean_.device() != images.device()) {
    mean_ = mean_.to(images.device());
    deviation_ = deviation_.to(images.device());
  }
  at::Tensor x = images;
  const int64_t size = config_.image_size;
  if (x.size(2) != size || x.size(3) != size)
    x = at::_upsample_bilinear2d_aa(x, {size, size}, /*align_corners=*/false, std::nullopt, std::nullopt);
  x = ((x - mean_) / deviation_).contiguous(at::MemoryFormat::ChannelsLast);
  x = activate(stem_->forward(x), silu);
  if (keep(x)) return out;
  for (const auto& stage : stages_) {
    for (const auto& block : stage) x = block->forward(x);
    if (keep(x)) return out;
  }
  x = x.mean({2, 3});
  if (keep(x)) return out;
  if (config_.dropout > 0 && is_training()) x = at::dropout(x, config_.dropout, /*train=*/true);
  keep(at::linear(x, head_weight_, head_bias_));
  return out;
}

void ClassifierNet::freeze() {
  eval();
  for (auto& parameter : parameters()) parameter.set_requires_grad(false);
  for (const auto& module : modules(/*include_self=*/false))
    if (auto* conv = dynamic_cast<ConvNorm*>(module.get())) conv->fold();
}

std::map<std::string, std::vector<int64_t>> classifier_shapes(const ClassifierConfig& config) {
  config.validate();
  std::map<std::string, std::vector<int64_t>> shapes;
  const auto add = [&](const std::string& name, int64_t in, int64_t out, int64_t kernel) {
    shapes[name + ".weight"] = {out, in, kernel, kernel};
    for (const char* part : {".gamma", ".beta", ".running_mean", ".running_var"}) shapes[name + part] = {out};
  };
  int64_t width = config.stem_width > 0 ? config.stem_width : config.widths[0];
  add("stem", 3, width, config.stem_kernel);
  for (size_t i = 0; i < config.widths.size(); ++i) {
    const int64_t out = config.widths[i];
    for (int64_t j = 0; j < config.blocks[i]; ++j) {
      const std::string block = cat("stage", i + 1, ".block", j);
      const bool halves = j == 0 && (i > 0 || config.halve_first);
      add(block + ".first", width, out, 3);
      add(block + ".second", out, out, 3);
      if (width != out || halves) add(block + ".shortcut", width, out, 1);
      width = out;
    }
  }
  shapes["head.weight"] = {config.classes, width};
  shapes["head.bias"] = {config.classes};
  return shapes;
}

}  // namespace adanat
