#include "core/io/plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/base/error.h"

namespace adanat {
namespace {

PlotOptions sized(int width, int height) {
  PlotOptions options;
  options.width = width, options.height = height;
  return options;
}

size_t pixels_near(const Image& image, int r, int g, int b) {
  size_t count = 0;
  for (size_t p = 0; p < image.rgb.size(); p += 3)
    count += std::abs(image.rgb[p] - r) < 12 && std::abs(image.rgb[p + 1] - g) < 12 &&
             std::abs(image.rgb[p + 2] - b) < 12;
  return count;
}

TEST(AxisTicks, RoundNumbersThatCoverTheRange) {
  const auto expect = [](double low, double high, int count, std::vector<double> want, bool whole = false) {
    const std::vector<double> got = axis_ticks(low, high, count, whole);
    ASSERT_EQ(got.size(), want.size()) << low << " " << high;
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12);
  };
  expect(0, 10, 5, {0, 2, 4, 6, 8, 10});
  expect(0.3, 9.7, 5, {0, 2, 4, 6, 8, 10});
  expect(-0.07, 0.11, 4, {-0.1, -0.05, 0, 0.05, 0.1, 0.15});
  expect(1, 4, 8, {1, 2, 3, 4}, true);
  for (const double scale : {1e-9, 1.0, 1e12})
    for (const double low : {-3.3, 0.0, 7.7}) {
      const auto ticks = axis_ticks(low * scale, (low + 1.7) * scale, 6);
      EXPECT_LE(ticks.front(), low * scale + 1e-9 * scale);
      EXPECT_GE(ticks.back(), (low + 1.7) * scale - 1e-9 * scale);
      EXPECT_GE(ticks.size(), 4u);
      EXPECT_LE(ticks.size(), 12u);
    }
}

TEST(Plot, DrawsEverySeriesWhereItsPointsAre) {
  const std::vector<PlotSeries> series{{"a", {0, 10}, {0, 0}, {}, {}}, {"b", {0, 10}, {10, 10}, {}, {}}};
  const Image image =
      draw_plot(series, {.title = "t", .x_label = "x", .y_label = "y", .width = 400, .height = 300});
  ASSERT_EQ(image.width, 400);
  ASSERT_EQ(image.height, 300);
  const auto row_of = [&](int r, int g, int b) {  // the mean row of a colour
    double sum = 0, count = 0;
    for (int y = 0; y < 300; ++y)
      for (int x = 100; x < 250; ++x) {
        const uint8_t* p = image.rgb.data() + (y * 400 + x) * 3;
        if (std::abs(p[0] - r) + std::abs(p[1] - g) + std::abs(p[2] - b) < 20) sum += y, ++count;
      }
    return count > 100 ? sum / count : -1;
  };
  const double blue = row_of(0, 114, 178), red = row_of(213, 94, 0);
  EXPECT_GT(blue, 230) << "y = 0 is at the bottom";
  EXPECT_GT(red, 0);
  EXPECT_LT(red, 60) << "y = 10 is at the top";
}

TEST(Plot, BandsGapsAndSinglePoints) {
  PlotSeries s{"", {1, 2, 3, 4}, {1, NAN, 3, 2}, {}, {}};
  const size_t without = pixels_near(draw_plot({s}, {}), 0, 114, 178);
  s.y[1] = 2;
  EXPECT_GT(pixels_near(draw_plot({s}, {}), 0, 114, 178), without)
      << "a point that is not finite breaks the line";
  s.low = {0, 1, 2, 1}, s.high = {2, 3, 4, 3};
  EXPECT_GT(pixels_near(draw_plot({s}, {}), 209, 230, 241), 5000u) << "the tint of the band";
  EXPECT_GT(pixels_near(draw_plot({{"one", {5}, {7}, {}, {}}}, {}), 0, 114, 178), 20u);
  std::vector<PlotSeries> many;
  for (int i = 0; i < 20; ++i) many.push_back({std::string(60, 'w'), {0, 1}, {double(i), 1e300}, {}, {}});
  EXPECT_EQ(draw_plot(many, sized(320, 240)).rgb.size(), 320u * 240 * 3)
      << "a legend that leaves the picture";
}

// Whatever finite numbers a file of results holds: a picture, or the one error.
TEST(Plot, ExtremeValues) {
  const double huge = 1.7e308, tiny = 5e-324;
  PlotOptions from_zero, whole;
  from_zero.y_from_zero = true, whole.whole_x = true;
  for (const std::vector<double>& y : std::vector<std::vector<double>>{{-1e300, 1e300},
                                                                       {tiny, 0},
                                                                       {tiny, tiny},
                                                                       {1e-310, 3e-310},
                                                                       {1e300, 1e300},
                                                                       {5, std::nextafter(5, 6)},
                                                                       {1e300, std::nextafter(1e300, 0)},
                                                                       {0, 1e-300}}) {
    for (const PlotOptions& options : {PlotOptions{}, from_zero})
      EXPECT_GT(pixels_near(draw_plot({{"a", {1, 2}, y, {}, {}}}, options), 0, 114, 178), 20u)
          << y[0] << " " << y[1];
    EXPECT_GT(pixels_near(draw_plot({{"a", y, {1, 2}, {}, {}}}, whole), 0, 114, 178), 20u);
  }
  // What is too large is left out like what is not finite: the picture is that of the rest.
  const Image rest = draw_plot({{"", {1, 2, 3, 4}, {1, 2, NAN, 1}, {}, {}}}, {});
  for (const double y : {huge, -huge, 2e300}) {
    EXPECT_EQ(draw_plot({{"", {1, 2, 3, 4}, {1, 2, y, 1}, {}, {}}}, {}).rgb, rest.rgb) << y;
    EXPECT_EQ(draw_plot({{"", {1, 2, y, 4}, {1, 2, 9, 1}, {}, {}}}, {}).rgb, rest.rgb) << y;
    EXPECT_THROW(draw_plot({{"", {1, 2}, {y, y}, {}, {}}}, {}), RunError);
  }
  EXPECT_GT(
      pixels_near(draw_plot({{"", {1, 2, 3}, {1, 2, 3}, {0, -huge, 2}, {2, huge, 4}}}, {}), 0, 114, 178),
      100u);
}

TEST(Plot, Errors) {
  EXPECT_THROW(draw_plot({}, {}), RunError);
  EXPECT_THROW(draw_plot({{"a", {1}, {NAN}, {}, {}}}, {}), RunError);
  EXPECT_THROW(draw_plot({{"a", {1, 2}, {1}, {}, {}}}, {}), RunError);
  EXPECT_THROW(draw_plot({{"a", {1}, {1}, {1}, {}}}, {}), RunError);
  EXPECT_THROW(draw_plot({{"a", {1}, {1}, {}, {}}}, sized(10, 600)), RunError);
}

}  // namespace
}  // namespace adanat
