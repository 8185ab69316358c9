#include "core/features/inception.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/upsample_bilinear2d.h>

#include <algorithm>
#include <map>

#include "core/base/error.h"

namespace adanat {
namespace {

constexpr int64_t kSize = 299, kClasses = 1008, kFeatures = 2048;
constexpr int64_t kSpatialChannels = 7;
constexpr double kNormEpsilon = 0.001;

// One convolution: kernel (height x width), stride, and the padding that keeps the size where there is one.
struct ConvRow {
  std::string name;
  int64_t in, out, height, width, stride = 1, pad_height = 0, pad_width = 0;
};

// The three convolutions that a row of the paper's figure 5 to 7 is made of, as tables: name, channels,
// kernel.
std::vector<ConvRow> conv_rows() {
  std::vector<ConvRow> rows;
  const auto conv = [&](const std::string& name, int64_t in, int64_t out, int64_t h, int64_t w,
                        int64_t stride = 1, bool same = true) {
    rows.push_back({name, in, out, h, w, stride, same ? h / 2 : 0, same ? w / 2 : 0});
  };
  conv("Conv2d_1a_3x3", 3, 32, 3, 3, 2, false);
  conv("Conv2d_2a_3x3", 32, 32, 3, 3, 1, false);
  conv("Conv2d_2b_3x3", 32, 64, 3, 3);
  conv("Conv2d_3b_1x1", 64, 80, 1, 1);
  conv("Conv2d_4a_3x3", 80, 192, 3, 3, 1, false);
  const std::pair<const char*, std::pair<int64_t, int64_t>> a_blocks[] = {
      {"Mixed_5b", {192, 32}}, {"Mixed_5c", {256, 64}}, {"Mixed_5d", {288, 64}}};
  for (const auto& [name, io] : a_blocks) {
    const std::string base = cat(name, ".");
    conv(base + "branch1x1", io.first, 64, 1, 1);
    conv(base + "branch5x5_1", io.first, 48, 1, 1);
    conv(base + "branch5x5_2", 48, 64, 5, 5);
    conv(base + "branch3x3dbl_1", io.first, 64, 1, 1);
    conv(base + "branch3x3dbl_2", 64, 96, 3, 3);
    conv(base + "branch3x3dbl_3", 96, 96, 3, 3);
    conv(base + "branch_pool", io.first, io.second, 1, 1);
  }
  conv("Mixed_6a.branch3x3", 288, 384, 3, 3, 2, false);
  conv("Mixed_6a.branch3x3dbl_1", 288, 64, 1, 1);
  conv("Mixed_6a.branch3x3dbl_2", 64, 96, 3, 3);
  conv("Mixed_6a.branch3x3dbl_3", 96, 96, 3, 3, 2, false);
  const std::pair<const char*, int64_t> c_blocks[] = {
      {"Mixed_6b", 128}, {"Mixed_6c", 160}, {"Mixed_6d", 160}, {"Mixed_6e", 192}};
  for (const auto& [name, c7] : c_blocks) {
    const std::string base = cat(name, ".");
    conv(base + "branch1x1", 768, 192, 1, 1);
    conv(base + "branch7x7_1", 768, c7, 1, 1);
    conv(base + "branch7x7_2", c7, c7, 1, 7);
    conv(base + "branch7x7_3", c7, 192, 7, 1);
    conv(base + "branch7x7dbl_1", 768, c7, 1, 1);
    conv(base + "branch7x7dbl_2", c7, c7, 7, 1);
    conv(base + "branch7x7dbl_3", c7, c7, 1, 7);
    conv(base + "branch7x7dbl_4", c7, c7, 7, 1);
    conv(base + "branch7x7dbl_5", c7, 192, 1, 7);
    conv(base + "branch_pool", 768, 192, 1, 1);
  }
  conv("Mixed_7a.branch3x3_1", 768, 192, 1, 1);
  conv("Mixed_7a.branch3x3_2", 192, 320, 3, 3, 2, false);
  conv("Mixed_7a.branch7x7x3_1", 768, 192, 1, 1);
  conv("Mixed_7a.branch7x7x3_2", 192, 192, 1, 7);
  conv("Mixed_7a.branch7x7x3_3", 192, 192, 7, 1);
  conv("Mixed_7a.branch7x7x3_4", 192, 192, 3, 3, 2, false);
  for (const auto& [name, in] : {std::pair<const char*, int64_t>{"Mixed_7b", 1280}, {"Mixed_7c", 2048}}) {
    const std::string base = cat(name, ".");
    conv(base + "branch1x1", in, 320, 1, 1);
    conv(base + "branch3x3_1", in, 384, 1, 1);
    conv(base + "branch3x3_2a", 384, 384, 1, 3);
    conv(base + "branch3x3_2b", 384, 384, 3, 1);
    conv(base + "branch3x3dbl_1", in, 448, 1, 1);
    conv(base + "branch3x3dbl_2", 448, 384, 3, 3);
    conv(base + "branch3x3dbl_3a", 384, 384, 1, 3);
    conv(base + "branch3x3dbl_3b", 384, 384, 3, 1);
    conv(base + "branch_pool", in, 192, 1, 1);
  }
  return rows;
}

at::Tensor max_pool(const at::Tensor& x) {
  return at::max_pool2d(x, {3, 3}, {2, 2});
}
at::Tensor mean_pool_same(const at::Tensor& x) {
  return at::avg_pool2d(x, {3, 3}, {1, 1}, {1, 1}, /*ceil_mode=*/false, /*count_include_pad=*/false);
}
at::Tensor mean_over_space(const at::Tensor& x) {
  return x.mean({2, 3});
}

}  // namespace

at::Tensor inception_resize(const at::Tensor& images, InceptionInput input) {
  const bool bytes = images.scalar_type() == at::kByte;
  if (images.dim() != 4 || images.size(1) != 3 || images.numel() == 0 ||
      (!bytes && !images.is_floating_point()))
    throw InputError(cat("inception: images must be (B, 3, H, W) of uint8 or float, got ", images.sizes(),
                         " of ", c10::toString(images.scalar_type())));
  at::Tensor x = images.to(at::kFloat);
  if (input == InceptionInput::kResized) {
    if (x.size(2) != kSize || x.size(3) != kSize)
      throw InputError(cat("inception: resized images must be ", kSize, " x ", kSize, ", got ", x.size(3),
                           " x ", x.size(2)));
    return x;
  }
  if (input == InceptionInput::kHalfPixel) {
    if (bytes) x = x / 255;
    return at::upsample_bilinear2d(x, {kSize, kSize}, /*align_corners=*/false, std::nullopt, std::nullopt);
  }
  // TensorFlow 1: source = i * (in / out) in float32, no half-pixel shift; between the two nearest, first
  // along x, then y.
  if (!bytes) x = x * 255;
  const auto axis = [&](int64_t in) {
    const float scale = static_cast<float>(in) / static_cast<float>(kSize);
    const at::Tensor source = at::arange(kSize, x.options().requires_grad(false)) * scale;
    const at::Tensor low = source.to(at::kLong), high = (low + 1).clamp_max(in - 1);
    return std::tuple(low, high, source - low.to(at::kFloat));
  };
  const auto [left, right, dx] = axis(x.size(3));
  const auto [upper, lower, dy] = axis(x.size(2));
  const at::Tensor a = x.index_select(3, left);
  x = a + (x.index_select(3, right) - a) * dx;
  const at::Tensor b = x.index_select(2, upper);
  return b + (x.index_select(2, lower) - b) * dy.unsqueeze(1);
}

at::Tensor inception_input(const at::Tensor& images, InceptionInput input) {
  const at::Tensor x = inception_resize(images, input);
  return input == InceptionInput::kHalfPixel ? 2 * x - 1 : (x - 128) / 128;
}

struct InceptionNet::Layers {
  struct Conv {
    at::Tensor weight, bias;
    std::array<int64_t, 2> stride, padding;
  };
  std::map<std::string, Conv> convs;
  at::Tensor fc_weight, fc_bias;

  at::Tensor conv(const std::string& name, const at::Tensor& x) const {
    const Conv& c = convs.at(name);
    return at::conv2d(x, c.weight, c.bias, at::IntArrayRef(c.stride), at::IntArrayRef(c.padding)).relu_();
  }
  // Several in a row.
  at::Tensor chain(const std::string& base, std::initializer_list<const char*> names, at::Tensor x) const {
    for (const char* name : names) x = conv(base + name, x);
    return x;
  }

  at::Tensor block_a(const std::string& name, const at::Tensor& x) const {
    const std::string base = name + ".";
    return at::cat({conv(base + "branch1x1", x), chain(base, {"branch5x5_1", "branch5x5_2"}, x),
                    chain(base, {"branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"}, x),
                    conv(base + "branch_pool", mean_pool_same(x))},
                   1);
  }
  at::Tensor block_b(const at::Tensor& x) const {
    const std::string base = "Mixed_6a.";
    return at::cat({conv(base + "branch3x3", x),
                    chain(base, {"branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"}, x), max_pool(x)},
                   1);
  }
  // `first` receives the output of branch1x1 if it is wanted.
  at::Tensor block_c(const std::string& name, const at::Tensor& x, at::Tensor* first = nullptr) const {
    const std::string base = name + ".";
    const at::Tensor one = conv(base + "branch1x1", x);
    if (first != nullptr) *first = one;
    return at::cat(
        {one, chain(base, {"branch7x7_1", "branch7x7_2", "branch7x7_3"}, x),
         chain(base,
               {"branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"}, x),
         conv(base + "branch_pool", mean_pool_same(x))},
        1);
  }
  at::Tensor block_d(const at::Tensor& x) const {
    const std::string base = "Mixed_7a.";
    return at::cat(
        {chain(base, {"branch3x3_1", "branch3x3_2"}, x),
         chain(base, {"branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"}, x), max_pool(x)},
        1);
  }
  at::Tensor block_e(const std::string& name, const at::Tensor& x, bool pool_by_maximum) const {
    const std::string base = name + ".";
    const at::Tensor three = conv(base + "branch3x3_1", x);
    const at::Tensor twice = chain(base, {"branch3x3dbl_1", "branch3x3dbl_2"}, x);
    const at::Tensor pooled = pool_by_maximum ? at::max_pool2d(x, {3, 3}, {1, 1}, {1, 1}) : mean_pool_same(x);
    return at::cat({conv(base + "branch1x1", x), conv(base + "branch3x3_2a", three),
                    conv(base + "branch3x3_2b", three), conv(base + "branch3x3dbl_3a", twice),
                    conv(base + "branch3x3dbl_3b", twice), conv(base + "branch_pool", pooled)},
                   1);
  }
};

std::vector<std::pair<std::string, std::vector<int64_t>>> InceptionNet::layout() {
  std::vector<std::pair<std::string, std::vector<int64_t>>> out;
  for (const ConvRow& row : conv_rows()) {
    out.push_back({row.name + ".conv.weight", {row.out, row.in, row.height, row.width}});
    for (const char* part : {"weight", "bias", "running_mean", "running_var"})
      out.push_back({cat(row.name, ".bn.", part), {row.out}});
  }
  out.push_back({"fc.weight", {kClasses, kFeatures}});
  out.push_back({"fc.bias", {kClasses}});
  return out;
}

bool InceptionNet::recognises(const TensorMap& tensors) {
  return tensors.contains("Conv2d_1a_3x3.conv.weight") &&
         tensors.contains("Mixed_7c.branch_pool.conv.weight");
}

InceptionNet::InceptionNet(const TensorMap& tensors, const std::string& where)
    : layers_(std::make_unique<Layers>()) {
  const at::NoGradGuard no_grad;
  TensorMap left = tensors;
  std::map<std::string, at::Tensor> taken;
  for (const auto& [name, shape] : layout()) {
    const auto found = left.find(name);
    if (found == left.end())
      throw InputError(cat(where, ": lacks the tensor ", name, " of the Inception network"));
    if (found->second.sizes() != at::IntArrayRef(shape) || !found->second.is_floating_point())
      throw InputError(cat(where, ": ", name, " has shape ", found->second.sizes(),
                           ", the Inception network wants ", at::IntArrayRef(shape), " of floating point"));
    taken.emplace(name, found->second.to(at::kDouble));
    left.erase(found);
  }
  for (const auto& [name, tensor] : left)
    if (!name.ends_with(".num_batches_tracked"))
      throw InputError(cat(where, ": holds a tensor that the Inception network does not have: ", name));
  for (const ConvRow& row : conv_rows()) {
    const auto norm = [&](const char* part) { return taken.at(cat(row.name, ".bn.", part)); };
    const at::Tensor scale = norm("weight") / (norm("running_var") + kNormEpsilon).sqrt();
    Layers::Conv conv;
    conv.weight = (taken.at(row.name + ".conv.weight") * scale.view({-1, 1, 1, 1})).to(at::kFloat);
    conv.weight = conv.weight.contiguous(at::MemoryFormat::ChannelsLast);
    conv.bias = (norm("bias") - norm("running_mean") * scale).to(at::kFloat);
    conv.stride = {row.stride, row.stride};
    conv.padding = {row.pad_height, row.pad_width};
    layers_->convs.emplace(row.name, std::move(conv));
  }
  layers_->fc_weight = taken.at("fc.weight").to(at::kFloat);
  layers_->fc_bias = taken.at("fc.bias").to(at::kFloat);
}

InceptionNet::~InceptionNet() = default;

std::string InceptionNet::kind() const {
  return "inception";
}

std::vector<std::string> InceptionNet::taps() const {
  return {"64", "192", "spatial", "768", "2048", "pool", "logits", "logits_unbiased"};
}

std::vector<at::Tensor> InceptionNet::forward(const at::Tensor& images,
                                              const std::vector<std::string>& taps) {
  return forward_prepared(inception_input(images, input_), taps);
}

std::vector<at::Tensor> InceptionNet::forward_prepared(const at::Tensor& input,
                                                       const std::vector<std::string>& taps) {
  if (input.dim() != 4 || input.size(1) != 3 || input.size(2) != kSize || input.size(3) != kSize)
    throw InputError(
        cat("inception: the network takes (B, 3, ", kSize, ", ", kSize, "), got ", input.sizes()));
  // How far each tap is from the input; the deepest one decides where to stop.
  static const std::map<std::string, int> kDepth{
      {"64", 1},   {"192", 2},  {"spatial", 3}, {"768", 4},
      {"2048", 5}, {"pool", 5}, {"logits", 5},  {"logits_unbiased", 5}};
  int deepest = 0;
  for (const std::string& tap : taps) {
    const auto found = kDepth.find(tap);
    if (found == kDepth.end())
      throw InputError(
          cat("no tap ", tap, "; inception has 64, 192, 768, 2048 (pool), logits, logits_unbiased, spatial"));
    deepest = std::max(deepest, found->second);
  }
  std::vector<at::Tensor> out(taps.size());
  const auto keep = [&](const std::string& tap, const auto& make) {
    at::Tensor made;
    for (size_t i = 0; i < taps.size(); ++i)
      if (taps[i] == tap) out[i] = made.defined() ? made : (made = make());
  };

  const Layers& net = *layers_;
  at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  x = max_pool(net.chain("", {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"}, x));
  keep("64", [&] { return mean_over_space(x); });
  if (deepest <= 1) return out;
  x = max_pool(net.chain("", {"Conv2d_3b_1x1", "Conv2d_4a_3x3"}, x));
  keep("192", [&] { return mean_over_space(x); });
  if (deepest <= 2) return out;
  for (const char* name : {"Mixed_5b", "Mixed_5c", "Mixed_5d"}) x = net.block_a(name, x);
  x = net.block_b(x);
  for (const char* name : {"Mixed_6b", "Mixed_6c"}) x = net.block_c(name, x);
  if (deepest <= 3) {
    const at::Tensor first = net.conv("Mixed_6d.branch1x1", x);
    keep("spatial", [&] { return first.narrow(1, 0, kSpatialChannels).permute({0, 2, 3, 1}).flatten(1); });
    return out;
  }
  at::Tensor first;
  x = net.block_c("Mixed_6d", x, &first);
  keep("spatial", [&] { return first.narrow(1, 0, kSpatialChannels).permute({0, 2, 3, 1}).flatten(1); });
  x = net.block_c("Mixed_6e", x);
  keep("768", [&] { return mean_over_space(x); });
  if (deepest <= 4) return out;
  x = net.block_d(x);
  x = net.block_e("Mixed_7b", x, /*pool_by_maximum=*/false);
  x = mean_over_space(net.block_e("Mixed_7c", x, /*pool_by_maximum=*/true));
  keep("2048", [&] { return x; });
  keep("pool", [&] { return x; });
  keep("logits", [&] { return at::linear(x, net.fc_weight, net.fc_bias); });
  keep("logits_unbiased", [&] { return at::linear(x, net.fc_weight); });
  return out;
}

void InceptionNet::to(at::Device device) {
  for (auto& [name, conv] : layers_->convs) {
    conv.weight = conv.weight.to(device);
    conv.bias = conv.bias.to(device);
  }
  layers_->fc_weight = layers_->fc_weight.to(device);
  layers_->fc_bias = layers_->fc_bias.to(device);
}

bool is_published_inception(const std::string& file_hash) {
  return file_hash.starts_with("6726825d");
}

}  // namespace adanat
