#include "core/io/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "core/base/error.h"

namespace adanat {
namespace {

// Printable ASCII from ' ' to '~', 5 columns of 7 dots each, the lowest bit on top.
constexpr uint8_t kFont[95][5] = {{0, 0, 0, 0, 0},
                                  {0, 0, 0x5F, 0, 0},
                                  {0, 7, 0, 7, 0},
                                  {0x14, 0x7F, 0x14, 0x7F, 0x14},
                                  {0x24, 0x2A, 0x7F, 0x2A, 0x12},
                                  {0x23, 0x13, 0x08, 0x64, 0x62},
                                  {0x36, 0x49, 0x56, 0x20, 0x50},
                                  {0, 0, 7, 0, 0},
                                  {0, 0x1C, 0x22, 0x41, 0},
                                  {0, 0x41, 0x22, 0x1C, 0},
                                  {0x2A, 0x1C, 0x7F, 0x1C, 0x2A},
                                  {0x08, 0x08, 0x3E, 0x08, 0x08},
                                  {0, 0x50, 0x30, 0, 0},
                                  {0x08, 0x08, 0x08, 0x08, 0x08},
                                  {0, 0x60, 0x60, 0, 0},
                                  {0x20, 0x10, 0x08, 0x04, 0x02},
                                  {0x3E, 0x51, 0x49, 0x45, 0x3E},
                                  {0, 0x42, 0x7F, 0x40, 0},
                                  {0x42, 0x61, 0x51, 0x49, 0x46},
                                  {0x21, 0x41, 0x45, 0x4B, 0x31},
                                  {0x18, 0x14, 0x12, 0x7F, 0x10},
                                  {0x27, 0x45, 0x45, 0x45, 0x39},
                                  {0x3C, 0x4A, 0x49, 0x49, 0x30},
                                  {0x01, 0x71, 0x09, 0x05, 0x03},
                                  {0x36, 0x49, 0x49, 0x49, 0x36},
                                  {0x06, 0x49, 0x49, 0x29, 0x1E},
                                  {0, 0x36, 0x36, 0, 0},
                                  {0, 0x56, 0x36, 0, 0},
                                  {0x08, 0x14, 0x22, 0x41, 0},
                                  {0x14, 0x14, 0x14, 0x14, 0x14},
                                  {0, 0x41, 0x22, 0x14, 0x08},
                                  {0x02, 0x01, 0x51, 0x09, 0x06},
                                  {0x3E, 0x41, 0x5D, 0x55, 0x1E},
                                  {0x7E, 0x11, 0x11, 0x11, 0x7E},
                                  {0x7F, 0x49, 0x49, 0x49, 0x36},
                                  {0x3E, 0x41, 0x41, 0x41, 0x22},
                                  {0x7F, 0x41, 0x41, 0x22, 0x1C},
                                  {0x7F, 0x49, 0x49, 0x49, 0x41},
                                  {0x7F, 0x09, 0x09, 0x09, 0x01},
                                  {0x3E, 0x41, 0x49, 0x49, 0x7A},
                                  {0x7F, 0x08, 0x08, 0x08, 0x7F},
                                  {0, 0x41, 0x7F, 0x41, 0},
                                  {0x20, 0x40, 0x41, 0x3F, 0x01},
                                  {0x7F, 0x08, 0x14, 0x22, 0x41},
                                  {0x7F, 0x40, 0x40, 0x40, 0x40},
                                  {0x7F, 0x02, 0x0C, 0x02, 0x7F},
                                  {0x7F, 0x04, 0x08, 0x10, 0x7F},
                                  {0x3E, 0x41, 0x41, 0x41, 0x3E},
                                  {0x7F, 0x09, 0x09, 0x09, 0x06},
                                  {0x3E, 0x41, 0x51, 0x21, 0x5E},
                                  {0x7F, 0x09, 0x19, 0x29, 0x46},
                                  {0x46, 0x49, 0x49, 0x49, 0x31},
                                  {0x01, 0x01, 0x7F, 0x01, 0x01},
                                  {0x3F, 0x40, 0x40, 0x40, 0x3F},
                                  {0x1F, 0x20, 0x40, 0x20, 0x1F},
                                  {0x3F, 0x40, 0x38, 0x40, 0x3F},
                                  {0x63, 0x14, 0x08, 0x14, 0x63},
                                  {0x07, 0x08, 0x70, 0x08, 0x07},
                                  {0x61, 0x51, 0x49, 0x45, 0x43},
                                  {0, 0x7F, 0x41, 0x41, 0},
                                  {0x02, 0x04, 0x08, 0x10, 0x20},
                                  {0, 0x41, 0x41, 0x7F, 0},
                                  {0x04, 0x02, 0x01, 0x02, 0x04},
                                  {0x40, 0x40, 0x40, 0x40, 0x40},
                                  {0, 0x01, 0x02, 0x04, 0},
                                  {0x20, 0x54, 0x54, 0x54, 0x78},
                                  {0x7F, 0x48, 0x44, 0x44, 0x38},
                                  {0x38, 0x44, 0x44, 0x44, 0x20},
                                  {0x38, 0x44, 0x44, 0x48, 0x7F},
                                  {0x38, 0x54, 0x54, 0x54, 0x18},
                                  {0x08, 0x7E, 0x09, 0x01, 0x02},
                                  {0x0C, 0x52, 0x52, 0x52, 0x3E},
                                  {0x7F, 0x08, 0x04, 0x04, 0x78},
                                  {0, 0x44, 0x7D, 0x40, 0},
                                  {0x20, 0x40, 0x44, 0x3D, 0},
                                  {0x7F, 0x10, 0x28, 0x44, 0},
                                  {0, 0x41, 0x7F, 0x40, 0},
                                  {0x7C, 0x04, 0x18, 0x04, 0x78},
                                  {0x7C, 0x08, 0x04, 0x04, 0x78},
                                  {0x38, 0x44, 0x44, 0x44, 0x38},
                                  {0x7C, 0x14, 0x14, 0x14, 0x08},
                                  {0x08, 0x14, 0x14, 0x18, 0x7C},
                                  {0x7C, 0x08, 0x04, 0x04, 0x08},
                                  {0x48, 0x54, 0x54, 0x54, 0x20},
                                  {0x04, 0x3F, 0x44, 0x40, 0x20},
                                  {0x3C, 0x40, 0x40, 0x20, 0x7C},
                                  {0x1C, 0x20, 0x40, 0x20, 0x1C},
                                  {0x3C, 0x40, 0x30, 0x40, 0x3C},
                                  {0x44, 0x28, 0x10, 0x28, 0x44},
                                  {0x0C, 0x50, 0x50, 0x50, 0x3C},
                                  {0x44, 0x64, 0x54, 0x4C, 0x44},
                                  {0, 0x08, 0x36, 0x41, 0},
                                  {0, 0, 0x7F, 0, 0},
                                  {0, 0x41, 0x36, 0x08, 0},
                                  {0x08, 0x04, 0x08, 0x10, 0x08}};

constexpr int kTextHeight = 7, kAdvance = 6;

struct Colour {
  uint8_t r, g, b;
};
constexpr Colour kBlack{30, 30, 30}, kGrid{226, 226, 226}, kAxis{110, 110, 110};
// Told apart by people with the common colour blindnesses too (Okabe and Ito 2008; the yellow darkened).
constexpr std::array<Colour, 8> kColours{{{0, 114, 178},
                                          {213, 94, 0},
                                          {0, 158, 115},
                                          {204, 121, 167},
                                          {86, 180, 233},
                                          {230, 159, 0},
                                          {110, 110, 110},
                                          {150, 130, 0}}};

class Canvas {
 public:
  Canvas(int width, int height) {
    image_.width = width, image_.height = height;
    image_.rgb.assign(size_t(width) * size_t(height) * 3, 255);
  }
  // Mixes a colour in with weight 0..1; points outside are left out.
  void mix(int x, int y, Colour c, double weight) {
    if (x < 0 || y < 0 || x >= image_.width || y >= image_.height || weight <= 0) return;
    uint8_t* p = image_.rgb.data() + (size_t(y) * size_t(image_.width) + size_t(x)) * 3;
    const auto blend = [&](uint8_t& v, uint8_t w) {
      v = uint8_t(std::lround(v + (w - v) * std::min(weight, 1.0)));
    };
    blend(p[0], c.r), blend(p[1], c.g), blend(p[2], c.b);
  }
  void fill(int left, int top, int right, int bottom, Colour c) {  // half-open
    for (int y = top; y < bottom; ++y)
      for (int x = left; x < right; ++x) mix(x, y, c, 1);
  }
  // A round-ended line whose edge is smoothed over one pixel.
  void line(double x0, double y0, double x1, double y1, double thickness, Colour c) {
    const double half = thickness / 2, reach = half + 1;
    const double dx = x1 - x0, dy = y1 - y0, length2 = dx * dx + dy * dy;
    for (int y = int(std::floor(std::min(y0, y1) - reach)); y <= int(std::ceil(std::max(y0, y1) + reach));
         ++y) {
      for (int x = int(std::floor(std::min(x0, x1) - reach)); x <= int(std::ceil(std::max(x0, x1) + reach));
           ++x) {
        const double t = length2 > 0 ? std::clamp(((x - x0) * dx + (y - y0) * dy) / length2, 0.0, 1.0) : 0;
        mix(x, y, c, half + 0.5 - std::hypot(x - x0 - t * dx, y - y0 - t * dy));
      }
    }
  }
  void marker(double x, double y, int shape, Colour c) {
    if (shape == 0)
      line(x, y, x, y, 8, c);
    else if (shape == 1)
      fill(int(x) - 3, int(y) - 3, int(x) + 4, int(y) + 4, c);
    else
      line(x - 4, y, x + 4, y, 2, c), line(x, y - 4, x, y + 4, 2, c);
  }
  void text(int x, int y, const std::string& words, int scale, Colour c, bool upwards = false) {
    for (const char letter : words) {
      const auto& glyph = kFont[letter >= ' ' && letter <= '~' ? letter - ' ' : '?' - ' '];
      for (int column = 0; column < 5; ++column)
        for (int row = 0; row < kTextHeight; ++row)
          if (glyph[column] >> row & 1) {
            const int left = upwards ? x + row * scale : x + column * scale;
            const int top = upwards ? y - (column + 1) * scale : y + row * scale;
            fill(left, top, left + scale, top + scale, c);
          }
      (upwards ? y : x) += (upwards ? -1 : 1) * kAdvance * scale;
    }
  }
  Image take() { return std::move(image_); }

 private:
  Image image_;
};

int text_width(const std::string& words, int scale) {
  return int(words.size()) * kAdvance * scale;
}

std::string tick_label(double value, double step) {
  char out[32];
  if (std::abs(value) < step * 1e-9) return "0";
  const double largest = std::max(std::abs(value), step);
  if (largest >= 1e6 || step < 1e-5)
    std::snprintf(out, sizeof out, "%.3g", value);
  else
    std::snprintf(out, sizeof out, "%.*f", std::max(0, int(-std::floor(std::log10(step) + 1e-9))), value);
  return out;
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void add(double v) {
    if (can_be_plotted(v)) low = std::min(low, v), high = std::max(high, v);
  }
  void widen() {  // a single value gets some room around it; values that ticks could not tell apart are one
    const double largest = std::max(std::abs(low), std::abs(high));
    if (high - low > std::max(largest * 1e-12, 1e-300)) return;
    const double room = largest > 1e-300 ? largest * 0.1 : 1;
    low -= room, high += room;
  }
};

}  // namespace

std::vector<double> axis_ticks(double low, double high, int count, bool whole) {
  const double raw = (high - low) / std::max(count, 1);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = power;
  for (const double factor : {2.0, 5.0, 10.0})
    if (step < raw * (1 - 1e-9)) step = power * factor;
  if (whole) step = std::max(1.0, std::round(step));
  std::vector<double> ticks;
  const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  for (double i = first; i <= last && ticks.size() < 1000; ++i) ticks.push_back(i * step);
  return ticks;
}

Image draw_plot(const std::vector<PlotSeries>& series, const PlotOptions& options) {
  if (options.width < 320 || options.height < 240 || options.width > 8192 || options.height > 8192)
    throw RunError(
        cat("plot: the size must be 320x240 to 8192x8192, got ", options.width, "x", options.height));
  Range xs, ys;
  for (const PlotSeries& s : series) {
    if (s.x.size() != s.y.size() || s.low.size() != s.high.size() ||
        (!s.low.empty() && s.low.size() != s.x.size()))
      throw RunError(cat("plot: series ", s.name, " has ", s.x.size(), " x, ", s.y.size(), " y and ",
                         s.low.size(), "/", s.high.size(), " band values"));
    for (size_t i = 0; i < s.x.size(); ++i) {
      if (!can_be_plotted(s.y[i]) || !can_be_plotted(s.x[i])) continue;
      xs.add(s.x[i]), ys.add(s.y[i]);
      if (!s.low.empty()) ys.add(s.low[i]), ys.add(s.high[i]);
    }
  }
  if (!(xs.low <= xs.high)) throw RunError("plot: there is no point that can be drawn");
  if (options.y_from_zero) ys.add(0);
  xs.widen(), ys.widen();
  const int scale = options.width >= 640 ? 2 : 1;
  const std::vector<double> y_ticks = axis_ticks(ys.low, ys.high, std::max(3, options.height / 90));
  const std::vector<double> x_ticks =
      axis_ticks(xs.low, xs.high, std::max(3, options.width / 110), options.whole_x);
  const double y_step = y_ticks[1] - y_ticks[0], x_step = x_ticks.size() > 1 ? x_ticks[1] - x_ticks[0] : 1;

  int label_width = 0;
  for (const double t : y_ticks)
    label_width = std::max(label_width, text_width(tick_label(t, y_step), scale));
  const int letter = kTextHeight * scale;
  const int left = label_width + 14 + (options.y_label.empty() ? 0 : letter + 12), right = options.width - 20;
  const int top = 16 + (options.title.empty() ? 0 : letter + 12);
  const int bottom = options.height - letter - 16 - (options.x_label.empty() ? 0 : letter + 10);
  Canvas canvas(options.width, options.height);
  // x keeps its own range with a little room, y ends at ticks.
  const double room = (xs.high - xs.low) * 0.03, x_low = xs.low - room, x_high = xs.high + room;
  const auto px = [&](double v) { return left + (v - x_low) / (x_high - x_low) * (right - left); };
  const auto py = [&](double v) {
    return bottom - (v - y_ticks.front()) / (y_ticks.back() - y_ticks.front()) * (bottom - top);
  };

  for (const double t : y_ticks) {
    const int y = int(std::lround(py(t)));
    canvas.fill(left, y, right, y + 1, kGrid);
    const std::string label = tick_label(t, y_step);
    canvas.text(left - 8 - text_width(label, scale), y - letter / 2, label, scale, kBlack);
  }
  for (const double t : x_ticks) {
    if (t < x_low || t > x_high) continue;
    const int x = int(std::lround(px(t)));
    canvas.fill(x, top, x + 1, bottom, kGrid);
    const std::string label = tick_label(t, x_step);
    canvas.text(x - text_width(label, scale) / 2 + scale / 2, bottom + 8, label, scale, kBlack);
  }
  for (size_t i = 0; i < series.size(); ++i) {
    const PlotSeries& s = series[i];
    for (size_t k = 0; k + 1 < s.low.size(); ++k) {
      const std::array<double, 6> ends{s.x[k], s.x[k + 1], s.low[k], s.low[k + 1], s.high[k], s.high[k + 1]};
      if (!std::all_of(ends.begin(), ends.end(), can_be_plotted)) continue;
      const double begin = px(s.x[k]), end = px(s.x[k + 1]);
      for (int x = int(std::ceil(std::min(begin, end))); x < int(std::ceil(std::max(begin, end))); ++x) {
        const double t = (x - begin) / (end - begin);
        const double a = py(s.low[k] + t * (s.low[k + 1] - s.low[k])),
                     b = py(s.high[k] + t * (s.high[k + 1] - s.high[k]));
        for (int y = int(std::lround(std::min(a, b))); y <= int(std::lround(std::max(a, b))); ++y)
          canvas.mix(x, y, kColours[i % kColours.size()], 0.18);
      }
    }
  }
  canvas.fill(left, top, left + 1, bottom + 1, kAxis);
  canvas.fill(left, bottom, right, bottom + 1, kAxis);
  for (size_t i = 0; i < series.size(); ++i) {
    const PlotSeries& s = series[i];
    const Colour colour = kColours[i % kColours.size()];
    const int shape = int(i / kColours.size() % 3);
    const auto drawn = [&](size_t k) { return can_be_plotted(s.x[k]) && can_be_plotted(s.y[k]); };
    for (size_t k = 0; k < s.x.size(); ++k) {
      if (!drawn(k)) continue;
      if (k > 0 && drawn(k - 1))
        canvas.line(px(s.x[k - 1]), py(s.y[k - 1]), px(s.x[k]), py(s.y[k]), 2.5, colour);
      if (s.x.size() <= 64) canvas.marker(px(s.x[k]), py(s.y[k]), shape, colour);
    }
  }

  // The legend stands in the corner that the fewest points come near.
  int legend_width = 0, entries = 0;
  for (const PlotSeries& s : series)
    if (!s.name.empty()) legend_width = std::max(legend_width, text_width(s.name, scale) + 40), ++entries;
  if (entries > 0) {
    const int row = letter + 8, legend_height = entries * row + 8;
    int best_x = 0, best_y = 0, fewest = std::numeric_limits<int>::max();
    for (const bool low : {false, true}) {
      for (const bool at_left : {false, true}) {
        const int x = at_left ? left + 10 : right - 10 - legend_width,
                  y = low ? bottom - 10 - legend_height : top + 10;
        int hits = 0;
        for (const PlotSeries& s : series)
          for (size_t k = 0; k < s.x.size(); ++k)
            if (can_be_plotted(s.x[k]) && can_be_plotted(s.y[k]))
              hits += px(s.x[k]) > x - 10 && px(s.x[k]) < x + legend_width + 10 && py(s.y[k]) > y - 10 &&
                      py(s.y[k]) < y + legend_height + 10;
        if (hits < fewest) fewest = hits, best_x = x, best_y = y;
      }
    }
    for (int y = best_y; y < best_y + legend_height; ++y)
      for (int x = best_x; x < best_x + legend_width; ++x) canvas.mix(x, y, {255, 255, 255}, 0.8);
    int y = best_y + 8;
    for (size_t i = 0; i < series.size(); ++i) {
      if (series[i].name.empty()) continue;
      const Colour colour = kColours[i % kColours.size()];
      canvas.line(best_x + 6, y + letter / 2, best_x + 26, y + letter / 2, 2.5, colour);
      canvas.marker(best_x + 16, y + letter / 2, int(i / kColours.size() % 3), colour);
      canvas.text(best_x + 34, y, series[i].name, scale, kBlack);
      y += row;
    }
  }
  if (!options.title.empty())
    canvas.text(left + (right - left - text_width(options.title, scale)) / 2, 12, options.title, scale,
                kBlack);
  if (!options.x_label.empty())
    canvas.text(left + (right - left - text_width(options.x_label, scale)) / 2, options.height - letter - 10,
                options.x_label, scale, kBlack);
  if (!options.y_label.empty())
    canvas.text(8, top + (bottom - top + text_width(options.y_label, scale)) / 2, options.y_label, scale,
                kBlack, true);
  return canvas.take();
}

}  // namespace adanat
