#include "apps/pipeline/bench.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_int_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <functional>

#include "apps/pipeline/pipeline.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/generator/generator_recipe.h"
#include "core/generator/inference.h"
#include "core/nn/device.h"
#include "core/nn/linear.h"
#include "kernels/decode_step.h"
#include "policy/policy_schedule.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr double kLeastSample = 0.005;  // seconds that one sample lasts at least, by calling more than once

// Of all threads of the process.
double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

void wait_for(at::Device device) {
  if (!device.is_cpu())
    c10::impl::VirtualGuardImpl(device.type())
        .synchronizeDevice(std::max<at::DeviceIndex>(0, device.index()));
}

// Peak of the process's resident memory, or of the GPU's tensors, since reset().
class PeakMemory {
 public:
  explicit PeakMemory(at::Device device) : device_(device) {
    // Until something has used the GPU its allocator knows no devices.
    if (!device_.is_cpu()) at::globalContext().lazyInitDevice(device_.type());
    reset();
  }
  void reset() {
    if (device_.is_cpu())
      std::ofstream("/proc/self/clear_refs")
          << "5";  // where that is refused, the peak is the process's whole
    else
      at::getDeviceAllocator(device_.type())->resetPeakStats(index());
  }
  double mib() const {
    if (!device_.is_cpu()) {
      const auto stats = at::getDeviceAllocator(device_.type())->getDeviceStats(index());
      return double(stats.allocated_bytes[0].peak) / (1 << 20);
    }
    std::ifstream status("/proc/self/status");
    double kib = 0;
    for (std::string word; status >> word;)
      if (word == "VmHWM:") status >> kib;
    return kib / 1024;
  }

 private:
  at::DeviceIndex index() const { return std::max<at::DeviceIndex>(0, device_.index()); }
  at::Device device_;
};

struct Stage {
  std::string name;
  int64_t batch, images, tokens;
  double flops;  // of one call; 0 = not counted
  std::function<void()> call;
  int64_t calls = 1;
  std::vector<double> wall = {}, processor = {};
  double peak_mib = 0;  // of memory, while it ran; on a CPU with what the process kept of earlier stages
};

// One sample of a stage: seconds of a call, by the clock and of the processors.
std::pair<double, double> sample_of(const Stage& stage, at::Device device) {
  const double wall = monotonic_seconds(), processor = processor_seconds();
  for (int64_t i = 0; i < stage.calls; ++i) stage.call();
  wait_for(device);
  return {(monotonic_seconds() - wall) / double(stage.calls),
          (processor_seconds() - processor) / double(stage.calls)};
}

// What a rate of arithmetic refers to. Other programs on the machine do not count on a CPU: the processor
// time of a thread.
double busy_seconds(double wall, double processor, at::Device device) {
  return device.is_cpu() ? processor / at::get_num_threads() : wall;
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * double(values.size() - 1);
  const auto below = size_t(at);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - double(below)) * (values[above] - values[below]);
}

// All stages by turns, `repeats` times.
void measure(std::vector<Stage>& stages, int64_t warmup, int64_t repeats, at::Device device) {
  PeakMemory memory(device);
  for (Stage& stage : stages) {
    double once = 0;
    memory.reset();
    for (int64_t i = 0; i <= warmup; ++i) check_interrupt(), once = sample_of(stage, device).first;
    stage.calls = std::clamp<int64_t>(int64_t(std::ceil(kLeastSample / std::max(once, 1e-7))), 1, 10000);
    stage.peak_mib = memory.mib();
  }
  for (int64_t r = 0; r < repeats; ++r) {
    for (Stage& stage : stages) {
      check_interrupt();
      const auto [wall, processor] = sample_of(stage, device);
      stage.wall.push_back(wall), stage.processor.push_back(processor);
    }
  }
}

Json result_of(const Stage& stage, const std::string& dtype, double gemm, at::Device device) {
  Json j;
  j["stage"] = stage.name;
  j["dtype"] = dtype;
  j["batch"] = stage.batch;
  j["calls"] = stage.calls;
  const double median = quantile(stage.wall, 0.5);
  j["seconds"] = {{"median", median},
                  {"low", quantile(stage.wall, 0.25)},
                  {"high", quantile(stage.wall, 0.75)},
                  {"min", quantile(stage.wall, 0)},
                  {"max", quantile(stage.wall, 1)}};
  const double processor = quantile(stage.processor, 0.5);
  j["processor_seconds"] = processor;
  j["peak_mib"] = stage.peak_mib;
  if (stage.images > 0) j["images_per_second"] = double(stage.images) / median;
  if (stage.tokens > 0) j["tokens_per_second"] = double(stage.tokens) / median;
  if (stage.flops > 0 && gemm > 0)
    j["gemm_share"] = stage.flops / busy_seconds(median, processor, device) / gemm;
  return j;
}

// Multiplications and additions of one forward pass of `rows` samples, the head at every position.
double forward_flops(const GeneratorConfig& c, int64_t rows) {
  const double d = double(c.width), n = double(c.tokens()), v = double(c.codes);
  const double length = n + (c.condition == "class" ? 1 : double(c.text_tokens));
  const double block = 24 * length * d * d + 4 * length * length * d;
  const double skips = double(c.depth / 2) * 4 * length * d * d;
  return double(rows) * (double(c.depth + 1) * block + skips + 2 * n * (d * d + d * v));
}

// The best rate that a large matrix product reaches here: what "share of peak" refers to.
double gemm_rate(at::ScalarType dtype, at::Device device) {
  const at::NoGradGuard no_grad;
  const int64_t side = device.is_cpu() ? 1024 : 8192;
  const auto float_type = dtype == at::kChar ? at::kFloat : dtype;
  const auto options = at::TensorOptions().device(device).dtype(float_type);
  const at::Tensor a = at::randn({side, side}, options), b = at::randn({side, side}, options);
  std::vector<std::function<void()>> ways = {[&] { at::linear(a, b); }, [&] { linear(a, b, at::Tensor()); }};
  at::Tensor qa, qb;
  if (dtype == at::kChar) {
    qa = a.mul(30).clamp(-127, 127).to(at::kChar), qb = b.mul(30).clamp(-127, 127).to(at::kChar);
    ways = {[&] { at::_int_mm(qa, qb.t()); }};
  }
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    for (const auto& way : ways) {
      check_interrupt();
      Stage product{"gemm", 0, 0, 0, 2 * std::pow(double(side), 3), way};
      const auto [wall, processor] = sample_of(product, device);
      if (i > 0) best = std::max(best, product.flops / busy_seconds(wall, processor, device));
    }
  }
  return best;
}

// A policy of the published sizes without training: its actions are those of its residual.
std::unique_ptr<PolicySchedule> untrained_policy(const GeneratorConfig& g, int64_t steps, at::Device device) {
  PolicySettings settings;
  settings.steps = steps;
  settings.network.input_width = g.width;
  settings.network.codes = g.codes;
  settings.network.grid_height = g.grid_height;
  settings.network.grid_width = g.grid_width;
  const at::NoGradGuard no_grad;
  PolicyNetwork actor(settings.network, 4);
  actor->eval();
  actor->to(device);
  return std::make_unique<PolicySchedule>(settings, actor, steps, device);
}

// What is measured: a model folder's parts, or untrained ones of a given shape.
class Subject {
 public:
  Subject(const BenchOptions& o, at::ScalarType dtype) : options_(o) {
    if (!o.model.empty()) {
      folder_.emplace(Pipeline::open(o.model, o.device, dtype));
      return;
    }
    const at::NoGradGuard no_grad;
    config_ = bench_shape(o.shape);
    at::manual_seed(0);
    generator_ = Generator(*config_.generator);
    prepare_generator(*generator_, o.device, dtype);
    tokenizer_ = Tokenizer(*config_.tokenizer);
    tokenizer_->to(o.device);
    tokenizer_->prepare_for_inference();
    if (o.device.is_cuda() && dtype == at::kBFloat16) tokenizer_->decode_in_bfloat16();
  }

  const ModelConfig& config() const { return folder_ ? folder_->config() : config_; }
  GeneratorImpl& generator() { return folder_ ? folder_->generator() : *generator_; }
  TokenizerImpl& tokenizer() { return folder_ ? folder_->tokenizer() : *tokenizer_; }
  std::string hash() const { return folder_ ? folder_->model_hash() : ""; }

  std::unique_ptr<Schedule> schedule() const {
    const ModelConfig& c = config();
    if (folder_) return folder_->schedule(options_.schedule, options_.steps, c.sampling.table);
    const int64_t steps = options_.steps == 0 ? c.sampling.steps : options_.steps;
    if (options_.schedule == "adaptive") return untrained_policy(*c.generator, steps, options_.device);
    return make_schedule(options_.schedule.empty() ? "cosine" : options_.schedule, steps, c.sampling.table,
                         c.generator->grid_height, c.generator->grid_width);
  }

 private:
  const BenchOptions& options_;
  std::optional<Pipeline> folder_;
  ModelConfig config_;
  Generator generator_{nullptr};
  Tokenizer tokenizer_{nullptr};
};

// Without those that were not asked for.
void keep_stages(std::vector<Stage>& stages, const std::vector<std::string>& wanted) {
  if (wanted.empty()) return;
  std::erase_if(stages, [&](const Stage& stage) {
    return std::find(wanted.begin(), wanted.end(), stage.name) == wanted.end();
  });
}

// Everything masked, of classes in turn or of texts whose states are drawn: the time does not depend on what
// they say. `distinct` of them, 0 = as many as there are.
SamplerStart bench_start(GeneratorImpl& generator, int64_t batch, int64_t distinct, at::Device device) {
  const GeneratorConfig& g = generator.config();
  const int64_t most = g.condition == "class" ? g.classes : batch;
  const at::Tensor index = at::arange(batch, at::kLong);
  const at::Tensor shown = index.remainder(distinct > 0 ? std::min(distinct, most) : most);
  if (g.condition == "class") return plain_start(generator, shown, 1, index);
  const auto states = [&](int64_t texts) {
    return at::randn({texts, g.text_tokens, g.text_width}, at::TensorOptions().device(device));
  };
  return plain_start(generator, TextConditions{states(most), states(1)}, shown, 1, index);
}

// The stages of a generation for one batch size. What they refer to is kept alive by their closures.
std::vector<Stage> generation_stages(Subject& subject, const Schedule& schedule, const Schedule& policy,
                                     int64_t batch, const BenchOptions& o) {
  const at::Device device = o.device;
  const GeneratorConfig& g = *subject.config().generator;
  const int64_t n = g.tokens(), v = g.codes, tokens = batch * n;
  const auto ids_of = at::TensorOptions().dtype(at::kLong).device(device);
  const SamplerStart start = bench_start(subject.generator(), batch, o.classes, device);
  const at::Tensor hidden = start.tokens, condition = start.condition;
  const at::Tensor features = subject.generator().features(hidden, condition);
  const at::Tensor logits = subject.generator().logits(features);
  const at::Tensor ids = at::randint(v, {batch, n}, ids_of);
  const int64_t side = subject.config().image_size;
  const at::Tensor images = at::rand({batch, 3, side, side}, at::TensorOptions().device(device));
  const auto rows = [&](double value) { return at::full({batch}, value, ids_of.dtype(at::kFloat)); };
  const kernels::DecodeStepInput step{.logits = logits,
                                      .logits_uncond = logits.flip(0).contiguous(),
                                      .tokens = hidden,
                                      .mask_ratio = rows(0.5),
                                      .remask_temperature = rows(1),
                                      .sampling_temperature = rows(1),
                                      .guidance = rows(1),
                                      .seed = at::full({batch}, 1, ids_of),
                                      .image_index = at::arange(batch, ids_of),
                                      .step = at::zeros({1}, ids_of),
                                      .hidden_at_start = at::full({batch}, n, ids_of),
                                      .rule = kernels::RemaskRule::kMaskgit,
                                      .priority = std::nullopt,
                                      .token_noise = std::nullopt,
                                      .confidence_noise = std::nullopt};
  const std::shared_ptr<ScheduleState> state = policy.begin(batch, device);
  policy.see_tokens(state.get(), hidden);
  const auto sampler = std::make_shared<RecordedSampler>(subject.generator());
  const auto forward = [&subject, hidden, condition] {
    subject.generator().logits(subject.generator().features(hidden, condition));
  };
  return {
      {"transformer", batch, batch, tokens, forward_flops(g, batch), forward},
      {"decode_step", batch, batch, tokens, 0, [step] { kernels::decode_step(step); }},
      {"policy", batch, batch, 0, 0, [&policy, state, features] { policy.next(state.get(), 0, features); }},
      {"encode", batch, batch, tokens, 0, [&subject, images] { subject.tokenizer().encode(images); }},
      {"decode", batch, batch, tokens, 0, [&subject, ids] { decode_to_bytes(subject.tokenizer(), ids); }},
      {"generate", batch, batch, tokens, 0,
       [&subject, &schedule, sampler, start] {
         decode_to_bytes(subject.tokenizer(), sampler->sample(start, schedule));
       }},
  };
}

Json model_json(const BenchOptions& o, const ModelConfig& config, const std::string& hash) {
  Json j;
  j["name"] = o.model.empty() ? o.shape : config.name;
  if (!hash.empty()) j["hash"] = hash;
  j["generator"] = config_to_json(*config.generator);
  if (config.tokenizer) j["tokenizer"] = config_to_json(*config.tokenizer);
  return j;
}

void bench_generation(const BenchOptions& o, Json& report) {
  const at::NoGradGuard no_grad;
  Progress progress("bench", int64_t(o.dtypes.size() * o.batches.size()), "cases");
  int64_t done = 0;
  for (const at::ScalarType dtype : o.dtypes) {
    const std::string name = dtype_name(dtype);
    const double gemm = gemm_rate(dtype, o.device);
    report["gemm"].push_back({{"dtype", name}, {"flops_per_second", gemm}});
    std::vector<Stage> load = {{"load", 0, 0, 0, 0, [&] { Pipeline::open(o.model, o.device, dtype); }}};
    keep_stages(load, o.stages);
    if (!o.model.empty() && !load.empty()) {
      measure(load, 0, std::min<int64_t>(o.repeats, 5), o.device);
      report["results"].push_back(result_of(load[0], name, 0, o.device));
    }
    Subject subject(o, dtype);
    const auto schedule = subject.schedule();
    const bool has_policy = dynamic_cast<const PolicySchedule*>(schedule.get()) != nullptr;
    std::unique_ptr<Schedule> stand_in;
    if (!has_policy) stand_in = untrained_policy(*subject.config().generator, schedule->steps(), o.device);
    if (!report.contains("model")) {
      report["model"] = model_json(o, subject.config(), subject.hash());
      report["schedule"] = schedule->name();
      report["steps"] = schedule->steps();
      report["policy"] = has_policy && !o.model.empty() ? "the model's" : "untrained, of the published sizes";
    }
    for (const int64_t batch : o.batches) {
      std::vector<Stage> stages =
          generation_stages(subject, *schedule, stand_in ? *stand_in : *schedule, batch, o);
      keep_stages(stages, o.stages);
      measure(stages, o.warmup, o.repeats, o.device);
      double peak = 0;
      for (const Stage& stage : stages) {
        report["results"].push_back(result_of(stage, name, gemm, o.device));
        peak = std::max(peak, stage.peak_mib);
      }
      report["memory"].push_back({{"dtype", name}, {"batch", batch}, {"peak_mib", peak}});
      progress.update(++done);
    }
  }
}

// Rows of chance: training costs the same whatever the tokens are.
TokenFile random_tokens(const GeneratorConfig& g, int64_t rows) {
  TokenFile file;
  file.tokens = at::randint(g.codes, {rows, g.tokens()}, at::kInt);
  file.classes = at::randint(g.classes, {rows}, at::kLong);
  file.flipped = at::zeros({rows}, at::kByte);
  file.grid_height = g.grid_height, file.grid_width = g.grid_width, file.vocab = g.codes;
  for (int64_t c = 0; c < g.classes; ++c) file.class_names.push_back(std::to_string(c));
  return file;
}

void bench_training(const BenchOptions& o, Json& report) {
  const ModelConfig config = o.model.empty() ? bench_shape(o.shape) : read_model_config(o.model);
  if (!config.generator) throw InputError(cat(o.model.string(), ": holds no generator"));
  const GeneratorConfig& g = *config.generator;
  if (g.condition != "class")
    throw InputError(
        "--train: only for generators of classes; those of texts train on encoded captions, whose file would "
        "be timed as well");
  Progress progress("bench", int64_t(o.dtypes.size() * o.batches.size()), "cases");
  int64_t done = 0;
  for (const at::ScalarType dtype : o.dtypes) {
    const std::string name = dtype_name(dtype);
    if (dtype == at::kChar) throw InputError("--dtype-sweep int8: training computes in float32 or bfloat16");
    const double gemm = gemm_rate(dtype, o.device);
    report["gemm"].push_back({{"dtype", name}, {"flops_per_second", gemm}});
    for (const int64_t batch : o.batches) {
      GeneratorTrainConfig train;
      train.model = g;
      train.batch_size = batch;
      train.dtype = name;
      RecipeContext context;
      context.device = o.device;
      const auto recipe = make_generator_recipe(train, random_tokens(g, batch), nullptr, context, {});
      int64_t step = 0;
      // Backward costs twice the forward.
      std::vector<Stage> stages = {{"train", batch, batch, batch * g.tokens(), 3 * forward_flops(g, batch),
                                    [&] { recipe->step(step++); }}};
      measure(stages, o.warmup, o.repeats, o.device);
      report["results"].push_back(result_of(stages[0], name, gemm, o.device));
      report["memory"].push_back({{"dtype", name}, {"batch", batch}, {"peak_mib", stages[0].peak_mib}});
      progress.update(++done);
    }
  }
  report["model"] = model_json(o, config, "");
}

ModelConfig shape_of(GeneratorConfig generator, TokenizerConfig tokenizer) {
  ModelConfig config;
  config.image_size = tokenizer.image_size;
  config.generator = std::move(generator);
  config.tokenizer = std::move(tokenizer);
  return config;
}

}  // namespace

std::vector<std::string> bench_shapes() {
  return {"adanat-l", "signs"};
}

ModelConfig bench_shape(const std::string& name) {
  if (name == "adanat-l") {
    TokenizerConfig tokenizer;  // the public vq-f16 sizes
    tokenizer.shortcut_from = "hidden";
    return shape_of(GeneratorConfig{}, std::move(tokenizer));
  }
  if (name == "signs") {
    GeneratorConfig generator{
        .width = 192, .depth = 6, .heads = 6, .codes = 512, .grid_height = 8, .grid_width = 8};
    generator.classes = 43;
    TokenizerConfig tokenizer{.image_size = 32,
                              .channels = 48,
                              .channel_multipliers = {1, 2},
                              .residual_blocks = 1,
                              .latent_channels = 32,
                              .codes = 512,
                              .shortcut_from = "input",
                              .unshuffle = 2,
                              .normalize_codes = true};
    return shape_of(std::move(generator), std::move(tokenizer));
  }
  if (!name.ends_with(".json")) {
    std::string known;
    for (const std::string& shape : bench_shapes()) known += shape + ", ";
    throw InputError(
        cat("--shape ", name, ": must be ", known, "or a FILE.json with \"generator\" and \"tokenizer\""));
  }
  const Json j = read_json_file(name);
  for (const char* part : {"generator", "tokenizer"})
    if (!j.is_object() || !j.contains(part)) throw InputError(cat(name, ": lacks \"", part, "\""));
  ModelConfig config = shape_of(config_from_json<GeneratorConfig>(j["generator"], name + " (generator)"),
                                config_from_json<TokenizerConfig>(j["tokenizer"], name + " (tokenizer)"));
  const GeneratorConfig& g = *config.generator;
  const int64_t side = config.image_size / config.tokenizer->factor();
  if (g.codes != config.tokenizer->codes || g.grid_height != side || g.grid_width != side)
    throw InputError(cat(name, ": the generator has ", g.codes, " codes on ", g.grid_height, "x",
                         g.grid_width, ", its tokenizer ", config.tokenizer->codes, " on ", side, "x", side));
  return config;
}

std::vector<std::string> bench_stages() {
  return {"load", "transformer", "decode_step", "policy", "encode", "decode", "generate"};
}

Json run_bench(const BenchOptions& o) {
  Json report;
  report["program"] = cat("adanat ", ADANAT_VERSION);
  report["platform"] = platform_line();
  report["device"] = o.device.str();
  report["threads"] = at::get_num_threads();
  report["warmup"] = o.warmup;
  report["repeats"] = o.repeats;
  if (o.device.is_cpu()) report["float32_library"] = float32_library();
  report["gemm"] = Json::array();
  report["results"] = Json::array();
  report["memory"] = Json::array();
  o.train ? bench_training(o, report) : bench_generation(o, report);
  return report;
}

}  // namespace adanat
