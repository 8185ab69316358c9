// nearest_code against the usual composition (|x|^2 - 2 x.c + |c|^2, then argmin), one thread, and on the GPU
// where there is one.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include "kernels/load.h"
#include "kernels/nearest_code.h"

namespace {

at::Tensor points(int64_t rows, at::Device device = at::kCPU) {
  return at::manual_seed(1), at::randn({rows, 256}).to(device);
}
at::Tensor codes(int64_t vocab, at::Device device = at::kCPU) {
  return at::manual_seed(2), at::randn({vocab, 256}).to(device);
}

at::Tensor composed(const at::Tensor& x, const at::Tensor& codebook) {
  return (x.square().sum(1, true) - 2 * x.mm(codebook.t()) + codebook.square().sum(1)).argmin(1);
}

void ours(benchmark::State& state) {
  const at::Tensor x = points(state.range(0)), codebook = codes(state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(adanat::kernels::nearest_code(x, codebook).ids);
}

void composition(benchmark::State& state) {
  const at::Tensor x = points(state.range(0)), codebook = codes(state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(composed(x, codebook));
}

// One call and the wait for its ids.
void gpu(benchmark::State& state, bool ours) {
  const at::Tensor x = points(state.range(0), at::kCUDA), codebook = codes(state.range(1), at::kCUDA);
  for (auto _ : state)
    benchmark::DoNotOptimize(
        (ours ? adanat::kernels::nearest_code(x, codebook).ids : composed(x, codebook)).cpu());
}

BENCHMARK(ours)->Args({4096, 1024})->Args({1024, 16384})->Unit(benchmark::kMillisecond);
BENCHMARK(composition)->Args({4096, 1024})->Args({1024, 16384})->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
  const bool has_gpu = adanat::kernels::load_cuda_ops() && at::hasCUDA();
  at::set_num_threads(1);
  for (const bool own : {true, false})
    if (has_gpu)
      benchmark::RegisterBenchmark(own ? "gpu_ours" : "gpu_composition", gpu, own)
          ->Args({65536, 1024})
          ->Args({16384, 16384})
          ->Unit(benchmark::kMillisecond);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
