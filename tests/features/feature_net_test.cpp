#include "core/features/feature_net.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "core/base/sha256.h"
#include "core/features/classifier.h"
#include "core/features/perceptual.h"
#include "core/nn/module_state.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
namespace fs = std::filesystem;
using testing::message_of;
using testing::TempDir;

ClassifierConfig small_config() {
  return {.image_size = 20,
          .classes = 5,
          .stem_kernel = 5,
          .stem_stride = 2,
          .widths = {6, 8, 12},
          .blocks = {1, 2, 1},
          .activation = "silu",
          .dropout = 0.3,
          .mean = {0.4, 0.5, 0.6}};
}

// Weights and norm statistics by the fill rule, so that no norm is the identity. The rule makes gains small;
// around 1 the input is still seen in the last layer.
std::shared_ptr<ClassifierNet> filled_net(const ClassifierConfig& config) {
  auto net = std::make_shared<ClassifierNet>(config);
  const at::NoGradGuard no_grad;
  testing::fill_procedural(*net, "features_test.");
  for (auto& item : net->named_parameters()) {
    if (item.key().ends_with("gamma")) item.value().add_(1.5);
  }
  return net;
}

fs::path write_classifier(const TempDir& dir, const ClassifierConfig& config, Metadata metadata = {}) {
  const fs::path file = dir / "net.safetensors";
  metadata.try_emplace("kind", "classifier");
  metadata.try_emplace("format", "1");
  metadata.try_emplace("config", config_to_json(config).dump());
  write_tensors(file, module_state(*filled_net(config)), metadata);
  return file;
}

TEST(ClassifierFeatures, FrozenEqualsEvaluationMode) {
  TempDir dir;
  for (const char* activation : {"silu", "relu"}) {
    ClassifierConfig config = small_config();
    config.activation = activation;
    const fs::path file = write_classifier(dir, config);
    const auto frozen = load_feature_net(file);
    EXPECT_EQ(frozen->kind(), "classifier");
    EXPECT_EQ(frozen->file_hash(), sha256_file(file.string()));
    EXPECT_EQ(frozen->taps(),
              (std::vector<std::string>{"stem", "stage1", "stage2", "stage3", "pool", "logits"}));
    auto net = filled_net(config);
    net->eval();
    const at::NoGradGuard no_grad;
    const at::Tensor images = testing::input_u("features_test.images", {3, 3, 20, 20});
    const auto want = net->forward(images, frozen->taps()), got = frozen->forward(images, frozen->taps());
    const std::vector<std::vector<int64_t>> shapes{{3, 6, 10, 10}, {3, 6, 10, 10}, {3, 8, 5, 5},
                                                   {3, 12, 3, 3},  {3, 12},        {3, 5}};
    for (size_t i = 0; i < shapes.size(); ++i) {
      EXPECT_EQ(got[i].sizes().vec(), shapes[i]);
      EXPECT_CLOSE(got[i], want[i], 1e-5 * std::max(1.0, want[i].abs().max().item<double>()))
          << frozen->taps()[i];
      EXPECT_GT(got[i].std(0).mean().item<double>(), 1e-2) << "different images must look different here";
    }
  }
}

TEST(ClassifierFeatures, StemOfItsOwnWidthAtFullSize) {
  TempDir dir;
  ClassifierConfig config = small_config();
  config.stem_stride = 1;
  config.stem_width = 4;
  config.halve_first = true;
  const auto taps =
      load_feature_net(write_classifier(dir, config))
          ->forward(testing::input_u("features_test.images", {1, 3, 20, 20}), {"stem", "stage1", "stage3"});
  EXPECT_EQ(taps[0].sizes().vec(), (std::vector<int64_t>{1, 4, 20, 20}));
  EXPECT_EQ(taps[1].sizes().vec(), (std::vector<int64_t>{1, 6, 10, 10}));
  EXPECT_EQ(taps[2].sizes().vec(), (std::vector<int64_t>{1, 12, 3, 3}));
}

TEST(ClassifierFeatures, TapsInTheOrderAskedAndRowsAreIndependent) {
  TempDir dir;
  const auto net = load_feature_net(write_classifier(dir, small_config()));
  const at::Tensor images = testing::input_u("features_test.images", {3, 3, 20, 20});
  const auto some = net->forward(images, {"pool", "stem", "pool"});
  ASSERT_EQ(some.size(), 3u);
  EXPECT_EQ(some[0].dim(), 2);
  EXPECT_EQ(some[1].dim(), 4);
  EXPECT_CLOSE(some[2], some[0], 0);
  EXPECT_CLOSE(net->forward(images.narrow(0, 1, 1), {"pool"})[0], some[0].narrow(0, 1, 1), 1e-5);
  EXPECT_CLOSE(some[0], net->forward(images, {"stage3"})[0].mean({2, 3}), 1e-6);
  EXPECT_THROW(net->forward(images, {"stage4"}), InputError);
}

TEST(ClassifierFeatures, GradientsReachTheImagesOnly) {
  TempDir dir;
  const auto net = load_feature_net(write_classifier(dir, small_config()));
  const at::Tensor images = testing::input_u("features_test.images", {2, 3, 20, 20}).requires_grad_();
  const at::Tensor direction = testing::input_float("features_test.direction", {2, 3, 20, 20}, 1);
  net->forward(images, {"pool"})[0].sum().backward();
  const double slope = (images.grad() * direction).sum().item<double>();
  const at::NoGradGuard no_grad;
  const auto value = [&](double h) {
    return net->forward(images + h * direction, {"pool"})[0].to(at::kDouble).sum().item<double>();
  };
  EXPECT_NEAR(slope, (value(1e-2) - value(-1e-2)) / 2e-2, 0.02 * std::abs(slope));
}

TEST(ClassifierFeatures, OtherSizesAreResized) {
  TempDir dir;
  const auto net = load_feature_net(write_classifier(dir, small_config()));
  const at::Tensor big = testing::input_u("features_test.big", {1, 3, 50, 36});
  const at::Tensor small = at::_upsample_bilinear2d_aa(big, {20, 20}, false, std::nullopt, std::nullopt);
  EXPECT_CLOSE(net->forward(big, {"pool"})[0], net->forward(small, {"pool"})[0], 1e-6);
}

TEST(ClassifierFeatures, PreprocessingIsTheFilesOwn) {
  TempDir dir;
  ClassifierConfig config = small_config();
  const at::Tensor images = testing::input_u("features_test.images", {1, 3, 20, 20});
  const at::Tensor a = load_feature_net(write_classifier(dir, config))->forward(images, {"pool"})[0];
  config.mean = {0.5, 0.6, 0.7};
  const at::Tensor b = load_feature_net(write_classifier(dir, config))->forward(images + 0.1, {"pool"})[0];
  EXPECT_CLOSE(b, a, 1e-5);
  EXPECT_FALSE(
      testing::close(load_feature_net(write_classifier(dir, config))->forward(images, {"pool"})[0], a, 1e-3));
}

TEST(ClassifierShapes, AreThoseOfTheNetwork) {
  ClassifierConfig plain = small_config();
  plain.stem_width = 8;  // no shortcut for the width in stage 1 ...
  plain.widths = {8, 8, 12};
  ClassifierConfig halved = plain;
  halved.halve_first = true;  // ... but one for the grid
  for (const ClassifierConfig& config : {small_config(), plain, halved}) {
    ShapeMap built;
    for (const auto& [name, tensor] : module_state(ClassifierNet(config))) built[name] = tensor.sizes().vec();
    EXPECT_EQ(classifier_shapes(config), built);
  }
}

TEST(FeatureNetFile, ErrorsNameTheFile) {
  TempDir dir;
  const auto expect = [&](const Metadata& metadata, const std::string& part) {
    const fs::path file = write_classifier(dir, small_config(), metadata);
    const std::string message = message_of([&] { load_feature_net(file); });
    EXPECT_NE(message.find(file.string()), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect({{"kind", "resnet"}}, "resnet");
  expect({{"kind", ""}}, "no kind");
  expect({{"format", "2"}}, "format 2");
  expect({{"config", "{"}}, "");
  expect({{"config", "{\"width\": 3}"}}, "width");
  ClassifierConfig other = small_config();
  other.classes = 6;
  expect({{"config", config_to_json(other).dump()}}, "head");
  other = small_config();
  other.blocks = {1, 1, 1};
  expect({{"config", config_to_json(other).dump()}}, "stage2");
  other = small_config();
  other.classes = int64_t{1} << 60;  // more than any machine has: refused before anything is allocated
  expect({{"config", config_to_json(other).dump()}}, "the model's config wants");
  EXPECT_THROW(load_feature_net(dir / "absent.safetensors"), InputError);
}

TEST(Perceptual, ByItsFormula) {
  TempDir dir;
  const auto net = load_feature_net(write_classifier(dir, small_config()));
  const at::Tensor a = testing::input_u("features_test.images", {2, 3, 20, 20});
  const at::Tensor b = testing::input_u("features_test.others", {2, 3, 20, 20});
  at::Tensor want = at::zeros({2}, at::kDouble);
  for (const char* tap : {"stem", "stage1", "stage2", "stage3"}) {
    const at::Tensor x = net->forward(a, {tap})[0].to(at::kDouble),
                     y = net->forward(b, {tap})[0].to(at::kDouble);
    const at::Tensor nx = x / x.square().sum(1, true).sqrt(), ny = y / y.square().sum(1, true).sqrt();
    want += (nx - ny).square().mean({1, 2, 3});
  }
  const at::Tensor got = perceptual_distance(*net, a, b);
  EXPECT_CLOSE(got, want.to(at::kFloat), 1e-5);
  EXPECT_GT(got.min().item<double>(), 0.01);
  EXPECT_CLOSE(perceptual_distance(*net, b, a), got, 1e-6);
  EXPECT_CLOSE(perceptual_distance(*net, a, a), at::zeros({2}), 0);
  EXPECT_THROW(perceptual_distance(*net, a, b.narrow(0, 0, 1)), RunError);
}

TEST(Perceptual, GradientIsFiniteAlsoWhereFeaturesAreZero) {
  TempDir dir;
  ClassifierConfig config = small_config();
  config.activation = "relu";
  const auto net = load_feature_net(write_classifier(dir, config));
  const at::Tensor target = testing::input_u("features_test.others", {1, 3, 20, 20});
  for (const double level : {0.0, 0.5, 1.0}) {
    const at::Tensor flat = (at::ones({1, 3, 20, 20}) * level).requires_grad_();
    perceptual_distance(*net, flat, target).sum().backward();
    EXPECT_TRUE(flat.grad().isfinite().all().item<bool>());
    EXPECT_GT(flat.grad().abs().max().item<double>(), 0);
  }
  // A few steps downhill bring an image closer.
  at::Tensor image = at::ones({1, 3, 20, 20}) * 0.5;
  const double before = perceptual_distance(*net, image, target).item<double>();
  for (int i = 0; i < 20; ++i) {
    at::Tensor leaf = image.detach().requires_grad_();
    perceptual_distance(*net, leaf, target).sum().backward();
    image = (leaf.detach() - 0.5 * leaf.grad() / leaf.grad().norm()).clamp(0, 1);
  }
  EXPECT_LT(perceptual_distance(*net, image, target).item<double>(), 0.8 * before);
}

// VGG16 in LPIPS's layout with made-up weights: the architecture, no trained values are at hand.
class LpipsVgg : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(11);
    struct Layer {
      int slice, index;
      int64_t in, out;
    };
    for (const Layer& l : std::initializer_list<Layer>{{1, 0, 3, 64},
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
                                                       {5, 28, 512, 512}}) {
      const std::string base = cat("net.slice", l.slice, ".", l.index);
      tensors_[base + ".weight"] = at::randn({l.out, l.in, 3, 3}) * std::sqrt(2.0 / double(9 * l.in));
      tensors_[base + ".bias"] = at::randn({l.out}) * 0.05;
    }
    int i = 0;
    for (const int64_t width : {64, 128, 256, 512, 512}) {
      const at::Tensor lin = at::rand({1, width, 1, 1});
      tensors_[cat("lin", i, ".model.1.weight")] = lin;
      tensors_[cat("lins.", i++, ".model.1.weight")] = lin;
    }
    tensors_["scaling_layer.shift"] = at::tensor({-0.030, -0.088, -0.188}, at::kFloat).view({1, 3, 1, 1});
    tensors_["scaling_layer.scale"] = at::tensor({0.458, 0.448, 0.450}, at::kFloat).view({1, 3, 1, 1});
  }
  // The layers of torchvision's vgg16.features up to relu5_3, in order: C = convolution + ReLU, P = pooling.
  std::vector<at::Tensor> plain(at::Tensor x) {
    x = (2 * x - 1 - tensors_["scaling_layer.shift"]) / tensors_["scaling_layer.scale"];
    std::vector<at::Tensor> out;
    int index = 0, slice = 1, convs = 0;
    for (const char kind : std::string("CCPCCPCCCPCCCPCCC")) {
      if (kind == 'P') {
        out.push_back(x);
        x = at::max_pool2d(x, {2, 2}, {2, 2});
        ++index, ++slice;
      } else {
        const std::string base = cat("net.slice", slice, ".", index);
        x = at::relu(at::conv2d(x, tensors_[base + ".weight"], tensors_[base + ".bias"],
                                at::IntArrayRef({1, 1}), at::IntArrayRef({1, 1})));
        index += 2, ++convs;
      }
    }
    EXPECT_EQ(convs, 13);
    out.push_back(x);
    return out;
  }
  TempDir dir_;
  TensorMap tensors_;
};

TEST_F(LpipsVgg, TapsAndDistance) {
  const fs::path file = dir_ / "vgg.safetensors";
  write_tensors(file, tensors_);
  const auto net = load_feature_net(file);
  EXPECT_EQ(net->kind(), "lpips-vgg");
  const at::Tensor a = at::rand({1, 3, 32, 24}), b = at::rand({1, 3, 32, 24});
  const auto x = plain(a), y = plain(b), got = net->forward(a, net->taps());
  at::Tensor want = at::zeros({1});
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_CLOSE(got[i], x[i], 1e-4) << net->taps()[i];
    const auto unit = [](const at::Tensor& t) { return t / (t.square().sum(1, true).sqrt() + 1e-10); };
    want += at::conv2d((unit(x[i]) - unit(y[i])).square(), tensors_[cat("lin", i, ".model.1.weight")])
                .mean({1, 2, 3});
  }
  EXPECT_CLOSE(perceptual_distance(*net, a, b), want, 1e-4);
  EXPECT_THROW(net->forward(at::rand({1, 3, 8, 32}), {"relu1_2"}), InputError);
  EXPECT_THROW(net->forward(a, {"pool"}), InputError);
}

TEST_F(LpipsVgg, WrongFiles) {
  const auto expect = [&](const std::string& part) {
    write_tensors(dir_ / "vgg.safetensors", tensors_);
    const std::string message = message_of([&] { load_feature_net(dir_ / "vgg.safetensors"); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  const at::Tensor lin = tensors_.at("lin4.model.1.weight");
  tensors_.erase("lin4.model.1.weight");
  expect("lin4.model.1.weight");
  tensors_["lin4.model.1.weight"] = at::zeros({1, 3, 1, 1});
  expect("lin4.model.1.weight");
  tensors_["lin4.model.1.weight"] = lin;
  tensors_["classifier.0.weight"] = lin;
  expect("classifier.0.weight");
}

}  // namespace
}  // namespace adanat
