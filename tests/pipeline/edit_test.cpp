// Editing: masks, canvases, the choice of tokens, the seam.
#include "apps/pipeline/edit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/base/error.h"
#include "core/io/resample.h"
#include "kernels/philox.h"
#include "support/message_of.h"

namespace adanat {
namespace {
using testing::message_of;

PixelMask empty_mask(int width, int height) {
  return {width, height, std::vector<uint8_t>(size_t(width * height), 0)};
}

// About one pixel in `one_in` is on.
PixelMask random_mask(int width, int height, uint32_t one_in, uint64_t seed) {
  PixelMask out = empty_mask(width, height);
  for (size_t i = 0; i < out.on.size(); ++i)
    out.on[i] = kernels::philox4x32_10({uint32_t(i), 0, 0, 0}, seed).x % one_in == 0;
  return out;
}

Image random_image(int width, int height, uint64_t seed) {
  Image out{width, height, std::vector<uint8_t>(size_t(width * height * 3))};
  for (size_t i = 0; i < out.rgb.size(); ++i)
    out.rgb[i] = uint8_t(kernels::philox4x32_10({uint32_t(i), 0, 0, 0}, seed).x >> 24);
  return out;
}

uint8_t at_pixel(const PixelMask& mask, int x, int y) {
  return mask.on[size_t(y * mask.width + x)];
}

TEST(EditFlags, AreFourNumbers) {
  const Box box = parse_box("1,2,30,4");
  EXPECT_EQ(std::vector<int>({box.left, box.top, box.width, box.height}), std::vector<int>({1, 2, 30, 4}));
  const Border border = parse_border("0,5,0,16384");
  EXPECT_EQ(std::vector<int>({border.left, border.top, border.right, border.bottom}),
            std::vector<int>({0, 5, 0, 16384}));
  for (const char* bad :
       {"", "1", "1,2,3", "1,2,3,", "1,2,3,4,", "1,2,3,4,5", "1,,3,4", " 1,2,3,4", "1,2,3,x", "1.5,2,3,4",
        "-1,2,3,4", "1,2,3,99999999999", "1,2,3,16385", "1;2;3;4"}) {
    EXPECT_NE(message_of([&] { parse_box(bad); }).find(cat("--box ", bad, ": must be X,Y,WIDTH,HEIGHT")),
              std::string::npos)
        << bad;
    EXPECT_NE(message_of([&] { parse_border(bad); }).find("--expand"), std::string::npos) << bad;
  }
  EXPECT_NE(message_of([] { parse_box("1,2,0,4"); }).find("width and height"), std::string::npos);
}

TEST(EditMask, WhiteIsMadeAnew) {
  const Image image{3, 2, {127, 127, 127, 128, 128, 128, 255, 255, 255, 0, 0, 0, 255, 255, 0, 255, 0, 0}};
  EXPECT_EQ(mask_of_image(image).on, std::vector<uint8_t>({0, 1, 1, 0, 1, 0}));
}

TEST(EditMask, BoxLiesInsideOrIsNamed) {
  const PixelMask mask = mask_of_box(5, 4, {3, 1, 2, 3});
  for (int y = 0; y < 4; ++y)
    for (int x = 0; x < 5; ++x) EXPECT_EQ(at_pixel(mask, x, y), x >= 3 && y >= 1) << x << " " << y;
  EXPECT_EQ(message_of([] {
              mask_of_box(5, 4, {3, 1, 3, 3});
            }),
            "--box 3,1,3,3: leaves the image, which is 5x4 pixels");
  for (const Box& outside : {Box{0, 0, 5, 5}, Box{5, 0, 1, 1}, Box{0, 4, 1, 1}, Box{16384, 0, 16384, 1}})
    EXPECT_NE(message_of([&] { mask_of_box(5, 4, outside); }).find("leaves the image"), std::string::npos);
}

TEST(EditMask, DilationIsASquareAroundEveryPixel) {
  for (const auto& [width, height] : {std::pair{1, 1}, {31, 1}, {1, 33}, {13, 31}, {32, 9}})
    for (const int n : {0, 1, 2, 7, 100}) {
      const PixelMask mask = random_mask(width, height, 23, uint64_t(width * height)),
                      grown = dilate(mask, n);
      for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
          bool near = false;
          for (int j = std::max(0, y - n); j <= std::min(height - 1, y + n); ++j)
            for (int i = std::max(0, x - n); i <= std::min(width - 1, x + n); ++i)
              near = near || at_pixel(mask, i, j);
          ASSERT_EQ(at_pixel(grown, x, y), near)
              << width << "x" << height << " " << n << " " << x << " " << y;
        }
    }
}

// Along one axis: pixel i of the result covers [(first+i)/scaled, (first+i+1)/scaled) of the whole, pixel j
// of the given mask [j/given, (j+1)/given). Fractions with a common denominator, and the geometry said anew.
bool overlaps(int i, int first, int scaled, int j, int given) {
  return int64_t(first + i) * given < int64_t(j + 1) * scaled &&
         int64_t(j) * scaled < int64_t(first + i + 1) * given;
}

TEST(EditMask, ScalingKeepsEveryPixelThatIsTouched) {
  for (const auto& [width, height, size] : {std::tuple{32, 32, 32},
                                            {33, 31, 8},
                                            {100, 37, 16},
                                            {7, 5, 12},
                                            {1, 1, 4},
                                            {64, 48, 32},
                                            {257, 255, 31},
                                            {33, 90, 32}}) {
    int w = width, h = height;
    while (std::min(w, h) >= 2 * size) w /= 2, h /= 2;
    if (std::min(w, h) != size) {
      const double scale = double(size) / std::min(w, h);
      w = int(std::nearbyint(w * scale)), h = int(std::nearbyint(h * scale));
    }
    const PixelMask mask = random_mask(width, height, 61, 7), scaled = adm_center_crop(mask, size);
    ASSERT_EQ(scaled.width, size);
    ASSERT_EQ(scaled.height, size);
    PixelMask wanted = empty_mask(size, size);
    for (int j = 0; j < height; ++j)
      for (int i = 0; i < width; ++i)
        for (int y = 0; at_pixel(mask, i, j) && y < size; ++y)
          for (int x = 0; x < size; ++x)
            if (overlaps(x, (w - size) / 2, w, i, width) && overlaps(y, (h - size) / 2, h, j, height))
              wanted.on[size_t(y * size + x)] = 1;
    EXPECT_EQ(scaled.on, wanted.on) << width << "x" << height << " to " << size;
  }
}

// The geometry is the picture's: a mask that covers all of a colour covers all of it after scaling.
TEST(EditMask, ScalesAsThePictureDoes) {
  Image image{90, 61, std::vector<uint8_t>(90 * 61 * 3, 0)};
  PixelMask mask = empty_mask(90, 61);
  for (int y = 20; y < 44; ++y)
    for (int x = 31; x < 57; ++x) {
      mask.on[size_t(y * 90 + x)] = 1;
      for (int c = 0; c < 3; ++c) image.rgb[size_t((y * 90 + x) * 3 + c)] = 255;
    }
  const Image picture = adm_center_crop(image, 32);
  const PixelMask scaled = adm_center_crop(mask, 32);
  for (size_t i = 0; i < scaled.on.size(); ++i) {
    // The bicubic filter reaches two pixels further than what a pixel covers, with little weight.
    EXPECT_TRUE(picture.rgb[3 * i] <= 128 || scaled.on[i]) << i;
    EXPECT_TRUE(picture.rgb[3 * i] > 0 || !scaled.on[i]) << i;
  }
}

EditPlan plan_of(int size, int factor, const PixelMask& mask, double strength = 1, int64_t grow = 0) {
  EditRequest request;
  request.mask = mask;
  request.strength = strength, request.dilate = grow;
  return plan_edit(random_image(mask.width, mask.height, 3), request, size, factor);
}

TEST(EditPlan, ATokenIsMadeAnewWhenAnyPixelOfItsCellIs) {
  for (const auto& [size, factor] : {std::pair{32, 4}, {28, 4}, {30, 2}, {33, 3}, {16, 16}, {5, 1}}) {
    const int g = size / factor;
    const Image image = random_image(size, size, 1);
    EditRequest request;
    for (int y = 0; y < size; ++y)
      for (int x = 0; x < size; ++x) {
        request.mask = empty_mask(size, size);
        request.mask->on[size_t(y * size + x)] = 1;
        std::vector<uint8_t> wanted(size_t(g * g), 0);
        wanted[size_t(y / factor * g + x / factor)] = 1;
        ASSERT_EQ(plan_edit(image, request, size, factor).cells, wanted) << x << " " << y;
      }
  }
  // A box that a cell's edge cuts by one pixel; grown by one pixel it reaches the next cells.
  EditRequest request;
  request.box = Box{3, 4, 5, 4};
  const Image image = random_image(16, 16, 1);
  EXPECT_EQ(plan_edit(image, request, 16, 4).cells,
            std::vector<uint8_t>({0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  request.dilate = 1;
  EXPECT_EQ(plan_edit(image, request, 16, 4).cells,
            std::vector<uint8_t>({1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0}));
}

// --dilate counts pixels of the given picture, whatever it is scaled to.
TEST(EditPlan, TheRegionGrowsBeforeItIsScaled) {
  PixelMask mask = empty_mask(64, 64);
  mask.on[32 * 64 + 32] = 1;
  const EditPlan plan = plan_of(32, 4, mask, 1, 2);  // 30..34 of 64
  for (int y = 0; y < 32; ++y)
    for (int x = 0; x < 32; ++x)
      EXPECT_EQ(at_pixel(plan.mask, x, y), x >= 15 && x <= 17 && y >= 15 && y <= 17) << x << " " << y;
}

TEST(EditPlan, RefusesWhatCannotBe) {
  const Image image = random_image(16, 16, 1);
  const auto plan = [&](EditRequest request) {
    return message_of([&] { plan_edit(image, request, 16, 4); });
  };
  EXPECT_EQ(plan({.mask = empty_mask(16, 15), .mask_name = "m.png"}),
            "--mask m.png: is 16x15 pixels, the image is 16x16; both must have one size");
  for (const double bad : {-0.1, 1.1, double(NAN)})
    EXPECT_NE(plan({.strength = bad}).find("--strength"), std::string::npos) << bad;
  for (const int64_t bad : {int64_t(-1), int64_t(16385)})
    EXPECT_NE(plan({.dilate = bad}).find("--dilate"), std::string::npos) << bad;
  EXPECT_NE(plan({.border = Border{16369, 0, 0, 0}}).find("over the limit of 16384"), std::string::npos);
  EditRequest two;
  two.box = Box{}, two.border = Border{};
  EXPECT_THROW(plan_edit(image, two, 16, 4), RunError);
  EXPECT_THROW(plan_edit(image, {}, 18, 4), RunError);
}

TEST(EditCanvas, IsASquareWithThePictureInPlace) {
  for (const auto& [width, height, border, left, top, side] :
       {std::tuple{5, 3, Border{1, 0, 0, 2}, 1, 0, 6},  // 6x5: one row more, below
        {3, 8, Border{0, 0, 0, 0}, 2, 0, 8},            // 3x8: five columns more, two left, three right
        {4, 4, Border{2, 2, 2, 2}, 2, 2, 8},
        {1, 1, Border{0, 3, 0, 0}, 1, 3, 4},
        {6, 6, Border{0, 0, 0, 0}, 0, 0, 6}}) {
    const Image image = random_image(width, height, 9);
    const Canvas canvas = expand(image, border);
    ASSERT_EQ(canvas.image.width, side);
    ASSERT_EQ(canvas.image.height, side);
    ASSERT_EQ(canvas.mask.on.size(), size_t(side * side));
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x) {
        const bool in = x >= left && x < left + width && y >= top && y < top + height;
        ASSERT_EQ(at_pixel(canvas.mask, x, y), !in) << x << " " << y;
        const int i = std::clamp(x - left, 0, width - 1), j = std::clamp(y - top, 0, height - 1);
        for (int c = 0; c < 3; ++c)
          ASSERT_EQ(canvas.image.rgb[size_t((y * side + x) * 3 + c)],
                    image.rgb[size_t((j * width + i) * 3 + c)]);
      }
  }
}

TEST(EditCanvas, IsScaledToTheModel) {
  EditRequest request;
  request.border = Border{16, 0, 0, 16};
  const EditPlan plan = plan_edit(random_image(48, 48, 2), request, 32, 4);  // 64x64 to 32x32
  EXPECT_EQ(plan.image.width, 32);
  request.dilate = 2;  // one pixel of the 32 further into the picture
  const EditPlan wider = plan_edit(random_image(48, 48, 2), request, 32, 4);
  for (int y = 0; y < 8; ++y)
    for (int x = 0; x < 8; ++x) {
      EXPECT_EQ(plan.cells[size_t(y * 8 + x)], x < 2 || y >= 6) << x << " " << y;
      EXPECT_EQ(wider.cells[size_t(y * 8 + x)], x < 3 || y >= 5) << x << " " << y;
    }
}

TEST(EditStrength, IsAShareOfTheTokens) {
  PixelMask mask = empty_mask(32, 32);
  std::fill_n(mask.on.begin(), 32 * 20, uint8_t(1));  // 5 of 8 rows of cells
  const auto count = [&](double strength) { return plan_of(32, 4, mask, strength).remade(); };
  EXPECT_EQ(count(0), 0);
  EXPECT_EQ(count(1e-9), 1);
  EXPECT_EQ(count(0.5), 20);
  EXPECT_EQ(count(0.512), 20);
  EXPECT_EQ(count(0.513), 21);
  EXPECT_EQ(count(1), 40);
  EXPECT_EQ(plan_of(32, 4, empty_mask(32, 32), 0.5).remade(), 0);
  EXPECT_EQ(plan_edit(random_image(50, 40, 1), {.strength = 0.25}, 32, 4).remade(), 16);
}

TEST(EditStrength, ChoosesBySeedAndImageAlone) {
  PixelMask mask = empty_mask(32, 32);
  std::fill_n(mask.on.begin(), 32 * 20, uint8_t(1));
  std::vector<int64_t> drawn(40, 0);
  std::set<std::vector<uint8_t>> distinct;
  const EditPlan half = plan_of(32, 4, mask, 0.5), more = plan_of(32, 4, mask, 0.7);
  for (int64_t i = 0; i < 400; ++i) {
    const std::vector<uint8_t> chosen = half.choose(5, i), wider = more.choose(5, i);
    EXPECT_EQ(std::count(chosen.begin(), chosen.end(), 1), 20);
    EXPECT_EQ(std::count(wider.begin(), wider.end(), 1), 28);
    for (size_t p = 0; p < chosen.size(); ++p) {
      EXPECT_TRUE(!chosen[p] || (wider[p] && half.cells[p])) << p;
      if (p < 40) drawn[p] += chosen[p];
    }
    distinct.insert(chosen);
  }
  EXPECT_EQ(distinct.size(), 400u);
  // Each cell 200 times of 400, give or take five standard deviations of 10.
  for (const int64_t times : drawn) EXPECT_NEAR(double(times), 200, 50);
  EXPECT_EQ(half.choose(5, 3), half.choose(5, 3));
  EXPECT_NE(half.choose(6, 3), half.choose(5, 3));
  // The stream is its own: the confidence noise of the first step ranks the cells otherwise.
  std::vector<std::pair<uint32_t, size_t>> ranks;
  for (size_t p = 0; p < 40; ++p)
    ranks.emplace_back(kernels::draw(5, 0, uint32_t(p), 0, 0, kernels::Stream::kConfidence).x, p);
  std::sort(ranks.begin(), ranks.end());
  std::vector<uint8_t> by_confidence(64, 0);
  for (size_t i = 0; i < 20; ++i) by_confidence[ranks[i].second] = 1;
  EXPECT_NE(by_confidence, half.choose(5, 0));
}

// planes (3, S, S) of one colour.
std::vector<uint8_t> flat_planes(int size, uint8_t value) {
  return std::vector<uint8_t>(size_t(3 * size * size), value);
}

TEST(PasteBack, KeepsWhatIsKeptToTheBit) {
  for (const auto& [size, factor] : {std::pair{32, 4}, {33, 3}, {32, 16}, {7, 1}}) {
    const PixelMask mask = random_mask(size, size, 40, 11);
    const EditPlan plan = plan_of(size, factor, mask, 0.6);
    const std::vector<uint8_t> chosen = plan.choose(1, 0);
    const Image noise = random_image(size, size, 17);
    std::vector<uint8_t> planes = noise.rgb;
    paste_back(plan, chosen, planes.data());
    const int g = size / factor;
    int64_t kept = 0, same = 0;
    for (int y = 0; y < size; ++y)
      for (int x = 0; x < size; ++x) {
        const bool anew = at_pixel(plan.mask, x, y) && chosen[size_t(y / factor * g + x / factor)];
        const int p = y * size + x;
        int equal = 0;
        for (int c = 0; c < 3; ++c)
          equal += planes[size_t(c * size * size + p)] == plan.image.rgb[size_t(3 * p + c)];
        ASSERT_TRUE(anew || equal == 3) << x << " " << y;
        kept += anew, same += anew && equal == 3;
      }
    EXPECT_GT(kept, 0);
    EXPECT_LT(same, std::max<int64_t>(1, kept / 4));  // what is made anew is not the given picture
  }
}

TEST(PasteBack, NothingKeptOrNothingMade) {
  const PixelMask all{16, 16, std::vector<uint8_t>(256, 1)};
  const EditPlan plan = plan_of(16, 4, all);
  const Image noise = random_image(16, 16, 2);
  std::vector<uint8_t> planes = noise.rgb;
  paste_back(plan, plan.choose(1, 1), planes.data());
  EXPECT_EQ(planes, noise.rgb);
  paste_back(plan, std::vector<uint8_t>(16, 0), planes.data());
  for (size_t p = 0; p < 256; ++p)
    for (size_t c = 0; c < 3; ++c) EXPECT_EQ(planes[c * 256 + p], plan.image.rgb[3 * p + c]);
}

// The tokenizer makes a picture of 100 one of 80: the difference fades over f/2 pixels into the new part.
TEST(PasteBack, TheSeamFadesInsideTheNewPart) {
  const int size = 48, factor = 16, feather = 8;
  EditRequest request;
  request.box = Box{16, 0, 32, 48};
  Image image{size, size, std::vector<uint8_t>(size_t(size * size * 3), 100)};
  EditPlan plan = plan_edit(image, request, size, factor);
  std::vector<uint8_t> planes = flat_planes(size, 80);
  paste_back(plan, plan.choose(1, 0), planes.data());
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x) {
      const int d = x - 15;  // 1 = the first new pixel
      const int wanted = d < 1 ? 100 : d > feather ? 80 : int(std::lround(80 + 20 * (1 - d / 9.0)));
      ASSERT_EQ(planes[size_t(y * size + x)], wanted) << x << " " << y;
    }
  // Bytes stay bytes: a difference of 200 added to 250.
  plan.image.rgb.assign(plan.image.rgb.size(), 255);
  planes = flat_planes(size, 250);
  for (int y = 0; y < size; ++y) std::fill_n(planes.begin() + y * size, 16, uint8_t(55));
  paste_back(plan, plan.choose(1, 0), planes.data());
  EXPECT_EQ(planes[16], 255);
}

// Every pixel against the rule in edit.h, from all sides and in every channel.
TEST(PasteBack, TheSeamIsMovedByTheNearestKeptPixels) {
  for (const auto& [size, factor] : {std::pair{32, 4}, {33, 3}, {32, 16}, {9, 1}}) {
    const EditPlan plan = plan_of(size, factor, random_mask(size, size, 3, 5), 0.6);
    const std::vector<uint8_t> chosen = plan.choose(1, 0), decoded = random_image(size, size, 17).rgb;
    std::vector<uint8_t> planes = decoded;
    paste_back(plan, chosen, planes.data());
    const int g = size / factor, feather = std::max(1, factor / 2), plane = size * size;
    const auto is_kept = [&](int x, int y) {
      return !at_pixel(plan.mask, x, y) || !chosen[size_t(y / factor * g + x / factor)];
    };
    for (int p = 0; p < plane; ++p)
      for (int c = 0; c < 3 && !is_kept(p % size, p / size); ++c) {
        int nearest = feather + 1, count = 0;
        double sum = 0;  // over the kept pixels at that distance
        for (int q = 0; q < plane; ++q) {
          if (!is_kept(q % size, q / size)) continue;
          const int d = std::max(std::abs(q % size - p % size), std::abs(q / size - p / size));
          if (d < nearest) nearest = d, sum = count = 0;
          if (d > nearest || d > feather) continue;
          sum += plan.image.rgb[size_t(3 * q + c)] - decoded[size_t(c * plane + q)], ++count;
        }
        const double moved = count == 0 ? 0 : (1 - double(nearest) / (feather + 1)) * sum / count;
        const int wanted = int(std::clamp(std::lround(decoded[size_t(c * plane + p)] + moved), 0L, 255L));
        ASSERT_EQ(planes[size_t(c * plane + p)], wanted) << size << " " << p << " " << c;
      }
  }
}

// A scratch one pixel wide: nothing of it is left, though every pixel of it lies on the seam.
TEST(PasteBack, NothingOfWhatWasMaskedShinesThrough) {
  const int size = 32;
  PixelMask scratch = empty_mask(size, size);
  for (int i = 0; i < size; ++i) scratch.on[size_t(i * size + i)] = 1;
  EditPlan plan = plan_of(size, 16, scratch);
  plan.image.rgb.assign(plan.image.rgb.size(), 100);
  for (int i = 0; i < size; ++i) std::fill_n(plan.image.rgb.begin() + 3 * (i * size + i), 3, uint8_t(0));
  std::vector<uint8_t> planes = flat_planes(size, 98);
  paste_back(plan, plan.choose(1, 0), planes.data());
  for (int i = 0; i < size; ++i) EXPECT_EQ(planes[size_t(i * size + i)], 100) << i;  // 98 + 8/9 of 2
}

}  // namespace
}  // namespace adanat
