// A Linear layer on one CPU thread, in every way that could be had from C++: GFLOP/s of processor time, best
// of the runs, all ways by turns. One JSON line per size. What core/nn/linear.h chooses is "float32 ours" and
// "int8 ours".
//   linear_bench [RUNS]   (default 9)
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/quantized/PackedParams.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>

#include "core/base/config.h"
#include "core/nn/device.h"
#include "core/nn/linear.h"

namespace {

using namespace adanat;

double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// LibTorch's dynamically quantised Linear (per tensor, unsigned activations) in one of its engines.
std::function<void()> dynamic_linear(at::QEngine engine, const at::Tensor& x, const at::Tensor& weight,
                                     const at::Tensor& bias) {
  at::globalContext().setQEngine(engine);
  const at::Tensor scales = (weight.abs().amax({1}) / 127).to(at::kDouble);
  const at::Tensor quantized =
      at::quantize_per_channel(weight, scales, at::zeros({weight.size(0)}, at::kLong), 0, at::kQInt8);
  const auto prepack =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("quantized::linear_prepack", "")
          .typed<c10::intrusive_ptr<LinearPackedParamsBase>(at::Tensor, std::optional<at::Tensor>)>();
  return [packed = prepack.call(quantized, bias), x] { packed->apply_dynamic(x, /*reduce_range=*/false); };
}

void measure(int64_t rows, int64_t in, int64_t out, int runs) {
  const at::Tensor x = at::randn({rows, in});
  torch::nn::Linear layer(in, out), eight(in, out);
  const at::Tensor weight = layer->weight.detach(), bias = layer->bias.detach();
  const at::Tensor half_x = x.to(at::kBFloat16), half_weight = weight.to(at::kBFloat16),
                   half_bias = bias.to(at::kBFloat16);
  std::vector<std::pair<std::string, std::function<void()>>> ways = {
      {"float32 LibTorch", [&] { at::linear(x, weight, bias); }},
      {"float32 ours", [&] { linear(*layer, x); }},
      {"bfloat16", [&] { at::linear(half_x, half_weight, half_bias); }},
      {"int8 dynamic, fbgemm", dynamic_linear(at::QEngine::FBGEMM, x, weight, bias)},
      {"int8 dynamic, onednn", dynamic_linear(at::QEngine::ONEDNN, x, weight, bias)},
      {"int8 dynamic, x86", dynamic_linear(at::QEngine::X86, x, weight, bias)},
      {"float32 LibTorch + GELU", [&] { at::gelu(at::linear(x, weight, bias)); }},
      {"float32 ours + GELU", [&] { linear_gelu(*layer, x); }},
  };
  const at::Tensor qx = at::randint(-127, 128, {rows, in}, at::kChar),
                   qw = at::randint(-127, 128, {out, in}, at::kChar);
  const at::Tensor half_scale = at::ones({out}, at::kBFloat16);
  ways.push_back({"int8 weights only", [&] { at::_weight_int8pack_mm(half_x, qw, half_scale); }});
  ways.push_back({"int8 product alone", [&] { at::_int_mm(qx, qw.t()); }});
  if (int8_supported()) {
    quantize_linears(*eight);
    ways.push_back({"int8 ours", [&] { linear(*eight, x); }});
    ways.push_back({"int8 ours + GELU", [&] { linear_gelu(*eight, x); }});
  }
  std::vector<double> best(ways.size(), 1e9);
  for (int r = 0; r <= runs; ++r) {
    for (size_t i = 0; i < ways.size(); ++i) {
      const double begin = processor_seconds();
      ways[i].second();
      if (r > 0) best[i] = std::min(best[i], processor_seconds() - begin);
    }
  }
  Json line = {{"rows", rows}, {"in", in}, {"out", out}};
  for (size_t i = 0; i < ways.size(); ++i)
    line["gflops"][ways[i].first] = 2e-9 * double(rows) * double(in) * double(out) / best[i];
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const at::NoGradGuard no_grad;
  set_threads(1);
  std::printf("{\"platform\":\"%s\",\"float32_library\":\"%s\"}\n", platform_line().c_str(),
              float32_library());
  const int runs = argc > 1 ? std::atoi(argv[1]) : 9;
  const int64_t sizes[][3] = {{65, 192, 576},   {1040, 192, 576}, {1040, 192, 192}, {1040, 192, 768},
                              {1040, 768, 192}, {257, 768, 2304}, {257, 768, 768},  {257, 768, 3072},
                              {257, 3072, 768}, {257, 1536, 768}, {2056, 768, 3072}};
  for (const auto& size : sizes) measure(size[0], size[1], size[2], runs);
}
