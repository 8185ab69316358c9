#include "core/io/resample.h"

#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/io/safetensors.h"
#include "io/bytes.h"
#include "support/support.h"

namespace adanat {
namespace {

Image noise_image(const std::string& name, int width, int height) {
  const at::Tensor ids = testing::input_ids(name, {height, width, 3}, 256);
  Image image;
  image.width = width;
  image.height = height;
  const at::Tensor bytes = ids.to(at::kByte).contiguous();
  image.rgb.assign(bytes.const_data_ptr<uint8_t>(), bytes.const_data_ptr<uint8_t>() + bytes.numel());
  return image;
}

Image smooth_image(const Image& noise) {
  Image image = noise;
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < image.width; ++x)
      for (int c = 0; c < 3; ++c) {
        uint8_t& value = image.rgb[(static_cast<size_t>(y) * image.width + x) * 3 + c];
        const int base[3] = {x * 255 / (image.width - 1), y * 255 / (image.height - 1),
                             (x + y) * 127 / (image.width + image.height - 2)};
        value = static_cast<uint8_t>(std::clamp(base[c] + value / 16 - 8, 0, 255));
      }
  return image;
}

// Rows and columns stride apart, as the golden file stores large results.
std::vector<uint8_t> sliced(const Image& image, int stride) {
  std::vector<uint8_t> out;
  for (int y = 0; y < image.height; y += stride)
    for (int x = 0; x < image.width; x += stride)
      for (int c = 0; c < 3; ++c)
        out.push_back(image.rgb[(static_cast<size_t>(y) * image.width + x) * 3 + c]);
  return out;
}

class Preprocess : public ::testing::Test {
 protected:
  SafetensorsFile file_ = SafetensorsFile::open(testing::golden_dir() / "preprocess.safetensors");
  std::vector<uint8_t> stored(const std::string& name) const {
    const TensorEntry& entry = file_.at(name);
    const auto* data = reinterpret_cast<const uint8_t*>(file_.data(entry));
    return {data, data + (entry.end - entry.begin)};
  }
};

// Expected: no difference at all from Pillow, on noise and on smooth images, shrinking and enlarging.
TEST_F(Preprocess, AdmTransformEqualsPillow) {
  int cases = 0;
  for (const auto& [key, text] : file_.metadata()) {
    int width = 0, height = 0, size = 0;
    if (std::sscanf(key.c_str(), "w%d_h%d_to%d", &width, &height, &size) != 3) continue;
    ++cases;
    const int stride = size == 256 ? 7 : 1;
    const Image noise = noise_image("preprocess." + key, width, height);
    const Image result = adm_center_crop(noise, size);
    EXPECT_EQ(result.width, size) << key;
    EXPECT_EQ(result.height, size) << key;
    EXPECT_EQ(sliced(result, stride), stored(key)) << key;
    EXPECT_EQ(sliced(adm_center_crop(smooth_image(noise), size), stride), stored(key + ".smooth")) << key;
    if (size != 256) continue;
    EXPECT_EQ(std::vector<uint8_t>(result.rgb.begin(), result.rgb.begin() + 3 * 256), stored(key + ".row0"))
        << key;
    int64_t sum = 0, expected = 0;
    for (const uint8_t value : result.rgb) sum += value;
    std::memcpy(&expected, stored(key + ".sum").data(), 8);
    EXPECT_EQ(sum, expected) << key;
  }
  EXPECT_EQ(cases, 14);
}

TEST_F(Preprocess, FiltersEqualPillow) {
  const Image image = noise_image("preprocess.filter", 28, 20);
  int cases = 0;
  for (const TensorEntry& entry : file_.entries()) {
    char filter[16] = "";
    int width = 0, height = 0;
    if (std::sscanf(entry.name.c_str(), "filter.%15[a-z]_%dx%d", filter, &width, &height) != 3) continue;
    ++cases;
    const Image result =
        resample(image, width, height, std::string(filter) == "box" ? Filter::kBox : Filter::kBicubic);
    EXPECT_EQ(result.rgb, stored(entry.name)) << entry.name;
  }
  EXPECT_EQ(cases, 10);
}

TEST(ResampleTest, SameSizeIsACopy) {
  const Image image = testing::test_image(7, 5);
  EXPECT_EQ(resample(image, 7, 5, Filter::kBicubic).rgb, image.rgb);
  EXPECT_EQ(adm_center_crop(testing::test_image(9, 9), 9).rgb, testing::test_image(9, 9).rgb);
}

TEST(ResampleTest, FlatStaysFlat) {
  Image image = testing::test_image(31, 17);
  std::fill(image.rgb.begin(), image.rgb.end(), uint8_t{201});
  for (const Filter filter : {Filter::kBox, Filter::kBicubic})
    for (const auto& [width, height] : {std::pair{1, 1}, {3, 50}, {64, 2}, {31, 9}})
      for (const uint8_t value : resample(image, width, height, filter).rgb) ASSERT_EQ(value, 201);
}

TEST(ResampleTest, OnePixel) {
  Image image;
  image.width = image.height = 1;
  image.rgb = {1, 2, 3};
  const Image large = adm_center_crop(image, 4);
  for (size_t i = 0; i < large.rgb.size(); ++i) EXPECT_EQ(large.rgb[i], i % 3 + 1);
}

TEST(ResampleTest, SliversAreRefusedBeforeMemoryIsAsked) {
  Image image;
  image.width = 16384;
  image.height = 1;
  image.rgb.resize(16384 * 3);
  testing::expect_input_error([&] { adm_center_crop(image, 256); }, {"16384x1"});
}

TEST(CropTest, TakesTheWindow) {
  const Image image = testing::test_image(6, 4);
  const Image part = crop(image, 2, 1, 3, 2);
  ASSERT_EQ(part.rgb.size(), 18u);
  for (int y = 0; y < 2; ++y)
    for (int i = 0; i < 9; ++i)
      EXPECT_EQ(part.rgb[static_cast<size_t>(y * 9 + i)],
                image.rgb[static_cast<size_t>((y + 1) * 18 + 6 + i)]);
  EXPECT_EQ(crop(image, 0, 0, 6, 4).rgb, image.rgb);
  EXPECT_THROW(crop(image, 4, 0, 3, 1), RunError);
  EXPECT_THROW(crop(image, -1, 0, 3, 1), RunError);
  EXPECT_THROW(crop(image, 0, 0, 0, 1), RunError);
  EXPECT_THROW(crop(image, 0, 2147483647, 1, 2147483647), RunError);
}

TEST(FlipTest, MirrorsAndIsItsOwnInverse) {
  const Image image = testing::test_image(5, 3);
  const Image mirrored = flip_horizontal(image);
  EXPECT_NE(mirrored.rgb, image.rgb);
  for (int c = 0; c < 3; ++c)
    EXPECT_EQ(mirrored.rgb[static_cast<size_t>(c)], image.rgb[static_cast<size_t>(12 + c)]);
  EXPECT_EQ(flip_horizontal(mirrored).rgb, image.rgb);
}

// Made with Pillow 13.0.0: Image.fromarray(channel.astype(float32), "F").resize((width, height), BICUBIC) of
// each channel; CRC-32 of the three planes as little-endian float32.
TEST(ResizeFloatTest, EqualsPillowToTheBit) {
  struct Case {
    int in_width, in_height, width, height;
    uint32_t crc;
    double least;
  };
  for (const Case& c :
       {Case{53, 37, 299, 299, 376699286u, -34.114158630371094},
        Case{40, 300, 31, 20, 137438267u, -5.884085655212402},  // columns first
        Case{64, 64, 299, 299, 709708266u, -32.51469802856445}, Case{299, 299, 299, 299, 758439063u, 0.0},
        Case{500, 375, 299, 299, 3675675400u, -17.523176193237305},
        Case{30, 20, 30, 7, 3061917208u, -7.410059928894043}, Case{30, 20, 7, 20, 144753634u, 0.0}}) {
    const std::vector<float> out =
        resize_bicubic_float(testing::test_image(c.in_width, c.in_height), c.width, c.height);
    ASSERT_EQ(out.size(), static_cast<size_t>(c.width) * c.height * 3);
    EXPECT_EQ(static_cast<double>(*std::min_element(out.begin(), out.end())), c.least);
    EXPECT_EQ(crc32(0, reinterpret_cast<const Bytef*>(out.data()), static_cast<uInt>(out.size() * 4)), c.crc)
        << c.in_width << "x" << c.in_height << " to " << c.width << "x" << c.height;
  }
  EXPECT_THROW(resize_bicubic_float(testing::test_image(4, 4), 0, 4), RunError);
}

}  // namespace
}  // namespace adanat
