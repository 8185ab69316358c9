#include "policy/discriminator.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tensor.h>

#include <cmath>

#include "core/features/vit.h"
#include "core/nn/module_state.h"
#include "policy/discriminator_fill.h"
#include "support/golden_noise.h"
#include "support/vit_tensors.h"

namespace adanat {
namespace {
using at::indexing::Slice;
using testing::fill_discriminator;

constexpr const char* kFile = "discriminator.safetensors";
const testing::Golden& g() {
  return testing::golden(kFile);
}
double tolerance(const std::string& key) {
  return testing::golden_tolerance(kFile, key);
}

// The part of a gradient that the golden file keeps.
at::Tensor kept(const at::Tensor& value, const at::Tensor& golden) {
  at::Tensor out = value;
  for (int64_t d = 0; d < value.dim(); ++d) {
    const int64_t step = (value.size(d) + golden.size(d) - 1) / golden.size(d);
    out = out.slice(d, 0, std::nullopt, step);
  }
  return out;
}

void expect_gradients(const torch::nn::Module& module, const std::string& prefix) {
  const auto parameters = module.named_parameters();
  int64_t seen = 0;
  for (const auto& [key, golden] : g().tensors) {
    if (!key.starts_with(prefix)) continue;
    const at::Tensor gradient = parameters[key.substr(prefix.size())].grad();
    ASSERT_TRUE(gradient.defined()) << key;
    // A bias in front of a normalisation has gradient 0 up to rounding (tests/golden/data/README.md: 1e-7).
    const double atol =
        std::max(tolerance(key), key.ends_with("main.0.0.bias") || key.ends_with("fn.0.bias") ? 1e-7 : 0);
    EXPECT_CLOSE(kept(gradient, golden), golden, atol) << key;
    ++seen;
  }
  EXPECT_GE(seen, 8) << prefix;
}

class Head : public ::testing::TestWithParam<int64_t> {};

TEST_P(Head, Golden) {
  const int64_t width = GetParam();
  const std::string name = cat("head_c", width, ".");
  const auto head = std::make_shared<DiscriminatorHead>(48, width);
  fill_discriminator(*head, "heads.0.", /*equalised=*/false);
  const at::Tensor x = g()[name + "x"], c = width > 0 ? g()[name + "c"] : at::Tensor();
  {
    const at::NoGradGuard no_grad;
    head->eval();
    EXPECT_CLOSE(head->forward(x, c), g()[name + "eval"], tolerance(name + "eval"));
    auto cls = std::dynamic_pointer_cast<SpectralConv>(head->named_modules()["cls"]);
    EXPECT_CLOSE(cls->weight().squeeze(2), g()[name + "eval_weight.cls"],
                 tolerance(name + "eval_weight.cls"));
  }
  head->train();
  const at::Tensor out = head->forward(x, c);
  EXPECT_CLOSE(out, g()[name + "train1"], tolerance(name + "train1"));
  const auto state = module_state(*head);
  for (const char* layer : {"main.0.0", "main.1.fn.0", "cls"})
    for (const char* vector : {".weight_u", ".weight_v"}) {
      const std::string key = name + "after_train1." + layer + vector;
      EXPECT_CLOSE(state.at(std::string(layer) + vector), g()[key], tolerance(key)) << key;
    }
  const at::Tensor loss = at::softplus(-out).mean();
  EXPECT_CLOSE(loss, g()[name + "softplus_loss"], tolerance(name + "softplus_loss"));
  loss.backward();
  expect_gradients(*head, name + "grad.");
  const at::NoGradGuard no_grad;
  EXPECT_CLOSE(head->forward(x, c), g()[name + "train2"], tolerance(name + "train2"));
  head->eval();
  EXPECT_CLOSE(head->forward(x, c), g()[name + "eval_after_train2"], tolerance(name + "eval_after_train2"));
}

INSTANTIATE_TEST_SUITE_P(Widths, Head, ::testing::Values(32, 0));

TEST(SpectralConv, TrainingForwardsFindTheLargestSingularValue) {
  at::manual_seed(3);
  SpectralConv conv(5, 7, {3, 3});
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({1, 5, 6, 6});
  for (int i = 0; i < 60; ++i) EXPECT_EQ(conv.forward(x).sizes(), (at::IntArrayRef{1, 7, 6, 6}));
  const at::Tensor singular = std::get<1>(at::linalg_svd(conv.weight().flatten(1), false));
  EXPECT_NEAR(singular[0].item<double>(), 1.0, 1e-3);
  module_state(conv)
      .at("weight_u")
      .copy_(at::full({7}, std::sqrt(1.0 / 7)));  // a vector that a turn would move
  conv.eval();
  const TensorMap before = module_state(conv);
  const at::Tensor u = before.at("weight_u").clone(), first = conv.forward(x);
  EXPECT_CLOSE(conv.forward(x), first, 0);
  EXPECT_CLOSE(module_state(conv).at("weight_u"), u, 0) << "evaluation must not turn the vectors";
}

TEST(BatchNormLocal, Golden) {
  auto norm = std::make_shared<BatchNormLocal>(6);
  fill_discriminator(*norm, "bn.", false);
  for (const bool training : {true, false}) {
    norm->train(training);
    for (const int b : {1, 4, 5, 8, 12, 16, 24}) {
      const std::string key = cat("bn_local.B", b);
      EXPECT_CLOSE(norm->forward(g()[key + ".x"]), g()[key + ".y"], tolerance(key)) << key;
    }
  }
}

TEST(BatchNormLocal, GroupsDivideTheBatch) {
  EXPECT_EQ(BatchNormLocal::groups(1), 1);
  EXPECT_EQ(BatchNormLocal::groups(8), 1);
  EXPECT_EQ(BatchNormLocal::groups(12), 2);
  EXPECT_EQ(BatchNormLocal::groups(9), 1);   // ceil = 2
  EXPECT_EQ(BatchNormLocal::groups(20), 2);  // ceil = 3
  EXPECT_EQ(BatchNormLocal::groups(30), 3);  // ceil = 4
  EXPECT_EQ(BatchNormLocal::groups(13), 1);
  for (int64_t b = 1; b < 300; ++b) {
    const int64_t count = BatchNormLocal::groups(b);
    EXPECT_EQ(b % count, 0) << b;
    EXPECT_LE(count, (b + 7) / 8) << b;
  }
  // A group's samples see each other and nobody else.
  BatchNormLocal norm(4);
  const at::Tensor x = testing::input_float("discriminator_test.x", {20, 4, 5}, 1);
  EXPECT_CLOSE(norm.forward(x).narrow(0, 10, 10),
               norm.forward(at::cat({at::ones({10, 4, 5}), x.narrow(0, 10, 10)})).narrow(0, 10, 10), 1e-6);
}

class Mapping : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, bool>> {};

TEST_P(Mapping, Golden) {
  const auto [classes, width, equalised] = GetParam();
  const std::string name = cat("mapping_", classes, "_", width, equalised ? "_eq." : ".");
  auto mapping = std::make_shared<ClassMapping>(classes, width);
  fill_discriminator(*mapping, "mapping.", equalised);
  const at::Tensor w = mapping->forward(g()[name + "ids"]);
  EXPECT_CLOSE(w, g()[name + "w"], tolerance(name + "w"));
  if (!g().tensors.contains(name + "upstream")) return;
  (w * g()[name + "upstream"]).sum().backward();
  const auto parameters = mapping->named_parameters();
  for (const char* key : {"embed.weight", "embed.bias", "fc0.weight", "fc7.bias"})
    EXPECT_CLOSE(parameters[key].grad(), g()[name + "grad." + key], tolerance(name + "grad." + key)) << key;
}

INSTANTIATE_TEST_SUITE_P(Sizes, Mapping,
                         ::testing::Values(std::tuple{11, 64, false}, std::tuple{11, 64, true},
                                           std::tuple{1000, 512, false}, std::tuple{1000, 512, true}));

class Whole : public ::testing::TestWithParam<const char*> {};

TEST_P(Whole, GoldenOnATinyVit) {
  const std::string name = std::string(GetParam()) + ".";
  const bool text = name == "disc_text.";
  const auto vit = make_vit_features(testing::vit_tensors({}, "dino.model.model."), {{"heads", "4"}}, "tiny");
  auto net = std::make_shared<ProjectedDiscriminator>(
      std::vector<int64_t>(5, 64), text ? ConditionShape{.text_width = 24} : ConditionShape{.classes = 1000},
      512);
  fill_discriminator(*net, "", /*equalised=*/true);
  const auto taps = [&](const at::Tensor& images) {
    const at::NoGradGuard no_grad;
    auto out = vit->forward(images, {"block0", "block1", "block2", "block3", "position"});
    for (at::Tensor& tap : out) tap = tap.flatten(2);
    return out;
  };
  const auto real = taps(testing::input_u("disc.real", {4, 3, 48, 48}));
  const auto fake = taps(0.25 + 0.5 * testing::input_u("disc.fake", {4, 3, 48, 48}));
  at::Tensor real_c = g()[name + "context_real"], fake_c = g()[name + "context_fake"];
  if (!text) real_c = real_c.squeeze(1), fake_c = fake_c.squeeze(1);

  const auto expect_evaluation = [&](const std::string& prefix) {
    const at::NoGradGuard no_grad;
    net->eval();
    const at::Tensor logits = net->forward(fake, fake_c);
    EXPECT_CLOSE(logits, g()[name + prefix + "logits"], tolerance(name + prefix + "logits"));
    const std::string reward = name + (prefix == "eval_" ? "reward" : prefix + "reward");
    EXPECT_CLOSE(at::sigmoid(logits.mean(1, true)), g()[reward], tolerance(reward));
    net->train();
  };
  expect_evaluation("eval_");
  const at::Tensor real_logits = net->forward(real, real_c), fake_logits = net->forward(fake, fake_c);
  EXPECT_CLOSE(real_logits, g()[name + "train_logits_real"], tolerance(name + "train_logits_real"));
  EXPECT_CLOSE(fake_logits, g()[name + "train_logits_fake"], tolerance(name + "train_logits_fake"));
  for (const std::string kind : {"hinge", "bce"}) {
    for (auto& parameter : net->parameters()) parameter.mutable_grad().reset();
    const at::Tensor loss = discriminator_loss(kind, real_logits, fake_logits);
    EXPECT_CLOSE(loss, g()[name + kind], tolerance(name + kind)) << kind;
    loss.backward({}, /*retain_graph=*/true);
    expect_gradients(*net, name + kind + ".grad.");
  }
  expect_evaluation("eval_after_train_");
}

INSTANTIATE_TEST_SUITE_P(Conditions, Whole, ::testing::Values("disc_class", "disc_text"));

TEST(ConvDiscriminator, OneLogitPerPositionAtAnySize) {
  at::manual_seed(1);
  for (const auto& [size, positions] : {std::pair{32, 16}, {28, 49}, {64, 16}, {8, 16}, {9, 16}}) {
    ConvDiscriminator net(size, 4, {.classes = 3});
    const at::Tensor ids = testing::input_ids("discriminator_test.ids", {2}, 3);
    EXPECT_EQ(net.forward(at::rand({2, 3, size, size}), ids).sizes(), (at::IntArrayRef{2, positions}))
        << size;
  }
}

TEST(ConvDiscriminator, RowsAreIndependentAndConditioned) {
  at::manual_seed(1);
  ConvDiscriminator net(16, 8, {.classes = 3});
  net.eval();
  const at::NoGradGuard no_grad;
  const at::Tensor images = at::rand({3, 3, 16, 16}), ids = at::tensor({0, 1, 2});
  const at::Tensor all = net.forward(images, ids);
  EXPECT_CLOSE(net.forward(images.narrow(0, 1, 1), ids.narrow(0, 1, 1)), all.narrow(0, 1, 1), 1e-5);
  EXPECT_GT((net.forward(images, ids.flip(0)) - all).abs().max().item<double>(), 1e-3);
  ConvDiscriminator text(16, 8, {.text_width = 5});
  const at::Tensor c = at::randn({3, 5});
  text.eval();
  EXPECT_CLOSE(text.forward(images, c), text.forward(images, 7 * c), 1e-5)
      << "text is taken by its direction";
}

TEST(DiscriminatorLoss, Values) {
  const at::Tensor real = at::tensor({0.5f, 3.0f}), fake = at::tensor({-2.0f, 1.0f});
  EXPECT_NEAR(discriminator_loss("hinge", real, fake).item<double>(), 0.25 + 1.0, 1e-6);
  const double bce = (std::log1p(std::exp(-0.5)) + std::log1p(std::exp(-3.0))) / 2 +
                     (std::log1p(std::exp(-2.0)) + std::log1p(std::exp(1.0))) / 2;
  EXPECT_NEAR(discriminator_loss("bce", real, fake).item<double>(), bce, 1e-6);
}

}  // namespace
}  // namespace adanat
