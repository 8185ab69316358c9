#include "core/io/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/error.h"
#include "core/io/crop_geometry.h"

namespace adanat {
namespace {

constexpr int kFractionBits = 32 - 8 - 2;  // 8 bits of pixel, 2 bits of headroom for the negative lobes

double box(double x) {
  return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// For each output position the first input position, how many, and their weights (stride values apart).
template <class Value>
struct WeightTable {
  struct Range {
    int first, count;
  };
  std::vector<Range> ranges;
  std::vector<Value> values;
  int stride = 0;
};
using Weights = WeightTable<int>;  // fixed point

// The order of the floating-point operations is Pillow's: another order would change the last bit of some
// weights.
WeightTable<double> make_real_weights(int in_size, int out_size, Filter filter) {
  double (*const function)(double) = filter == Filter::kBox ? box : bicubic;
  const double scale = static_cast<double>(in_size) / out_size;
  const double filter_scale = std::max(scale, 1.0);
  const double support = (filter == Filter::kBox ? 0.5 : 2.0) * filter_scale;
  WeightTable<double> weights;
  weights.stride = static_cast<int>(std::ceil(support)) * 2 + 1;
  weights.ranges.resize(static_cast<size_t>(out_size));
  weights.values.assign(static_cast<size_t>(out_size) * weights.stride, 0);
  std::vector<double> row(static_cast<size_t>(weights.stride));
  for (int out = 0; out < out_size; ++out) {
    const double center = (out + 0.5) * scale;
    const double inverse = 1.0 / filter_scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), in_size) - first;
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
      row[static_cast<size_t>(i)] = function((i + first - center + 0.5) * inverse);
      sum += row[static_cast<size_t>(i)];
    }
    double* values = weights.values.data() + static_cast<size_t>(out) * weights.stride;
    for (int i = 0; i < count; ++i)
      values[i] = sum != 0.0 ? row[static_cast<size_t>(i)] / sum : row[static_cast<size_t>(i)];
    weights.ranges[static_cast<size_t>(out)] = {first, count};
  }
  return weights;
}

Weights make_weights(int in_size, int out_size, Filter filter) {
  const WeightTable<double> real = make_real_weights(in_size, out_size, filter);
  Weights weights;
  weights.stride = real.stride;
  weights.values.resize(real.values.size());
  for (const auto [first, count] : real.ranges) weights.ranges.push_back({first, count});
  std::transform(real.values.begin(), real.values.end(), weights.values.begin(), [](double value) {
    const double scaled = value * (1 << kFractionBits);
    return static_cast<int>(value < 0 ? scaled - 0.5 : scaled + 0.5);
  });
  return weights;
}

uint8_t to_pixel(int fixed) {
  return static_cast<uint8_t>(std::clamp(fixed >> kFractionBits, 0, 255));
}

constexpr int kHalf = 1 << (kFractionBits - 1);

Image make_image(int width, int height) {
  Image image;
  image.width = width;
  image.height = height;
  image.rgb.resize(static_cast<size_t>(width) * height * 3);
  return image;
}

Image resample_rows(const Image& in, int width, Filter filter) {
  const Weights weights = make_weights(in.width, width, filter);
  Image out = make_image(width, in.height);
  for (int y = 0; y < in.height; ++y) {
    const uint8_t* source = in.rgb.data() + static_cast<size_t>(y) * in.width * 3;
    uint8_t* target = out.rgb.data() + static_cast<size_t>(y) * width * 3;
    for (int x = 0; x < width; ++x, target += 3) {
      const auto [first, count] = weights.ranges[static_cast<size_t>(x)];
      const int* value = weights.values.data() + static_cast<size_t>(x) * weights.stride;
      const uint8_t* pixel = source + static_cast<size_t>(first) * 3;
      int red = kHalf, green = kHalf, blue = kHalf;
      for (int i = 0; i < count; ++i, pixel += 3) {
        red += pixel[0] * value[i];
        green += pixel[1] * value[i];
        blue += pixel[2] * value[i];
      }
      target[0] = to_pixel(red);
      target[1] = to_pixel(green);
      target[2] = to_pixel(blue);
    }
  }
  return out;
}

Image resample_columns(const Image& in, int height, Filter filter) {
  const Weights weights = make_weights(in.height, height, filter);
  Image out = make_image(in.width, height);
  const size_t row_size = static_cast<size_t>(in.width) * 3;
  std::vector<int> sums(row_size);  // whole rows at a time: the inner loop runs along memory
  for (int y = 0; y < height; ++y) {
    const auto [first, count] = weights.ranges[static_cast<size_t>(y)];
    const int* value = weights.values.data() + static_cast<size_t>(y) * weights.stride;
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int i = 0; i < count; ++i) {
      const uint8_t* source = in.rgb.data() + static_cast<size_t>(first + i) * row_size;
      for (size_t x = 0; x < row_size; ++x) sums[x] += source[x] * value[i];
    }
    uint8_t* target = out.rgb.data() + static_cast<size_t>(y) * row_size;
    for (size_t x = 0; x < row_size; ++x) target[x] = to_pixel(sums[x]);
  }
  return out;
}

// One channel in float32, (height, width).
struct Plane {
  int width, height;
  std::vector<float> values;
};

Plane float_rows(const Plane& in, int width) {
  const WeightTable<double> weights = make_real_weights(in.width, width, Filter::kBicubic);
  Plane out{width, in.height, std::vector<float>(static_cast<size_t>(width) * in.height)};
  for (int y = 0; y < in.height; ++y) {
    const float* source = in.values.data() + static_cast<size_t>(y) * in.width;
    float* target = out.values.data() + static_cast<size_t>(y) * width;
    for (int x = 0; x < width; ++x) {
      const auto [first, count] = weights.ranges[static_cast<size_t>(x)];
      const double* weight = weights.values.data() + static_cast<size_t>(x) * weights.stride;
      double sum = 0;
      for (int i = 0; i < count; ++i) sum += source[first + i] * weight[i];
      target[x] = static_cast<float>(sum);
    }
  }
  return out;
}

Plane float_columns(const Plane& in, int height) {
  const WeightTable<double> weights = make_real_weights(in.height, height, Filter::kBicubic);
  Plane out{in.width, height, std::vector<float>(static_cast<size_t>(in.width) * height)};
  std::vector<double> sums(static_cast<size_t>(in.width));
  for (int y = 0; y < height; ++y) {
    const auto [first, count] = weights.ranges[static_cast<size_t>(y)];
    const double* weight = weights.values.data() + static_cast<size_t>(y) * weights.stride;
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int i = 0; i < count; ++i) {
      const float* source = in.values.data() + static_cast<size_t>(first + i) * in.width;
      for (int x = 0; x < in.width; ++x) sums[static_cast<size_t>(x)] += source[x] * weight[i];
    }
    float* target = out.values.data() + static_cast<size_t>(y) * in.width;
    for (int x = 0; x < in.width; ++x) target[x] = static_cast<float>(sums[static_cast<size_t>(x)]);
  }
  return out;
}

// Pillow's rule since version 13 for which pass comes first.
bool columns_first(const Image& image, int width, int height) {
  const int fewer_rows = image.height - height, fewer_columns = image.width - width;
  return fewer_rows > 0 && fewer_rows > 2 * static_cast<int64_t>(fewer_columns);
}

void check(const Image& image) {
  if (image.width < 1 || image.height < 1 ||
      image.rgb.size() != static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3)
    throw RunError(cat("an image of ", image.width, "x", image.height, " with ", image.rgb.size(),
                       " bytes is inconsistent"));
}

}  // namespace

Image resample(const Image& image, int width, int height, Filter filter) {
  check(image);
  if (width < 1 || height < 1) throw RunError(cat("cannot resize an image to ", width, "x", height));
  if (width == image.width) return height == image.height ? image : resample_columns(image, height, filter);
  if (height == image.height) return resample_rows(image, width, filter);
  // The order of the passes is visible in the last bit: each rounds to 8 bits.
  if (columns_first(image, width, height))
    return resample_rows(resample_columns(image, height, filter), width, filter);
  return resample_columns(resample_rows(image, width, filter), height, filter);
}

std::vector<float> resize_bicubic_float(const Image& image, int width, int height) {
  check(image);
  if (width < 1 || height < 1) throw RunError(cat("cannot resize an image to ", width, "x", height));
  const size_t pixels = static_cast<size_t>(image.width) * image.height;
  std::vector<float> out;
  out.reserve(static_cast<size_t>(width) * height * 3);
  const bool columns = columns_first(image, width, height);
  for (size_t channel = 0; channel < 3; ++channel) {
    Plane plane{image.width, image.height, std::vector<float>(pixels)};
    for (size_t i = 0; i < pixels; ++i) plane.values[i] = image.rgb[i * 3 + channel];
    if (columns && height != image.height) plane = float_columns(plane, height);
    if (width != image.width) plane = float_rows(plane, width);
    if (!columns && height != image.height) plane = float_columns(plane, height);
    out.insert(out.end(), plane.values.begin(), plane.values.end());
  }
  return out;
}

CropGeometry adm_geometry(int width, int height, int size) {
  if (width < 1 || height < 1 || size < 1)
    throw RunError(cat("cannot crop an image of ", width, "x", height, " to the size ", size));
  const int given_width = width, given_height = height;
  while (std::min(width, height) >= 2 * static_cast<int64_t>(size)) width /= 2, height /= 2;
  if (std::min(width, height) != size) {
    const double scale = static_cast<double>(size) / std::min(width, height);
    // nearbyint rounds half to even, as Python's round does.
    const double wide = std::nearbyint(width * scale), high = std::nearbyint(height * scale);
    // A sliver (1 x 16384) enlarged to the size could ask for any amount of memory.
    if (wide * high > static_cast<double>(kMaxImagePixels))
      throw InputError(cat("an image of ", given_width, "x", given_height,
                           " is too long and narrow to be scaled to ", size));
    width = static_cast<int>(wide), height = static_cast<int>(high);
  }
  return {width, height, (width - size) / 2, (height - size) / 2};
}

Image adm_center_crop(const Image& image, int size) {
  check(image);
  const CropGeometry to = adm_geometry(image.width, image.height, size);
  const Image* current = &image;
  Image resized;
  const auto take = [&](Image next) {
    resized = std::move(next);
    current = &resized;
  };
  while (std::min(current->width, current->height) >= 2 * static_cast<int64_t>(size))
    take(resample(*current, current->width / 2, current->height / 2, Filter::kBox));
  if (current->width != to.width || current->height != to.height)
    take(resample(*current, to.width, to.height, Filter::kBicubic));
  if (to.width == size && to.height == size) return current == &image ? image : std::move(resized);
  return crop(*current, to.left, to.top, size, size);
}

Image crop(const Image& image, int left, int top, int width, int height) {
  check(image);
  if (left < 0 || top < 0 || width < 1 || height < 1 || width > image.width - left ||
      height > image.height - top)
    throw RunError(cat("the window ", width, "x", height, " at (", left, ", ", top,
                       ") is not inside an image of ", image.width, "x", image.height));
  Image out = make_image(width, height);
  for (int y = 0; y < height; ++y)
    std::memcpy(out.rgb.data() + static_cast<size_t>(y) * width * 3,
                image.rgb.data() + (static_cast<size_t>(top + y) * image.width + left) * 3,
                static_cast<size_t>(width) * 3);
  return out;
}

Image flip_horizontal(const Image& image) {
  check(image);
  Image out = make_image(image.width, image.height);
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* source = image.rgb.data() + static_cast<size_t>(y) * image.width * 3;
    uint8_t* target = out.rgb.data() + static_cast<size_t>(y + 1) * image.width * 3;
    for (int x = 0; x < image.width; ++x, source += 3) {
      target -= 3;
      std::memcpy(target, source, 3);
    }
  }
  return out;
}

}  // namespace adanat
