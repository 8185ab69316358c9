// What tests of rewards share: tiny networks to look through, images that can be told apart.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/sin.h>
#include <gtest/gtest.h>

#include "core/features/classifier.h"
#include "core/nn/module_state.h"
#include "policy/reward.h"
#include "policy/reward_kinds.h"
#include "support/vit_tensors.h"

namespace adanat::testing {

constexpr int64_t kSide = 16, kClasses = 3;

// Networks that rewards look through, written once: an untrained classifier and a small ViT.
class RewardTest : public ::testing::Test {
 protected:
  RewardTest() {
    at::manual_seed(11);
    at::set_num_threads(1);  // everything here is tiny: a second thread costs more than it brings
    write_classifier("features.safetensors", {{"role", "features"}});
    write_tensors(dir_ / "vit.safetensors", vit_tensors({.width = 16, .patch = 4, .image = 16}, ""),
                  {{"heads", "2"}});
    config_.vit = (dir_ / "vit.safetensors").string();
    config_.mapping_width = 32;
    config_.conv_width = 8;
    config_.discriminator.learning_rate = 1e-2;
    context_ = {
        .image_size = kSide, .classes = kClasses, .features = dir_ / "features.safetensors", .seed = 5};
  }

  std::filesystem::path write_classifier(const std::string& name, Metadata metadata) {
    const ClassifierConfig model{.image_size = kSide,
                                 .classes = kClasses,
                                 .stem_kernel = 3,
                                 .stem_stride = 1,
                                 .halve_first = true,
                                 .widths = {8, 12, 16},
                                 .blocks = {1, 1, 1}};
    auto net = std::make_shared<ClassifierNet>(model);
    metadata["kind"] = "classifier", metadata["format"] = "1",
    metadata["config"] = config_to_json(model).dump();
    write_tensors(dir_ / name, module_state(*net), metadata);
    return dir_ / name;
  }

  std::unique_ptr<Reward> make(const std::vector<std::string>& kinds) {
    config_.kinds = kinds;
    return make_reward(config_, context_);
  }

  TempDir dir_;
  RewardConfig config_;
  RewardContext context_;
};

struct Batch {
  at::Tensor images, classes;
};

// Stripes whose direction and colour follow the class, with some noise.
inline Batch real_batch(int64_t b, int64_t side = kSide) {
  Batch out{at::empty({b, 3, side, side}), at::randint(0, kClasses, {b}, at::kLong)};
  const at::Tensor line = (at::arange(side, at::kFloat) * 1.5).sin() * 0.4 + 0.5;
  for (int64_t i = 0; i < b; ++i) {
    const int64_t c = out.classes[i].item<int64_t>();
    out.images[i].copy_(c == 1 ? line.view({side, 1}).expand({side, side}) : line.expand({side, side}));
    out.images[i][c].mul_(0.3);
  }
  out.images = (out.images + 0.1 * at::rand(out.images.sizes())).clamp(0, 1);
  return out;
}

inline Batch noise_batch(int64_t b, int64_t side = kSide) {
  return {at::rand({b, 3, side, side}), at::randint(0, kClasses, {b}, at::kLong)};
}

}  // namespace adanat::testing
