#include "policy/schedule_plot.h"

#include <ATen/TensorOperators.h>

#include "core/base/error.h"
#include "core/io/plot.h"

namespace adanat {
namespace {

PlotSeries series_of(const std::string& name, const at::Tensor& actions, int64_t action) {
  PlotSeries out;
  out.name = name;
  const at::Tensor sorted =
      std::get<0>(actions.select(2, action).to(at::kDouble).sort(1)).contiguous();  // (T, B)
  const int64_t b = sorted.size(1);
  for (int64_t t = 0; t < sorted.size(0); ++t) {
    const double* row = sorted.const_data_ptr<double>() + t * b;
    double sum = 0;
    for (int64_t i = 0; i < b; ++i) sum += row[i];
    out.x.push_back(double(t + 1));
    out.y.push_back(sum / double(b));
    out.low.push_back(row[(b - 1) / 10]);
    out.high.push_back(row[(b - 1) - (b - 1) / 10]);
  }
  return out;
}

}  // namespace

Image plot_action(const at::Tensor& now, const at::Tensor& before, int64_t action) {
  PlotOptions options;
  options.title = cat("Learned schedule: ", kActionNames[action]);
  options.x_label = "step";
  options.y_label = kActionNames[action];
  options.y_from_zero = true;
  options.whole_x = true;
  return draw_plot({series_of("now (band: 10-90 % of samples)", now, action),
                    series_of("before training", before, action)},
                   options);
}

}  // namespace adanat
