// decode_step against the ATen composition that it replaces, one thread, everything hidden. Checks first that
// both reveal the same number of tokens and agree on the log-probabilities, then prints times and their
// ratio. Where there is a GPU the same there, at batch 64, and the share of the rate at which it copies
// memory.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <vector>

#include "kernels/decode_step.h"
#include "kernels/isa.h"
#include "kernels/load.h"

namespace {

using adanat::kernels::decode_step;
using adanat::kernels::DecodeStepInput;
using adanat::kernels::DecodeStepResult;

DecodeStepInput make_input(int64_t batch, int64_t positions, int64_t vocab, bool guided) {
  DecodeStepInput in;
  at::manual_seed(1);
  in.logits = at::randn({batch, positions, vocab}) * 2;
  if (guided) in.logits_uncond = at::randn({batch, positions, vocab}) * 2;
  in.tokens = at::full({batch, positions}, vocab, at::kLong);
  in.mask_ratio = at::full({batch}, 0.5, at::kFloat);
  in.remask_temperature = at::full({batch}, 1.5, at::kFloat);
  in.sampling_temperature = at::full({batch}, 1.2, at::kFloat);
  in.guidance = at::full({batch}, guided ? 1.5 : 0.0, at::kFloat);
  in.seed = at::full({batch}, int64_t{7}, at::kLong);
  in.image_index = at::arange(batch, at::kLong);
  in.step = at::zeros({1}, at::kLong);
  in.hidden_at_start = at::full({batch}, positions, at::kLong);
  return in;
}

// guidance, log_softmax, multinomial, gather, Gumbel noise, kthvalue, where.
DecodeStepResult aten_chain(const DecodeStepInput& in) {
  const int64_t batch = in.logits.size(0), positions = in.logits.size(1), vocab = in.logits.size(2);
  const at::Tensor guided = in.logits_uncond
                                ? in.logits + in.guidance.view({-1, 1, 1}) * (in.logits - *in.logits_uncond)
                                : in.logits;
  const at::Tensor p = at::softmax(guided / in.sampling_temperature.view({-1, 1, 1}), 2);
  at::Tensor proposals = at::multinomial(p.view({-1, vocab}), 1).view({batch, positions});
  const at::Tensor hidden = in.tokens.eq(vocab);
  proposals = at::where(hidden, proposals, in.tokens);
  const at::Tensor log_prob = at::log_softmax(guided, 2).gather(2, proposals.unsqueeze(2)).squeeze(2);
  const at::Tensor gumbel = -(-at::rand({batch, positions}, in.logits.options()).clamp_min(1e-7).log()).log();
  const at::Tensor confidence =
      (log_prob + in.remask_temperature.unsqueeze(1) * gumbel).masked_fill(~hidden, INFINITY);
  const auto k = positions / 2;  // make_input's mask_ratio; asking the tensor would wait for a GPU
  const at::Tensor cut = std::get<0>(confidence.kthvalue(k + 1, 1, true));
  return {at::where(confidence < cut, vocab, proposals), proposals, confidence, log_prob};
}

bool agree(const DecodeStepInput& in) {
  const DecodeStepResult ours = decode_step(in), chain = aten_chain(in);
  const int64_t vocab = in.logits.size(2);
  if (!ours.tokens.eq(vocab).sum(1).equal(chain.tokens.eq(vocab).sum(1))) return false;
  const at::Tensor guided = in.logits_uncond
                                ? in.logits + in.guidance.view({-1, 1, 1}) * (in.logits - *in.logits_uncond)
                                : in.logits;
  const at::Tensor expected = at::log_softmax(guided, 2).gather(2, ours.proposals.unsqueeze(2)).squeeze(2);
  return (ours.log_prob - expected).abs().max().item<double>() < 1e-4;
}

// This thread's processor time: the work runs on one thread, and other programs on the machine do not count.
double now_ms() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return 1e3 * static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_nsec);
}

template <class F>
double median_ms(F&& run, int repeats = 31) {
  for (int i = 0; i < 3; ++i) run();
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const double start = now_ms();
    run();
    times.push_back(now_ms() - start);
  }
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<size_t>(repeats / 2)];
}

DecodeStepInput on_gpu(DecodeStepInput in) {
  for (at::Tensor* x :
       {&in.logits, &in.tokens, &in.mask_ratio, &in.remask_temperature, &in.sampling_temperature,
        &in.guidance, &in.seed, &in.image_index, &in.step, &in.hidden_at_start})
    *x = x->to(at::kCUDA);
  if (in.logits_uncond) in.logits_uncond = in.logits_uncond->to(at::kCUDA);
  return in;
}

// Of one call among many that are queued, by the clock.
template <class F>
double gpu_ms(F&& run, int calls = 100) {
  const c10::impl::VirtualGuardImpl device(at::kCUDA);
  for (int i = 0; i < 10; ++i) run();
  device.synchronizeDevice(0);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) run();
  device.synchronizeDevice(0);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count() / calls;
}

bool report_gpu() {
  const at::Tensor big = at::zeros({256 << 20}, at::TensorOptions(at::kByte).device(at::kCUDA));
  const double copied = 2.0 * double(big.nbytes()) / gpu_ms([&] { big.clone(); });
  for (bool guided : {false, true}) {
    const DecodeStepInput in = on_gpu(make_input(64, 256, 1024, guided));
    if (!agree(in)) return false;
    const double fused = gpu_ms([&] { decode_step(in); }), composed = gpu_ms([&] { aten_chain(in); });
    const double read = double(in.logits.nbytes()) * (guided ? 2 : 1);
    std::printf(
        "[64, 256, 1024] float32, %s, GPU, mean of 100: decode_step %.4f ms, ATen chain %.4f ms, ratio %.1f; "
        "reads %.0f %% of the copy rate\n",
        guided ? "guided" : "unguided", fused, composed, composed / fused, 100 * read / fused / copied);
  }
  return true;
}

void ours(benchmark::State& state) {
  const DecodeStepInput in = make_input(state.range(0), 256, 1024, state.range(1) != 0);
  for (auto _ : state) benchmark::DoNotOptimize(decode_step(in).tokens);
}

void chain(benchmark::State& state) {
  const DecodeStepInput in = make_input(state.range(0), 256, 1024, state.range(1) != 0);
  for (auto _ : state) benchmark::DoNotOptimize(aten_chain(in).tokens);
}

BENCHMARK(ours)->ArgsProduct({{1, 16}, {0, 1}})->Unit(benchmark::kMillisecond);
BENCHMARK(chain)->ArgsProduct({{1, 16}, {0, 1}})->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
  const bool gpu = adanat::kernels::load_cuda_ops() && at::hasCUDA();
  at::set_num_threads(1);
  for (bool guided : {false, true}) {
    const DecodeStepInput in = make_input(16, 256, 1024, guided);
    if (!agree(in)) {
      std::fprintf(stderr, "decode_step and the ATen chain disagree\n");
      return 1;
    }
    const double fused = median_ms([&] { benchmark::DoNotOptimize(decode_step(in).tokens); });
    const double composed = median_ms([&] { benchmark::DoNotOptimize(aten_chain(in).tokens); });
    std::printf(
        "[16, 256, 1024] float32, %s, 1 thread, %s, median of 31: decode_step %.2f ms, ATen chain %.2f ms, "
        "ratio %.1f\n",
        guided ? "guided" : "unguided", adanat::kernels::isa_name(adanat::kernels::best_isa()), fused,
        composed, composed / fused);
  }
  if (gpu && !report_gpu()) {
    std::fprintf(stderr, "decode_step and the ATen chain disagree on the GPU\n");
    return 1;
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
