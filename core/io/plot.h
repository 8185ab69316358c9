// Line plots as images: axes with round numbers, several series with a legend, bands between two curves. Free
// of torch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/io/image.h"

namespace adanat {

// Values that a picture has room for: finite, and so small that no difference or distance of two overflows.
inline constexpr double kLargestPlotted = 1e300;
inline bool can_be_plotted(double value) {
  return value >= -kLargestPlotted && value <= kLargestPlotted;  // false for NaN
}

struct PlotSeries {
  std::string name;          // in the legend; "" leaves it out of it
  std::vector<double> x, y;  // of one length; drawn in the order given, what cannot be drawn breaks the line
  std::vector<double> low, high;  // empty, or a y for each x: the area between them is tinted
};

struct PlotOptions {
  std::string title, x_label, y_label;
  int width = 960, height = 600;  // pixels, at least 320 x 240, at most 8192
  bool y_from_zero = false;       // the y axis begins at 0 (or lower)
  bool whole_x = false;           // ticks of the x axis at whole numbers only (steps)
};

// RGB. Text is ASCII (other characters show as '?'). The first 8 series differ in colour, more repeat them
// with other markers. RunError: no point that can be drawn, lengths that differ, a size outside the limits.
Image draw_plot(const std::vector<PlotSeries>& series, const PlotOptions& options);

// Round numbers that cover [low, high] with about `count` steps of 1, 2 or 5 times a power of ten, ascending;
// the first is <= low and the last >= high.
// low < high, both finite.
std::vector<double> axis_ticks(double low, double high, int count, bool whole = false);

}  // namespace adanat
