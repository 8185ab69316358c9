// What generation costs beyond its transformer forwards and its decoding: the loop, the schedule, decode_step, copies.
// Prints one JSON line per case with the medians and their ratio (the bar: at most 1.05).
//   generate_bench [MODEL_FOLDER]   (default models/signs)
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>

#include "apps/pipeline/pipeline.h"
#include "core/base/log.h"
#include "core/nn/device.h"

namespace {

using namespace adanat;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The same forward passes as a run makes, with its real tokens: recorded once, then repeated without anything between.
struct Recorder : SamplerObserver {
  std::vector<at::Tensor> tokens;
  void on_step(const StepView& view) override { tokens.push_back(view.tokens_before.clone()); }
};

void measure(const char* name, GeneratorImpl& generator, TokenizerImpl& tokenizer, const Schedule& schedule, int64_t batch,
             int runs) {
  const at::NoGradGuard no_grad;
  const at::Tensor classes = at::arange(batch) % generator.config().classes;
  const SamplerStart start = plain_start(generator, classes, 1, at::arange(batch));
  Recorder recorder;
  const at::Tensor made = sample(generator, start, schedule, {&recorder});
  const int64_t rows_before = generator.rows_computed();

  const auto forwards = [&] {
    for (int64_t t = 0; t < schedule.steps(); ++t) {
      const bool guided = *schedule.known_guidance(t) > 0;
      at::Tensor tokens = recorder.tokens[size_t(t)], condition = classes;
      if (t == 0) {
        condition = std::get<0>(at::_unique2(classes));
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
  std::vector<double> whole, alone;
  for (int i = 0; i < runs + 1; ++i) {  // interleaved, so that a drifting machine hits both; the first pair warms up
    const double a = monotonic_seconds();
    decode_to_bytes(tokenizer, sample(generator, start, schedule));
    const double b = monotonic_seconds();
    forwards();
    decode_to_bytes(tokenizer, made);
    const double c = monotonic_seconds();
    if (i > 0) whole.push_back(b - a), alone.push_back(c - b);
  }
  const int64_t rows = (generator.rows_computed() - rows_before) / (2 * (runs + 1));
  std::printf(R"({"case":"%s","batch":%lld,"steps":%lld,"generate_s":%.5f,"forwards_and_decode_s":%.5f,"ratio":%.4f,"rows":%lld})"
              "\n",
              name, static_cast<long long>(batch), static_cast<long long>(schedule.steps()), median(whole), median(alone),
              median(whole) / median(alone), static_cast<long long>(rows));
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("{\"platform\":\"%s\",\"threads\":%d}\n", platform_line().c_str(), set_threads(0));
  {
    const std::string folder = argc > 1 ? argv[1] : "models/signs";
    const ModelConfig config = read_model_config(folder);
    Pipeline pipeline = Pipeline::open(folder, at::kCPU, at::kFloat);
    Tokenizer tokenizer = open_tokenizer(folder, config, at::kCPU);
    const auto schedule = pipeline.schedule("cosine", 8, config.sampling.table);
    measure("bundled model", pipeline.generator(), *tokenizer, *schedule, 16, 15);
  }
  {
    Generator generator(GeneratorConfig{});
    generator->eval();
    TokenizerConfig layout;  // the public vq-f16 sizes
    layout.shortcut_from = "hidden";
    Tokenizer tokenizer(layout);
    tokenizer->eval();
    tokenizer->prepare_for_inference();
    const auto schedule = make_table_schedule("autonat", autonat_table(8));
    measure("AdaNAT-L sizes", *generator, *tokenizer, *schedule, 1, 3);
  }
}
