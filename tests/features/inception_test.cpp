#include "core/features/inception.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "core/base/error.h"
#include "core/base/sha256.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::golden;
using testing::message_of;
using testing::TempDir;

// Weights by the fill rule, convolutions times 1.6 in float64 (tests/golden/data/README.md). Made once: 24
// million numbers.
const TensorMap& weights() {
  static const TensorMap filled = [] {
    TensorMap out;
    for (const auto& [name, shape] : InceptionNet::layout()) {
      if (name.ends_with(".conv.weight")) {
        const int64_t count = c10::multiply_integers(shape);
        const at::Tensor v = 2 * testing::procedural_u(name, count) - 1;
        const double scale = std::sqrt(3.0 / (double(count) / double(shape[0])));
        out.emplace(name, (v * scale * 1.6).to(at::kFloat).view(shape));
      } else {
        out.emplace(name, testing::procedural_weight(name, shape));
      }
    }
    return out;
  }();
  return filled;
}

InceptionNet& net() {
  static InceptionNet made(weights(), "test");
  return made;
}

// The two images of tests/golden/data/README.md, as bytes.
at::Tensor images(const std::string& key) {
  if (key == "img32") return testing::input_ids("inception.img32", {2, 3, 32, 32}, 256).to(at::kByte);
  const at::Tensor r = testing::input_ids("inception.img299", {2, 3, 299, 299}, 256);
  const at::Tensor x = at::arange(299).view({1, 1, 1, 299}), y = at::arange(299).view({1, 1, 299, 1});
  const at::Tensor b = at::arange(2).view({2, 1, 1, 1}), c = at::tensor({0, 40, 90}).view({1, 3, 1, 1});
  return (r.floor_divide(8) + x * (b + 1) + 2 * y + c).remainder(256).to(at::kByte);
}

struct Protocol {
  const char* name;
  InceptionInput input;
};
class InceptionGolden : public ::testing::TestWithParam<std::tuple<std::string, Protocol>> {};

// Tolerances: tests/golden/data/README.md, twenty times the difference that float32 makes against float64.
TEST_P(InceptionGolden, EqualsTheReference) {
  const at::NoGradGuard no_grad;
  const auto& [key, protocol] = GetParam();
  const auto& g = golden("inception.safetensors");
  const std::string base = key + "." + protocol.name + ".";
  const auto every = [](const at::Tensor& x, int64_t step) { return x.slice(1, 0, std::nullopt, step); };

  const at::Tensor resized = inception_resize(images(key), protocol.input);
  const at::Tensor slice = resized.slice(2, 0, std::nullopt, 13).slice(3, 0, std::nullopt, 13);
  // tf1: values up to 255, one unit in the last place is 1.5e-5. half_pixel is stored after 2x-1.
  const bool tf1 = protocol.input == InceptionInput::kTf1;
  EXPECT_CLOSE(tf1 ? slice : 2 * slice - 1, g[base + "resized_slice"], tf1 ? 2e-5 : 1e-6);

  net().set_input(protocol.input);
  const auto taps =
      net().forward(images(key), {"64", "192", "768", "2048", "logits", "logits_unbiased", "pool"});
  EXPECT_CLOSE(taps[0], g[base + "64"], 1e-5);
  EXPECT_CLOSE(taps[1], g[base + "192"], 2e-5);
  EXPECT_CLOSE(every(taps[2], 3), g[base + "768"], 5e-5);
  EXPECT_CLOSE(every(taps[3], 8), g[base + "2048"], 1e-4);
  EXPECT_CLOSE(every(taps[4], 8), g[base + "logits"], 5e-5);
  EXPECT_CLOSE(every(taps[5], 8), g[base + "logits_unbiased"], 5e-5);
  EXPECT_TRUE(taps[6].equal(taps[3]));
}

INSTANTIATE_TEST_SUITE_P(
    Both, InceptionGolden,
    ::testing::Combine(::testing::Values("img32", "img299"),
                       ::testing::Values(Protocol{"tf1", InceptionInput::kTf1},
                                         Protocol{"half_pixel", InceptionInput::kHalfPixel})),
    [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param).name; });

TEST(InceptionTest, InputFormsAgree) {
  const at::Tensor bytes = images("img32");
  const at::Tensor unit = bytes.to(at::kFloat) / 255;
  // 255 * (v / 255) is v to within one unit in the last place of 255.
  EXPECT_CLOSE(inception_resize(unit, InceptionInput::kTf1), inception_resize(bytes, InceptionInput::kTf1),
               3e-5);
  EXPECT_TRUE(inception_resize(unit, InceptionInput::kHalfPixel)
                  .equal(inception_resize(bytes, InceptionInput::kHalfPixel)));
  const at::Tensor full = images("img299");
  // Nothing to resize: the bytes themselves.
  EXPECT_TRUE(inception_resize(full, InceptionInput::kTf1).equal(full.to(at::kFloat)));
  EXPECT_TRUE(
      inception_input(full, InceptionInput::kResized).equal(inception_input(full, InceptionInput::kTf1)));
  EXPECT_TRUE(inception_input(full, InceptionInput::kTf1).equal((full.to(at::kFloat) - 128) / 128));
  // Non-square images: rows by the height, columns by the width.
  const at::Tensor tall = at::rand({1, 3, 598, 299});
  EXPECT_CLOSE(inception_resize(tall, InceptionInput::kTf1), tall.slice(2, 0, std::nullopt, 2) * 255, 1e-4);
  EXPECT_THROW(inception_input(bytes, InceptionInput::kResized), InputError);
  EXPECT_THROW(inception_input(bytes.to(at::kInt), InceptionInput::kTf1), InputError);
  EXPECT_THROW(inception_input(bytes[0], InceptionInput::kTf1), InputError);
  EXPECT_THROW(inception_input(bytes.narrow(1, 0, 1), InceptionInput::kTf1), InputError);
}

TEST(InceptionTest, GradientsReachTheImages) {
  for (const auto input : {InceptionInput::kTf1, InceptionInput::kHalfPixel}) {
    net().set_input(input);
    const at::Tensor x = at::rand({1, 3, 16, 16}).requires_grad_(true);
    net().forward(x, {"64"})[0].sum().backward();
    EXPECT_GT(x.grad().abs().min().item<float>(), 0);
  }
}

TEST(InceptionTest, SpatialTapIsMixed6dBranch1x1) {
  const at::NoGradGuard no_grad;
  // Mixed_6e.branch1x1 made the identity on the first 192 channels of Mixed_6d's output, which are that
  // branch: the tap 768 then begins with their means over space.
  TensorMap changed = weights();
  const std::string name = "Mixed_6e.branch1x1.";
  at::Tensor identity = at::zeros({192, 768, 1, 1});
  for (int64_t i = 0; i < 192; ++i) identity[i][i][0][0] = 1;
  changed[name + "conv.weight"] = identity;
  changed[name + "bn.weight"] = at::zeros({192}) + 1;
  changed[name + "bn.bias"] = at::zeros({192});
  changed[name + "bn.running_mean"] = at::zeros({192});
  changed[name + "bn.running_var"] = at::zeros({192}) + (1 - 0.001);
  InceptionNet other(changed, "test");
  const auto taps = other.forward(images("img32"), {"spatial", "768"});
  ASSERT_EQ(taps[0].sizes(), (at::IntArrayRef{2, 2023}));
  EXPECT_CLOSE(taps[0].view({2, 17 * 17, 7}).mean(1), taps[1].narrow(1, 0, 7), 1e-5);
  EXPECT_GT(taps[0].view({2, 17, 17, 7}).std(2).max().item<float>(), 0);  // not constant over space
  // Alone, with nothing behind it computed, it is the same.
  EXPECT_CLOSE(other.forward(images("img32"), {"spatial"})[0], taps[0], 1e-5);
}

TEST(InceptionTest, ABatchIsItsImages) {
  const at::NoGradGuard no_grad;
  net().set_input(InceptionInput::kTf1);
  const at::Tensor both = net().forward(images("img32"), {"2048"})[0];
  // Another batch size may be summed in another order.
  EXPECT_CLOSE(net().forward(images("img32").narrow(0, 1, 1), {"2048"})[0], both.narrow(0, 1, 1), 2e-5);
}

TEST(InceptionTest, FilesAreRecognisedAndErrorsNameTheKey) {
  const at::NoGradGuard no_grad;
  const TempDir dir;
  TensorMap tensors = weights();
  tensors["Mixed_7a.branch3x3_1.bn.num_batches_tracked"] = at::zeros({}, at::kLong);
  write_tensors(dir / "inception.safetensors", tensors);
  ::testing::internal::CaptureStderr();
  const auto loaded = load_feature_net(dir / "inception.safetensors");
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("warning"), std::string::npos);
  EXPECT_NE(said.find("6726825d"), std::string::npos);
  EXPECT_NE(said.find(loaded->file_hash().substr(0, 8)), std::string::npos);
  EXPECT_EQ(loaded->kind(), "inception");
  EXPECT_EQ(loaded->file_hash(), sha256_file((dir / "inception.safetensors").string()));
  net().set_input(InceptionInput::kTf1);
  EXPECT_CLOSE(loaded->forward(images("img32"), {"192"})[0], net().forward(images("img32"), {"192"})[0],
               1e-6);

  const auto message = [](const TensorMap& broken) -> std::string {
    return message_of([&] { InceptionNet made(broken, "f.pth"); });
  };
  TensorMap broken = weights();
  broken.erase("Mixed_6c.branch7x7_2.bn.bias");
  EXPECT_EQ(message(broken), "f.pth: lacks the tensor Mixed_6c.branch7x7_2.bn.bias of the Inception network");
  broken = weights();
  broken["AuxLogits.fc.bias"] = at::zeros({1008});
  EXPECT_NE(message(broken).find("AuxLogits.fc.bias"), std::string::npos);
  broken = weights();
  broken["fc.weight"] = at::zeros({1000, 2048});
  EXPECT_NE(message(broken).find("fc.weight has shape [1000, 2048]"), std::string::npos);
  EXPECT_THROW(net().forward(images("img32"), {"pool3"}), InputError);
}

TEST(InceptionTest, LayoutIsThePublishedOne) {
  int64_t numbers = 0;  // running means and variances included
  for (const auto& row : InceptionNet::layout()) numbers += c10::multiply_integers(row.second);
  EXPECT_EQ(numbers, 23'885'392);  // "parameters" in the golden file's metadata
  EXPECT_EQ(golden("inception.safetensors").metadata.at("parameters"), "23885392");
  EXPECT_TRUE(is_published_inception("6726825d" + std::string(56, '0')));
  EXPECT_FALSE(is_published_inception("0000"));
}

}  // namespace
}  // namespace adanat
