#include "policy/augment.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros_like.h>

#include <set>

#include "support/support.h"

namespace adanat {
namespace {

constexpr DiffAugmentConfig kPaper{.colour = true, .translation = 0.125, .cutout = 0.5};

at::Generator seeded(uint64_t seed) {
  return at::detail::createCPUGenerator(seed);
}

at::Tensor pictures(int64_t b, int64_t h, int64_t w) {
  return testing::input_u("augment_test.images", {b, 3, h, w});
}

TEST(DiffAugment, KeepsShapeAndRange) {
  for (const auto& [h, w] : {std::pair{32, 32}, {7, 12}, {1, 1}}) {
    at::Generator generator = seeded(1);
    const at::Tensor images = pictures(64, h, w);
    const at::Tensor out = diff_augment(images, kPaper, generator);
    EXPECT_EQ(out.sizes(), images.sizes());
    EXPECT_EQ(out.scalar_type(), at::kFloat);
    EXPECT_GE(out.min().item<double>(), -2);
    EXPECT_LE(out.max().item<double>(), 3);
    const at::Tensor moved = diff_augment(images, {.translation = 0.25, .cutout = 0.3}, generator);
    EXPECT_GE(moved.min().item<double>(), 0);
    EXPECT_LE(moved.max().item<double>(), 1);
  }
}

TEST(DiffAugment, OffChangesAndDrawsNothing) {
  at::Generator generator = seeded(1);
  const at::Tensor before = generator.get_state(), images = pictures(3, 8, 8);
  EXPECT_FALSE(DiffAugmentConfig{}.any());
  EXPECT_CLOSE(diff_augment(images, {}, generator), images, 0);
  EXPECT_TRUE(generator.get_state().equal(before));
}

TEST(DiffAugment, EachImageDrawsItsOwnFromTheGenerator) {
  const at::Tensor one = pictures(1, 16, 16).expand({6, 3, 16, 16});
  for (const DiffAugmentConfig& config :
       {DiffAugmentConfig{.colour = true}, {.translation = 0.25}, {.cutout = 0.25}}) {
    at::Generator a = seeded(5), b = seeded(5), c = seeded(6);
    const at::Tensor out = diff_augment(one, config, a);
    EXPECT_CLOSE(diff_augment(one, config, b), out, 0);
    EXPECT_FALSE(diff_augment(one, config, c).equal(out));
    EXPECT_FALSE(out[0].equal(out[1]) && out[1].equal(out[2]) && out[2].equal(out[3]));
  }
}

TEST(DiffAugment, TranslationMovesWholePixelsAndFillsZeros) {
  at::Generator generator = seeded(2);
  const int64_t side = 8, most = 2;
  const at::Tensor images = pictures(100, side, side) + 0.1;  // nothing in the image is zero
  const at::Tensor out = diff_augment(images, {.translation = 0.25}, generator);
  std::set<std::pair<int64_t, int64_t>> seen;
  for (int64_t i = 0; i < 100; ++i) {
    bool found = false;
    for (int64_t dy = -most; dy <= most && !found; ++dy)
      for (int64_t dx = -most; dx <= most && !found; ++dx) {
        at::Tensor want = at::zeros_like(images[i]);
        const int64_t h = side - std::abs(dy), w = side - std::abs(dx);
        want.narrow(1, std::max<int64_t>(0, -dy), h)
            .narrow(2, std::max<int64_t>(0, -dx), w)
            .copy_(images[i].narrow(1, std::max<int64_t>(0, dy), h).narrow(2, std::max<int64_t>(0, dx), w));
        if (want.equal(out[i])) found = true, seen.insert({dy, dx});
      }
    EXPECT_TRUE(found) << i;
  }
  EXPECT_GT(seen.size(), 20u) << "of 25 shifts";
}

TEST(DiffAugment, CutoutPaintsOneSquare) {
  at::Generator generator = seeded(3);
  const at::Tensor out = diff_augment(at::ones({400, 3, 10, 10}), {.cutout = 0.4}, generator);
  const at::Tensor hidden = (out == 0).to(at::kLong);
  EXPECT_TRUE(hidden.select(1, 0).equal(hidden.select(1, 2))) << "all channels alike";
  std::set<int64_t> areas;
  for (int64_t i = 0; i < 400; ++i) {
    const at::Tensor rows = hidden[i][0].amax(1), columns = hidden[i][0].amax(0);
    const int64_t tall = rows.sum().item<int64_t>(), wide = columns.sum().item<int64_t>();
    EXPECT_EQ(hidden[i][0].sum().item<int64_t>(), tall * wide) << "a rectangle";
    EXPECT_GE(tall, 2);
    EXPECT_LE(tall, 4);
    areas.insert(tall * wide);
  }
  EXPECT_TRUE(areas.contains(16) && areas.contains(4)) << "whole inside, and quarters in the corners";
}

TEST(DiffAugment, ColourChangesAreWhatTheySay) {
  at::Generator generator = seeded(4);
  const at::Tensor images = pictures(200, 6, 6), out = diff_augment(images, {.colour = true}, generator);
  // Brightness moves the image's mean by at most 0.5, the other two leave it.
  const at::Tensor moved = out.mean({1, 2, 3}) - images.mean({1, 2, 3});
  EXPECT_LE(moved.abs().max().item<double>(), 0.5 + 1e-5);
  EXPECT_GT(moved.max().item<double>(), 0.4);
  EXPECT_LT(moved.min().item<double>(), -0.4);
  // Contrast scales the grey image around its mean by 0.5..1.5; saturation leaves grey alone.
  const at::Tensor scale = out.mean(1).std({1, 2}, false) / images.mean(1).std({1, 2}, false);
  EXPECT_GE(scale.min().item<double>(), 0.5 - 1e-4);
  EXPECT_LE(scale.max().item<double>(), 1.5 + 1e-4);
  EXPECT_GT(scale.max().item<double>() - scale.min().item<double>(), 0.8);
  // Saturation scales the distance from grey by 0..2 on top.
  const auto distance = [](const at::Tensor& x) {
    return (x - x.mean(1, true)).square().mean({1, 2, 3}).sqrt();
  };
  const at::Tensor saturation = distance(out) / distance(images) / scale;
  EXPECT_GE(saturation.min().item<double>(), 0);
  EXPECT_LE(saturation.max().item<double>(), 2 + 1e-4);
  EXPECT_GT(saturation.max().item<double>(), 1.8);
}

TEST(DiffAugment, IsDifferentiable) {
  const at::Tensor images = pictures(4, 8, 8).requires_grad_();
  const at::Tensor direction = testing::input_float("augment_test.direction", {4, 3, 8, 8}, 1);
  const at::Tensor upstream = testing::input_float("augment_test.upstream", {4, 3, 8, 8}, 1);
  at::Generator generator = seeded(7);
  (diff_augment(images, kPaper, generator) * upstream).sum().backward();
  const double slope = (images.grad() * direction).sum().item<double>();
  const at::NoGradGuard no_grad;
  const auto value = [&](double h) {
    at::Generator same = seeded(7);
    return (diff_augment(images + h * direction, kPaper, same) * upstream)
        .to(at::kDouble)
        .sum()
        .item<double>();
  };
  // Linear in the images: the quotient is exact up to float32's rounding of sums of about 100.
  EXPECT_NEAR(slope, (value(0.5) - value(-0.5)), 1e-3);
}

TEST(DiffAugment, ConfigNamesKeyAndBound) {
  EXPECT_THROW((DiffAugmentConfig{.translation = 0.6}.validate()), InputError);
  EXPECT_THROW((DiffAugmentConfig{.cutout = 1.0}.validate()), InputError);
  kPaper.validate();
}

}  // namespace
}  // namespace adanat
