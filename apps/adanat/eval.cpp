// adanat eval --protocol classifier: FD and KD of generated, given or reconstructed images against a
// reference (spec/cli.md, eval), under the model folder's `measure` network.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <cstdio>
#include <set>

#include "apps/adanat/cli.h"
#include "apps/pipeline/evaluate.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/data/sequential.h"
#include "core/metrics/image_metrics.h"
#include "core/nn/device.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

struct EvalOptions {
  std::string model, images, reference, weights, metrics = "fd", protocol = "classifier", schedule, policy;
  int64_t count = 0, steps = 0, seed = 42, batch_size = 64, repeats = 1;
  std::optional<double> guidance, temperature, sampling_temperature;
  std::optional<std::string> guidance_curve;
  bool tokenizer = false, skip_broken = false;
  ComputeOptions compute;
};

std::set<std::string> parse_metrics(const std::string& list) {
  std::set<std::string> out;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t comma = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, comma - begin);
    if (name == "fd" || name == "fid")
      out.insert("fd");
    else if (name == "kd" || name == "kid")
      out.insert("kd");
    else
      throw InputError(
          cat("--metrics ", name, ": protocol classifier has fd and kd (fid and kid are read as these)"));
    begin = comma + 1;
  }
  return out;
}

// One run's figures by name, in the order they are reported.
using Figures = std::vector<std::pair<std::string, double>>;

Figures compare(const MeasuredSet& set, const MeasuredSet& reference, const std::set<std::string>& metrics,
                double* kernel_deviation) {
  Figures out;
  if (metrics.contains("fd")) out.emplace_back("fd", frechet_distance(set.stats(), reference.stats()));
  if (metrics.contains("kd")) {
    for (const MeasuredSet* s : {&set, &reference})
      if (s->count() < kKernelSubsetSize)
        throw InputError(cat("--metrics kd: needs at least ", kKernelSubsetSize,
                             " images on both sides, got ", s->count()));
    const auto kd =
        kernel_distance(set.features(), reference.features(),
                        random_subsets(set.count(), kKernelSubsets, kKernelSubsetSize, 2020, 0),
                        random_subsets(reference.count(), kKernelSubsets, kKernelSubsetSize, 2020, 1));
    out.emplace_back("kd", kd.mean);
    *kernel_deviation = kd.deviation;
  }
  if (const auto accuracy = set.accuracy()) out.emplace_back("accuracy", *accuracy);
  return out;
}

void measure_dataset(const ImageDataset& data, int64_t image_size, const EvalOptions& o, bool labelled,
                     MeasuredSet& into, const std::function<at::Tensor(const at::Tensor&)>& change = {}) {
  SequentialReader reader(data, image_size, o.batch_size, o.skip_broken);
  Progress progress("measure", data.size(), "images");
  int64_t done = 0;
  while (const auto batch = reader.next()) {
    check_interrupt();
    into.add(change ? change(batch->images) : batch->images, labelled ? batch->labels : at::Tensor());
    progress.update(done += batch->images.size(0));
  }
  if (reader.skipped() > 0) warning(cat(reader.skipped(), " broken images were left out"));
}

void warn_if_few(const MeasuredSet& set, const char* what) {
  if (set.count() < set.dimensions())
    warning(cat("only ", set.count(), " ", what, " images for ", set.dimensions(),
                " feature dimensions: the covariance is singular and the FD biased upwards"));
}

Figures generate_and_measure(Pipeline& pipeline, const EvalOptions& o, const Schedule& schedule, int64_t seed,
                             const ImageDataset& reference, FeatureNet& net, const MeasuredSet& reference_set,
                             const std::set<std::string>& metrics, double* kernel_deviation) {
  const ModelConfig& config = pipeline.config();
  const bool same_classes = reference.class_names() == config.class_names;
  MeasuredSet set(net, metrics.contains("kd"));
  Progress progress(cat("generate (seed ", seed, ")"), o.count, "images");
  for (int64_t begin = 0; begin < o.count; begin += o.batch_size) {
    check_interrupt();
    BatchRequest request{{}, seed, begin};
    for (int64_t i = begin; i < std::min(o.count, begin + o.batch_size); ++i) {
      // Classes as often as in the reference, spread over all of it; in turn where its classes are others.
      request.classes.push_back(same_classes ? reference.label(i * reference.size() / o.count)
                                             : i % config.generator->classes);
    }
    const BatchResult made = pipeline.generate(request, schedule);
    set.add(made.images, at::tensor(request.classes, at::kLong));
    progress.update(begin + int64_t(request.classes.size()));
  }
  warn_if_few(set, "generated");
  return compare(set, reference_set, metrics, kernel_deviation);
}

void run_eval(const EvalOptions& o) {
  install_interrupt_handlers();
  const at::Device device = o.compute.apply();
  if (o.protocol != "classifier")
    throw InputError(cat("--protocol ", o.protocol, ": this version measures with classifier only"));
  if (o.reference.empty()) throw InputError("--reference: give the images to compare with");
  if (o.images.empty() && o.model.empty()) throw InputError("give -m DIR to measure a model, or --images A");
  if (!o.images.empty() && o.count > 0)
    throw InputError("--count: only for images made by -m DIR, not with --images");
  if (o.model.empty() && o.weights.empty())
    throw InputError("--weights: give a measure.safetensors, or -m DIR with a folder that holds one");
  if (o.images.empty() && !o.tokenizer && o.count < 2)
    throw InputError("--count: say how many images to generate, at least 2");
  if (o.tokenizer && o.model.empty()) throw InputError("--tokenizer: give -m DIR with the tokenizer");
  if (o.tokenizer && o.count > 0)
    throw InputError("--count: reconstructions are made of all images; leave it out");
  const auto metrics = parse_metrics(o.metrics);
  const fs::path weights =
      o.weights.empty() ? fs::path(o.model) / "measure.safetensors" : fs::path(o.weights);
  if (!fs::exists(weights)) throw InputError(cat(weights.string(), ": no such file; give --weights"));
  const auto net = load_feature_net(weights);
  net->to(at::kCPU);

  std::optional<ModelConfig> config;
  int64_t image_size = 0;
  if (!o.model.empty()) config = read_model_config(o.model), image_size = config->image_size;
  const auto reference = open_dataset(o.reference);
  note(reference->describe());
  if (image_size == 0) image_size = reference->image(0).width;
  MeasuredSet reference_set(*net, metrics.contains("kd"));
  measure_dataset(*reference, image_size, o, /*labelled=*/true, reference_set);
  warn_if_few(reference_set, "reference");

  std::vector<Figures> runs;
  double kernel_deviation = 0;
  int64_t count = 0;
  Json extra = Json::object();
  if (o.tokenizer) {
    Tokenizer tokenizer = open_tokenizer(o.model, *config, device);
    MeasuredSet set(*net, metrics.contains("kd"));
    CodeHistogram codes(config->tokenizer->codes);
    double psnr_sum = 0, ssim_sum = 0;
    const at::NoGradGuard no_grad;
    const auto source = o.images.empty() ? open_dataset(o.reference) : open_dataset(o.images);
    measure_dataset(*source, image_size, o, true, set, [&](const at::Tensor& images) {
      const at::Tensor originals = images.to(device).to(at::kFloat) / 255;
      const at::Tensor ids = tokenizer->encode(originals);
      codes.add(ids);
      const at::Tensor bytes = decode_to_bytes(*tokenizer, ids), again = bytes.to(at::kFloat) / 255;
      psnr_sum += psnr(again, originals.cpu()).sum().item<double>();
      ssim_sum += ssim(again, originals.cpu()).sum().item<double>();
      return bytes;
    });
    count = set.count();
    runs.push_back(compare(set, reference_set, metrics, &kernel_deviation));
    runs.back().insert(runs.back().end(), {{"psnr", psnr_sum / double(count)},
                                           {"ssim", ssim_sum / double(count)},
                                           {"code_usage", codes.usage()},
                                           {"code_perplexity", codes.perplexity()}});
  } else if (!o.images.empty()) {
    const auto images = open_dataset(o.images);
    MeasuredSet set(*net, metrics.contains("kd"));
    measure_dataset(*images, image_size, o, images->class_names() == reference->class_names(), set);
    warn_if_few(set, "given");
    count = set.count();
    runs.push_back(compare(set, reference_set, metrics, &kernel_deviation));
  } else {
    Pipeline pipeline = Pipeline::open(o.model, device, parse_dtype(o.compute.dtype, device));
    TableOptions table = config->sampling.table;
    if (o.guidance) table.guidance = *o.guidance;
    if (o.guidance_curve) table.guidance_curve = *o.guidance_curve;
    if (o.temperature) table.temperature = *o.temperature;
    if (o.sampling_temperature) table.sampling_temperature = *o.sampling_temperature;
    const auto schedule = pipeline.schedule(o.schedule, o.steps, table, o.policy);
    const bool flags = o.guidance || o.guidance_curve || o.temperature || o.sampling_temperature;
    if (flags && !schedule->takes_table_options())
      throw InputError(
          cat("--guidance, --guidance-curve, --temperature and --sampling-temperature set the tables cosine, "
              "linear and halton; schedule ",
              schedule->name(), " brings its own"));
    for (int64_t r = 0; r < o.repeats; ++r)
      runs.push_back(generate_and_measure(pipeline, o, *schedule, o.seed + r, *reference, *net, reference_set,
                                          metrics, &kernel_deviation));
    count = o.count;
    extra["schedule"] = schedule->name();
    extra["steps"] = schedule->steps();
    if (schedule->takes_table_options())
      extra["table"] = config_to_json(table);
    else
      extra["actions"] = schedule->describe();
    extra["model_hash"] = pipeline.model_hash();
  }

  Json j;
  j["protocol"] = "classifier";
  j["count"] = count;
  j["reference_count"] = reference_set.count();
  j["weights_sha256"] = net->file_hash();
  if (o.images.empty() && !o.tokenizer)
    j["seed"] = o.seed;
  else
    j["seed"] = nullptr;
  for (size_t m = 0; m < runs[0].size(); ++m) {
    const std::string& name = runs[0][m].first;
    double sum = 0, squares = 0;
    std::vector<double> values;
    for (const Figures& run : runs) values.push_back(run[m].second), sum += run[m].second;
    const double mean = sum / double(values.size());
    for (const double v : values) squares += (v - mean) * (v - mean);
    j["metrics"][name]["value"] = mean;
    if (runs.size() > 1) {
      j["metrics"][name]["std"] = std::sqrt(squares / double(values.size() - 1));
      j["metrics"][name]["values"] = values;
    } else if (name == "kd") {
      j["metrics"][name]["std"] = kernel_deviation;
    }
  }
  if (const auto accuracy = reference_set.accuracy()) j["reference_accuracy"] = *accuracy;
  for (const auto& [key, value] : extra.items()) j[key] = value;
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace

void add_eval(CLI::App& app) {
  auto* command = app.add_subcommand("eval", "measure a model or a set of images against a reference");
  auto o = std::make_shared<EvalOptions>();
  command->add_option("-m,--model", o->model, "model folder: what is measured, and the measure network");
  command->add_option("--count", o->count, "images to generate");
  command->add_option("--images", o->images, "measure these images instead");
  command->add_option("--reference", o->reference,
                      "dataset to compare with; #split and @begin:end may follow");
  command->add_option("--metrics", o->metrics, "fd, kd (fid and kid are read as these)")
      ->capture_default_str();
  command->add_option("--protocol", o->protocol, "classifier: the folder's measure network")
      ->capture_default_str();
  command->add_option("--weights", o->weights, "measure network; default: the model folder's");
  command->add_option("--repeats", o->repeats, "seeds s, s+1, ...: mean, standard deviation, values")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_flag("--skip-broken", o->skip_broken, "leave unreadable images out and count them");
  command->add_flag("--tokenizer", o->tokenizer,
                    "measure reconstructions of the images: FD, PSNR, SSIM, code usage");
  command->add_option("--steps", o->steps, "generation steps")->check(CLI::Range(1, 1000));
  command->add_option("--schedule", o->schedule, "as in generate");
  command->add_option("--policy", o->policy, "as in generate");
  command->add_option("--guidance", o->guidance, "as in generate");
  command->add_option("--guidance-curve", o->guidance_curve, "as in generate");
  command->add_option("--temperature", o->temperature, "as in generate");
  command->add_option("--sampling-temperature", o->sampling_temperature, "as in generate");
  command->add_option("-s,--seed", o->seed, "seed")->capture_default_str();
  command->add_option("-b,--batch-size", o->batch_size, "images at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  o->compute.add_to(*command);
  command->footer(
      "Examples:\n"
      "  adanat eval -m models/signs --count 10000 --reference signs.tar.gz#test --repeats 3\n"
      "  adanat eval -m models/signs --tokenizer --reference signs.tar.gz#test\n"
      "  adanat eval -m models/signs --images out/ --reference signs.tar.gz#test");
  command->callback([o] { run_eval(*o); });
}

}  // namespace adanat
