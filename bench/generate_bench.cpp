// What generation costs beyond its transformer forwards and its decoding: the loop, the schedule,
// decode_step, copies. Each case in a process of its own, for its memory. Prints one JSON line per case:
//   ratio         median over the runs of: a whole run's time over that of its forwards and its decoding
//                 alone, which follows at once, so that a drifting machine hits both (the bar: at most 1.05).
//                 Processor time of one thread: other programs on the machine do not count.
//   memory_ratio  what the process writes at most (anonymous_mib: RssAnon, looked at every millisecond, above
//                 that of a process that has loaded LibTorch, from reading the model to the images) over its
//                 weights and activations (the bar: at most 1.5). Weights are those of generator and
//                 tokenizer in float32; activations the most bytes of tensors alive at once in the forwards
//                 and the decoding alone, each layer's input and output, for all rows of the batch.
//   code_mib      pages of mapped files that came in meanwhile, on top of that: LibTorch's code, as it is
//                 first run, and nothing of the model, whose files are read and let go before the peak. The
//                 system takes such pages back when it wants, and shares them among processes; so they are no
//                 part of the ratio.
//
//   generate_bench [MODEL_FOLDER [RUNS [RUNS_OF_ADANAT_L]]]   (default models/signs 15 2; 0: none)
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>

#include "apps/pipeline/pipeline.h"
#include "bench/memory.h"
#include "core/nn/device.h"
#include "core/nn/heap.h"

namespace {

using namespace adanat;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Of this process; everything runs on one thread.
double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// The most bytes of tensors that this thread held at once beyond those it had.
class LiveBytes : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now_ += bytes;
    most_ = std::max(most_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  static int64_t most_during(const std::function<void()>& work) {
    const auto counter = std::make_shared<LiveBytes>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
    work();
    return counter->most_;
  }

 private:
  int64_t now_ = 0, most_ = 0;
};

int64_t weight_bytes(const torch::nn::Module& module) {
  int64_t bytes = 0;
  for (const auto& tensor : module.parameters()) bytes += int64_t(tensor.nbytes());
  for (const auto& tensor : module.buffers()) bytes += int64_t(tensor.nbytes());
  return bytes;
}

// The same forward passes as a run makes, with its real tokens: recorded once, then repeated without anything
// between.
struct Recorder : SamplerObserver {
  std::vector<at::Tensor> tokens;
  void on_step(const StepView& view) override { tokens.push_back(view.tokens_before.clone()); }
};

// Of the process that has loaded LibTorch and done nothing yet.
struct Loaded {
  double anonymous_mib = memory_mib("RssAnon"), file_mib = memory_mib("RssFile");
};

void measure(const char* name, GeneratorImpl& generator, TokenizerImpl& tokenizer, const Schedule& schedule,
             int64_t batch, int runs, const Loaded& loaded, MostAnonymous& most) {
  const at::NoGradGuard no_grad;
  const at::Tensor classes = at::arange(batch) % generator.config().classes;
  const SamplerStart start = plain_start(generator, classes, 1, at::arange(batch));
  decode_to_bytes(tokenizer, sample(generator, start, schedule));
  const double anonymous_mib = most.stop_mib() - loaded.anonymous_mib;
  const double code_mib = memory_mib("RssFile") - loaded.file_mib;
  Recorder recorder;
  const at::Tensor made = sample(generator, start, schedule, {&recorder});

  const auto forwards = [&] {
    for (int64_t t = 0; t < schedule.steps(); ++t) {
      const bool guided = *schedule.known_guidance(t) > 0;
      at::Tensor tokens = recorder.tokens[size_t(t)], condition = classes;
      if (t == 0) {
        condition = start.classes.distinct;
        tokens = tokens.narrow(0, 0, condition.size(0));
      }
      if (guided) {
        const int64_t extra = t == 0 ? 1 : batch;
        condition = at::cat({condition, generator.empty_classes(extra)});
        tokens = at::cat({tokens, tokens.narrow(0, 0, extra)});
      }
      const at::Tensor features = generator.features(tokens, condition);
      const at::Tensor hidden = at::nonzero(tokens.reshape({-1}) == generator.mask_id()).squeeze(1);
      generator.logits(features.reshape({-1, features.size(2)}).index_select(0, hidden));
    }
  };
  const int64_t rows_before = generator.rows_computed();
  const int64_t activations = LiveBytes::most_during([&] { forwards(), decode_to_bytes(tokenizer, made); });
  std::vector<double> whole, alone, ratio;
  for (int i = 0; i < runs; ++i) {  // warmed up by the two runs above
    const double a = processor_seconds();
    decode_to_bytes(tokenizer, sample(generator, start, schedule));
    const double b = processor_seconds();
    forwards();
    decode_to_bytes(tokenizer, made);
    const double c = processor_seconds();
    whole.push_back(b - a), alone.push_back(c - b), ratio.push_back((b - a) / (c - b));
  }
  const int64_t rows = (generator.rows_computed() - rows_before) / (2 * runs + 1);
  const double weights_mib = double(weight_bytes(generator) + weight_bytes(tokenizer)) / (1 << 20);
  const double needed_mib = weights_mib + double(activations) / (1 << 20);
  const Json line = {{"case", name},
                     {"batch", batch},
                     {"steps", schedule.steps()},
                     {"rows", rows},
                     {"generate_s", median(whole)},
                     {"forwards_and_decode_s", median(alone)},
                     {"ratio", median(ratio)},
                     {"ratio_of_least", *std::min_element(whole.begin(), whole.end()) /
                                            *std::min_element(alone.begin(), alone.end())},
                     {"loaded_anonymous_mib", loaded.anonymous_mib},
                     {"anonymous_mib", anonymous_mib},
                     {"code_mib", code_mib},
                     {"weights_mib", weights_mib},
                     {"weights_and_activations_mib", needed_mib},
                     {"memory_ratio", anonymous_mib / needed_mib}};
  std::printf("%s\n", line.dump().c_str());
}

// In a child, before this process has computed anything: threads do not survive a fork.
void in_child(const std::function<void(const Loaded&, MostAnonymous&)>& work) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    set_threads(1);
    const Loaded loaded;
    MostAnonymous most;
    work(loaded, most);
    std::fflush(stdout);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0) std::fprintf(stderr, "generate_bench: a case failed\n"), std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();  // as the program does
  std::printf("{\"platform\":\"%s\"}\n", platform_line().c_str());
  const std::string folder = argc > 1 ? argv[1] : "models/signs";
  const int runs = argc > 2 ? std::atoi(argv[2]) : 15, large_runs = argc > 3 ? std::atoi(argv[3]) : 2;
  if (runs > 0)
    in_child([&](const Loaded& loaded, MostAnonymous& most) {
      const ModelConfig config = read_model_config(folder);
      Pipeline pipeline = Pipeline::open(folder, at::kCPU, at::kFloat);
      const auto schedule = pipeline.schedule("cosine", 8, config.sampling.table);
      measure("bundled model", pipeline.generator(), pipeline.tokenizer(), *schedule, 16, runs, loaded, most);
    });
  if (large_runs > 0)
    in_child([&](const Loaded& loaded, MostAnonymous& most) {
      Generator generator(GeneratorConfig{});
      generator->eval();
      TokenizerConfig layout;  // the public vq-f16 sizes
      layout.shortcut_from = "hidden";
      Tokenizer tokenizer(layout);
      tokenizer->eval();
      tokenizer->prepare_for_inference();
      const auto schedule = make_table_schedule("autonat", autonat_table(8));
      measure("AdaNAT-L sizes", *generator, *tokenizer, *schedule, 1, large_runs, loaded, most);
    });
}
