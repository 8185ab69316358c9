// The linear algebra of the metrics at Inception's 2048 dimensions. The bound for a FID is 20 s on two cores.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>

#include "core/metrics/frechet.h"
#include "core/metrics/manifold.h"

namespace adanat {
namespace {

at::Tensor features(int64_t count, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({count, 2048}).clamp_min(0);
}

void Statistics(benchmark::State& state) {
  const at::Tensor x = features(256, 1);
  GaussianAccumulator accumulator(2048, true);
  for (auto _ : state) accumulator.add(x);
  state.SetItemsProcessed(state.iterations() * 256);
}

void FrechetDistance(benchmark::State& state) {
  GaussianAccumulator a(2048), b(2048);
  a.add(features(state.range(0), 1)), b.add(features(state.range(0), 2));
  const GaussianStats sa = a.stats(), sb = b.stats();
  for (auto _ : state) benchmark::DoNotOptimize(frechet_distance(sa, sb));
}

void KernelDistanceSubset(benchmark::State& state) {
  const at::Tensor a = features(1000, 1), b = features(1000, 2);
  for (auto _ : state) benchmark::DoNotOptimize(kernel_distance(a, b));
}

void PrecisionRecall(benchmark::State& state) {
  const at::Tensor a = features(state.range(0), 1), b = features(state.range(0), 2);
  for (auto _ : state) benchmark::DoNotOptimize(manifold_scores(a, b).precision);
}

BENCHMARK(Statistics)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(FrechetDistance)->Arg(500)->Arg(5000)->Unit(benchmark::kSecond)->Iterations(1)->UseRealTime();
BENCHMARK(KernelDistanceSubset)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(PrecisionRecall)->Arg(2000)->Unit(benchmark::kSecond)->Iterations(1)->UseRealTime();

}  // namespace
}  // namespace adanat

BENCHMARK_MAIN();
