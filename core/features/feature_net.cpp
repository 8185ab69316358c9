#include "core/features/feature_net.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>

#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/features/classifier.h"
#include "core/features/inception.h"
#include "core/features/vit.h"
#include "core/nn/module_state.h"

namespace adanat {

FeatureNet::~FeatureNet() = default;

at::Tensor FeatureNet::channel_weight(const std::string&) const {
  return {};
}

namespace {

class ClassifierFeatures : public FeatureNet {
 public:
  ClassifierFeatures(const std::string& where, const TensorMap& tensors, const Metadata& metadata) {
    const auto config = metadata.find("config"), format = metadata.find("format");
    if (config == metadata.end()) throw InputError(cat(where, ": lacks the metadata key config"));
    if (format != metadata.end() && format->second != "1")
      throw InputError(
          cat(where, ": has format ", format->second, ", this program reads format 1; use a newer one"));
    const auto sizes =
        config_from_json<ClassifierConfig>(parse_json(config->second, where), where + ": config");
    check_shapes(SafetensorsFile::open(where), classifier_shapes(sizes));  // before anything is allocated
    check_finite(tensors, where);
    const at::NoGradGuard no_grad;
    net_ = std::make_shared<ClassifierNet>(sizes);
    load_module_state(*net_, tensors, where);
    net_->freeze();
  }
  std::string kind() const override { return "classifier"; }
  std::vector<std::string> taps() const override { return ClassifierNet::tap_names(net_->config()); }
  int64_t image_size() const override { return net_->config().image_size; }
  std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps) override {
    return net_->forward(images, taps);
  }
  void to(at::Device device) override {
    net_->to(device);
    net_->freeze();  // the folded convolutions are no registered tensors: made anew
  }

 private:
  std::shared_ptr<ClassifierNet> net_;
};

// One convolution of VGG16: its index in torchvision's vgg16.features, its channels, and the slice of LPIPS
// it is in.
struct VggLayer {
  int slice, index;
  int64_t in, out;
};
constexpr std::array<VggLayer, 13> kVgg{{{1, 0, 3, 64},
                                         {1, 2, 64, 64},
                                         {2, 5, 64, 128},
                                         {2, 7, 128, 128},
                                         {3, 10, 128, 256},
                                         {3, 12, 256, 256},
                                         {3, 14, 256, 256},
                                         {4, 17, 256, 512},
                                         {4, 19, 512, 512},
                                         {4, 21, 512, 512},
                                         {5, 24, 512, 512},
                                         {5, 26, 512, 512},
                                         {5, 28, 512, 512}}};
const std::array<std::string, 5> kVggTaps{"relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"};

// Source: PerceptualSimilarity lpips/pretrained_networks.py (vgg16), lpips/lpips.py (ScalingLayer,
// NetLinLayer).
class LpipsVgg : public FeatureNet {
 public:
  LpipsVgg(const std::string& where, const TensorMap& tensors) {
    TensorMap left = tensors;
    const auto take = [&](const std::string& key, at::IntArrayRef shape) {
      const auto found = left.find(key);
      if (found == left.end()) throw InputError(cat(where, ": lacks the tensor ", key));
      if (found->second.sizes() != shape)
        throw InputError(cat(where, ": ", key, " has shape ", found->second.sizes(), ", wanted ", shape));
      const at::Tensor out = found->second.to(at::kFloat);
      left.erase(found);
      return out;
    };
    for (const VggLayer& layer : kVgg) {
      const std::string base = cat("net.slice", layer.slice, ".", layer.index);
      weights_.push_back(
          take(base + ".weight", {layer.out, layer.in, 3, 3}).contiguous(at::MemoryFormat::ChannelsLast));
      biases_.push_back(take(base + ".bias", {layer.out}));
      if (layer.slice > int(channels_.size())) channels_.push_back(layer.out);
    }
    for (size_t i = 0; i < channels_.size(); ++i)
      lins_.push_back(take(cat("lin", i, ".model.1.weight"), {1, channels_[i], 1, 1}).flatten());
    for (const auto& [key, tensor] : left)
      if (key.rfind("lins.", 0) != 0 && key.rfind("scaling_layer.", 0) != 0)
        throw InputError(cat(where, ": holds a tensor that lpips-vgg does not have: ", key));
    shift_ = at::tensor({-0.030, -0.088, -0.188}, at::kFloat).view({1, 3, 1, 1});
    scale_ = at::tensor({0.458, 0.448, 0.450}, at::kFloat).view({1, 3, 1, 1});
  }
  std::string kind() const override { return "lpips-vgg"; }
  std::vector<std::string> taps() const override { return {kVggTaps.begin(), kVggTaps.end()}; }

  std::vector<at::Tensor> forward(const at::Tensor& images, const std::vector<std::string>& taps) override {
    if (images.size(2) < 16 || images.size(3) < 16)
      throw InputError(cat("lpips-vgg: images must be at least 16 pixels wide and high, got ", images.size(3),
                           "x", images.size(2)));
    std::vector<at::Tensor> out(taps.size());
    int deepest = 0;
    for (const std::string& tap : taps) deepest = std::max(deepest, slice_of(tap));
    at::Tensor x = ((images * 2 - 1 - shift_) / scale_).contiguous(at::MemoryFormat::ChannelsLast);
    for (size_t i = 0; i < kVgg.size() && kVgg[i].slice <= deepest; ++i) {
      // Slices 2 to 5 begin with the pooling that stands before their first convolution.
      if (i > 0 && kVgg[i].slice != kVgg[i - 1].slice) x = at::max_pool2d(x, {2, 2}, {2, 2});
      x = at::relu(at::conv2d(x, weights_[i], biases_[i], at::IntArrayRef({1, 1}), at::IntArrayRef({1, 1})));
      if (i + 1 == kVgg.size() || kVgg[i + 1].slice != kVgg[i].slice)
        for (size_t j = 0; j < taps.size(); ++j)
          if (slice_of(taps[j]) == kVgg[i].slice) out[j] = x;
    }
    return out;
  }

  at::Tensor channel_weight(const std::string& tap) const override {
    return lins_[size_t(slice_of(tap) - 1)];
  }

  void to(at::Device device) override {
    for (auto* list : {&weights_, &biases_, &lins_})
      for (at::Tensor& tensor : *list) tensor = tensor.to(device);
    shift_ = shift_.to(device);
    scale_ = scale_.to(device);
  }

 private:
  static int slice_of(const std::string& tap) {
    const auto found = std::find(kVggTaps.begin(), kVggTaps.end(), tap);
    if (found == kVggTaps.end())
      throw InputError(cat("no tap ", tap, "; lpips-vgg has relu1_2, relu2_2, relu3_3, relu4_3, relu5_3"));
    return int(found - kVggTaps.begin()) + 1;
  }
  std::vector<at::Tensor> weights_, biases_, lins_;
  std::vector<int64_t> channels_;
  at::Tensor shift_, scale_;
};

}  // namespace

std::unique_ptr<FeatureNet> load_feature_net(const std::filesystem::path& file) {
  Metadata metadata;
  const TensorMap tensors = read_tensors(file, &metadata);
  std::string kind = metadata["kind"];
  if (kind.empty() && tensors.contains("net.slice1.0.weight")) kind = "lpips-vgg";
  if (kind.empty() && InceptionNet::recognises(tensors)) kind = "inception";
  if (kind.empty() && has_vit_layout(tensors)) kind = "vit";
  std::unique_ptr<FeatureNet> net;
  if (kind == "classifier")
    net = std::make_unique<ClassifierFeatures>(file.string(), tensors, metadata);
  else if (kind == "lpips-vgg")
    net = std::make_unique<LpipsVgg>(file.string(), tensors);
  else if (kind == "inception")
    net = std::make_unique<InceptionNet>(tensors, file.string());
  else if (kind == "vit")
    net = make_vit_features(tensors, metadata, file.string());
  else
    throw InputError(cat(file.string(),
                         kind.empty() ? ": is no feature network: its metadata has no kind"
                                      : cat(": is a feature network of the unknown kind ", kind),
                         "; known kinds: classifier, lpips-vgg, inception, vit"));
  net->file_hash_ = sha256_file(file.string());
  if (kind == "inception" && !is_published_inception(net->file_hash_))
    warning(
        cat(file.string(), ": these Inception weights are not the published file (SHA-256 ",
            net->file_hash_.substr(0, 8),
            "..., published 6726825d...); figures can be compared with others made with the same file only"));
  return net;
}

}  // namespace adanat
