// nearest_code against the usual composition (|x|^2 - 2 x.c + |c|^2, then argmin), one thread.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include "kernels/nearest_code.h"

namespace {

at::Tensor points(int64_t rows) {
  return at::manual_seed(1), at::randn({rows, 256});
}
at::Tensor codes(int64_t vocab) {
  return at::manual_seed(2), at::randn({vocab, 256});
}

void ours(benchmark::State& state) {
  const at::Tensor x = points(state.range(0)), codebook = codes(state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(adanat::kernels::nearest_code(x, codebook).ids);
}

void composition(benchmark::State& state) {
  const at::Tensor x = points(state.range(0)), codebook = codes(state.range(1));
  for (auto _ : state) {
    const at::Tensor d = x.square().sum(1, true) - 2 * x.mm(codebook.t()) + codebook.square().sum(1);
    benchmark::DoNotOptimize(d.argmin(1));
  }
}

BENCHMARK(ours)->Args({4096, 1024})->Args({1024, 16384})->Unit(benchmark::kMillisecond);
BENCHMARK(composition)->Args({4096, 1024})->Args({1024, 16384})->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(1);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
