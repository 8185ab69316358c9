// adanat eval: how good generated or given images are, under a named protocol (spec/cli.md, eval;
// docs/evaluation.md).
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <cstdio>
#include <functional>

#include "apps/adanat/cli.h"
#include "apps/adanat/table_flags.h"
#include "apps/pipeline/comparison.h"
#include "apps/pipeline/conditions.h"
#include "apps/pipeline/evaluate.h"
#include "apps/pipeline/image_batches.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"
#include "core/metrics/image_metrics.h"
#include "core/nn/device.h"
#include "core/nn/linear.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

// The options of a table that reach the images: an order of its own knows no re-mask temperature.
Json table_in_force(const Schedule& schedule, const TableOptions& table) {
  Json out = config_to_json(table);
  if (schedule.priority().has_value()) out.erase("temperature");
  return out;
}

struct EvalOptions {
  std::string model, images, reference, weights, metrics, protocol, schedule, policy, save_stats, labels,
      cache, plot, plot_metric;
  std::vector<std::string> compare;
  int64_t count = 0, steps = 0, seed = 42, batch_size = 64, repeats = 1, crop = 0, kid_subsets = 0,
          kid_subset_size = 0;
  TableFlags table;
  bool tokenizer = false, skip_broken = false, half_distances = false;
  ComputeOptions compute;
};

// --compare and --plot: nothing is measured.
void run_compare(const EvalOptions& o) {
  if (!o.model.empty() || !o.images.empty() || !o.reference.empty() || o.count > 0 || !o.weights.empty() ||
      !o.metrics.empty() || !o.protocol.empty() || !o.save_stats.empty())
    throw InputError("--compare: reads finished results; of the other flags only --plot goes with it");
  if (!o.plot.empty() && fs::path(o.plot).extension() != ".png")
    throw InputError(cat("--plot ", o.plot, ": must end in .png"));
  std::vector<EvalResult> results;
  for (const std::string& file : o.compare) results.push_back(read_eval_result(file));
  if (!o.plot.empty()) {
    const StepCurves curves = step_curves(results, o.plot_metric);
    for (const std::string& left : curves.left_out) warning(cat("not in the plot: ", left));
    const Json& first = results[0].json;
    write_png(o.plot, draw_plot(curves.series, {.title = cat(curves.metric, " (protocol ",
                                                             first.at("protocol").get<std::string>(), ", ",
                                                             first.at("count").dump(), " images)"),
                                                .x_label = "steps",
                                                .y_label = curves.metric,
                                                .y_from_zero = true,
                                                .whole_x = true}));
  }
  std::fputs(comparison_table(results).c_str(), stdout);
}

Protocol choose_protocol(const EvalOptions& o) {
  std::string name = o.protocol;
  if (name.empty()) {
    const bool classifier =
        o.weights.empty() ||
        (fs::path(o.weights).extension() == ".safetensors" && fs::exists(o.weights) && [&] {
          const auto metadata = SafetensorsFile::open(o.weights).metadata();
          const auto kind = metadata.find("kind");
          return kind != metadata.end() && kind->second == "classifier";
        }());
    if (classifier)
      name = "classifier";
    else if (is_statistics_file(o.reference) && read_statistics(o.reference).spatial)
      name = "adm";
    else
      name = "torch-fidelity";
  }
  Protocol out = protocol_by_name(name);
  if (o.kid_subsets > 0) out.kid_subsets = o.kid_subsets;
  if (o.kid_subset_size > 0) out.kid_subset_size = o.kid_subset_size;
  if (o.half_distances) out.half_distances = true;
  if (!o.labels.empty()) out.labels = o.labels;
  out.validate();
  return out;
}

void check_options(const EvalOptions& o) {
  if (!o.plot.empty()) throw InputError("--plot: draws the results given with --compare A.json B.json ...");
  if (!o.plot_metric.empty()) throw InputError("--plot-metric: only together with --compare and --plot");
  if (o.images.empty() && o.model.empty()) throw InputError("give -m DIR to measure a model, or --images A");
  const bool score_alone = o.metrics == "is" || o.metrics == "cs";  // needs no reference
  if (o.reference.empty() && o.save_stats.empty() && !score_alone)
    throw InputError(
        "--reference: give the images or statistics to compare with (or --save-stats FILE.npz to keep "
        "statistics)");
  if (o.reference.empty() && !o.metrics.empty() && !score_alone && o.metrics != "sfid")
    throw InputError(cat("--metrics ", o.metrics, ": give --reference to compare with"));
  const bool generates = o.images.empty() && !o.tokenizer;
  const bool generation_flags = o.steps > 0 || !o.schedule.empty() || !o.policy.empty() || o.table.any() ||
                                !o.labels.empty() || !o.cache.empty();
  if (!generates && generation_flags)
    throw InputError(
        "--steps, --schedule, --policy, --guidance, --temperature, --labels, --cache and their like: only "
        "for "
        "images made by -m DIR");
  if (o.reference.empty() && o.tokenizer && o.images.empty())
    throw InputError("--reference: give the images to reconstruct");
  if (!o.images.empty() && o.count > 0)
    throw InputError("--count: only for images made by -m DIR, not with --images");
  if (o.images.empty() && !o.tokenizer && o.count < 2)
    throw InputError("--count: say how many images to generate, at least 2");
  if (o.count > 100'000'000) throw InputError(cat("--count ", o.count, ": must be at most 100000000"));
  if (o.tokenizer && o.model.empty()) throw InputError("--tokenizer: give -m DIR with the tokenizer");
  if (o.tokenizer && o.count > 0)
    throw InputError("--count: reconstructions are made of all images; leave it out");
  if (o.repeats > 1 && (!o.images.empty() || o.tokenizer))
    throw InputError("--repeats: only for images made by -m DIR");
  if (!o.save_stats.empty()) {
    if (fs::path(o.save_stats).extension() != ".npz")
      throw InputError(cat("--save-stats ", o.save_stats, ": must end in .npz"));
    const AtomicFile probe(o.save_stats);  // found out now, not after the work
  }
}

// The measure network of the bundled signs, beside the program or in the project that it was built in; empty
// if there is none.
fs::path bundled_measure() {
  std::error_code error;
  fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (int level = 0; level < 3 && !folder.empty(); ++level, folder = folder.parent_path()) {
    const fs::path file = folder / "models/signs/measure.safetensors";
    if (fs::exists(file, error)) return file;
  }
  return {};
}

// One run of eval: what all its parts share.
struct Evaluation {
  const EvalOptions& options;
  Protocol protocol;
  MetricSet metrics;
  Measurer measurer;
  std::optional<ModelConfig> config;  // of -m
  at::Device device;
  int64_t crop = 0;
  int64_t skipped = 0;

  bool knows_classes(const std::vector<std::string>& names) const {
    if (protocol.network != "classifier") return false;
    return measurer.class_names() == names;
  }

  // Measures every image of a dataset; `change` sees each batch first. Counts what was skipped.
  void measure(const ImageDataset& data, MeasuredSet& into, const char* title,
               const std::function<at::Tensor(const at::Tensor&)>& change = {}) {
    const bool labelled = knows_classes(data.class_names());
    if (protocol.network == "classifier" && !labelled && data.class_names().size() > 1)
      note(cat("accuracy of ", data.describe(), " is left out: its classes are not those of the network"));
    ImageBatchOptions reading{.batch_size = options.batch_size,
                              .crop = crop,
                              .pillow_299 = protocol.resize == "pillow-bicubic" && !change,
                              .skip_broken = options.skip_broken};
    if (!change) reading.prepare = [this](const at::Tensor& images) { return measurer.prepare(images); };
    ImageBatches reader(data, std::move(reading));
    Progress progress(title, data.size(), "images");
    int64_t done = 0;
    while (const auto batch = reader.next()) {
      check_interrupt();
      into.add(change ? measurer.extract(change(batch->images)) : measurer.extract_prepared(batch->images),
               labelled ? batch->labels : at::Tensor());
      progress.update(done += batch->labels.size(0));
    }
    if (reader.skipped() > 0)
      warning(cat(reader.skipped(), " broken images of ", data.describe(), " were left out"));
    skipped += reader.skipped();
  }

  int64_t expected(const ImageDataset& data) const { return options.skip_broken ? -1 : data.size(); }
};

// One side that is given as files: statistics, images, or both (ADM's reference batches).
struct GivenSet {
  MetricSet metrics;                     // what is wanted of it
  std::unique_ptr<ImageDataset> images;  // null: statistics alone
  std::optional<MeasuredSet> set;
  std::string description, hash;  // hash of a statistics file, else ""
};

GivenSet open_given(Evaluation& e, const std::string& path, const MetricSet& metrics) {
  GivenSet out;
  out.metrics = metrics;
  if (!is_statistics_file(path)) {
    out.images = open_dataset(path);
    out.description = out.images->describe();
    note(out.description);
    return out;
  }
  StatisticsFile statistics = read_statistics(path);
  out.description = path;
  out.hash = sha256_file(path);
  if (!statistics.protocol.empty() && statistics.protocol != e.protocol.name)
    warning(cat(path, ": was made under protocol ", statistics.protocol, ", not ", e.protocol.name));
  if (!statistics.weights_sha256.empty() && statistics.weights_sha256 != e.measurer.weights_hash())
    warning(cat(path, ": was made with other weights (", statistics.weights_sha256.substr(0, 8), ", here ",
                e.measurer.weights_hash().substr(0, 8), ")"));
  if (statistics.has_images && (metrics.kernel || metrics.manifold || metrics.score))
    out.images = open_dataset(path);
  out.set.emplace(e.protocol, metrics, std::move(statistics), out.images ? e.expected(*out.images) : 0);
  return out;
}

void measure_given(Evaluation& e, GivenSet& given, const char* title) {
  if (!given.images) return;
  if (!given.set) given.set.emplace(e.protocol, given.metrics, e.expected(*given.images));
  e.measure(*given.images, *given.set, title);
}

MeasuredSet generate_and_measure(Evaluation& e, Pipeline& pipeline, Conditions& conditions,
                                 const Schedule& schedule, const Json& table, int64_t seed) {
  const EvalOptions& o = e.options;
  const ModelConfig& config = pipeline.config();
  const std::vector<int64_t> classes = conditions.choose(e.protocol.labels, o.count, seed);
  const bool labelled = !config.from_texts() && e.knows_classes(config.class_names);
  const auto labels = [&](int64_t begin, int64_t size) {
    return labelled ? at::tensor(at::ArrayRef<int64_t>(classes.data() + begin, size_t(size)), at::kLong)
                    : at::Tensor();
  };
  // Everything that a feature depends on. The weights are hashed here, whatever config.json says of them.
  const fs::path folder = o.model;
  const Json key{{"format", 3},
                 {"generator", sha256_file((folder / "generator.safetensors").string())},
                 {"tokenizer", sha256_file((folder / "tokenizer.safetensors").string())},
                 {"threads", at::get_num_threads()},
                 {"program", ADANAT_VERSION},
                 {"schedule", schedule.describe()},
                 {"schedule_name", schedule.name()},
                 {"steps", schedule.steps()},
                 {"table", table},
                 {"seed", seed},
                 {"count", o.count},
                 {"classes", conditions.hash(classes)},
                 {"batch", o.batch_size},
                 {"network", e.protocol.network},
                 {"resize", e.protocol.resize},
                 {"normalise", e.protocol.normalise},
                 {"quantise", e.protocol.quantise},
                 {"weights", e.measurer.weights_hash()},
                 {"spatial", e.metrics.spatial},
                 {"device", e.device.str()},
                 {"float32_library", e.device.is_cpu() ? float32_library() : ""},
                 {"dtype", dtype_name(parse_dtype(o.compute.dtype, e.device))}};
  FeatureCache cache(o.cache == "none" ? fs::path()
                     : o.cache.empty() ? FeatureCache::default_folder()
                                       : fs::path(o.cache),
                     key);
  MeasuredSet set(e.protocol, e.metrics, o.count);
  int64_t done = 0;
  cache.load([&](const FeatureRows& rows) {
    set.add(rows, labels(done, rows.size()));
    done += rows.size();
  });
  if (done > 0)
    note(cat("seed ", seed, ": features of ", done, " images come from the cache of an earlier run"));
  Progress progress(cat("generate (seed ", seed, ")"), o.count, "images", done);
  try {
    while (done < o.count) {
      check_interrupt();
      const int64_t size = std::min(o.batch_size, o.count - done);
      const BatchRequest request = conditions.request(classes, seed, done, size);
      const at::Tensor tokens = pipeline.generate_tokens(request, schedule);
      const FeatureRows rows = e.measurer.extract(
          e.protocol.quantise == "uint8" ? pipeline.decode(tokens) : pipeline.decode_unit(tokens));
      set.add(rows, labels(done, size));
      cache.add(rows);
      progress.update(done += size);
    }
  } catch (...) {  // stopped, out of memory, a value that is no number: what is done is done
    cache.flush();
    throw;
  }
  cache.flush();
  return set;
}

// The tokenizer's reconstructions of all images, and how near they come.
MeasuredSet reconstruct_and_measure(Evaluation& e, const ImageDataset& source, std::vector<Figure>& extra) {
  Tokenizer tokenizer = open_tokenizer(e.options.model, *e.config, e.device);
  CodeHistogram codes(e.config->tokenizer->codes);
  double psnr_sum = 0, ssim_sum = 0;
  const at::NoGradGuard no_grad;
  MeasuredSet set(e.protocol, e.metrics, e.expected(source));
  e.measure(source, set, "reconstruct", [&](const at::Tensor& images) {
    const at::Tensor originals = images.to(e.device).to(at::kFloat) / 255;
    const at::Tensor ids = tokenizer->encode(originals);
    codes.add(ids);
    const at::Tensor bytes = decode_to_bytes(*tokenizer, ids), again = bytes.to(at::kFloat) / 255;
    psnr_sum += psnr(again, originals.cpu()).sum().item<double>();
    ssim_sum += ssim(again, originals.cpu()).sum().item<double>();
    return e.protocol.quantise == "uint8" ? bytes : tokenizer->decode(ids).clamp(0, 1);
  });
  const double count = double(set.count());
  extra = {{"psnr", psnr_sum / count, {}},
           {"ssim", ssim_sum / count, {}},
           {"code_usage", codes.usage(), {}},
           {"code_perplexity", codes.perplexity(), {}}};
  return set;
}

void save_statistics(const Evaluation& e, const MeasuredSet& set) {
  if (e.options.save_stats.empty()) return;
  if (!set.from_file() && set.count() < 2)
    throw InputError(cat("--save-stats ", e.options.save_stats,
                         ": a covariance needs 2 images or more, given ", set.count()));
  StatisticsFile out{set.stats(), {}, e.protocol.name, e.measurer.weights_hash()};
  if (e.metrics.spatial) out.spatial = set.spatial_stats();
  write_statistics(e.options.save_stats, out);
  note(cat("statistics of ", out.features.count, " images: ", e.options.save_stats));
}

Json figures_to_json(const std::vector<std::vector<Figure>>& runs) {
  Json out = Json::object();
  for (size_t m = 0; m < runs[0].size(); ++m) {
    Json& j = out[runs[0][m].name];
    std::vector<double> values;
    for (const auto& run : runs) values.push_back(run[m].value);
    for (const double v : values)
      if (!std::isfinite(v)) throw RunError(cat("metric ", runs[0][m].name, " is not a finite number"));
    double mean = 0, squares = 0;
    for (const double v : values) mean += v;
    mean /= double(values.size());
    for (const double v : values) squares += (v - mean) * (v - mean);
    j["value"] = mean;
    if (values.size() > 1) {
      j["std"] = std::sqrt(squares / double(values.size() - 1));
      j["values"] = values;
    } else if (runs[0][m].deviation) {
      j["std"] = *runs[0][m].deviation;
    }
  }
  return out;
}

void run_eval(const EvalOptions& o) {
  install_interrupt_handlers();
  if (!o.compare.empty()) return run_compare(o);
  check_options(o);
  const at::Device device = o.compute.apply();
  Protocol protocol = choose_protocol(o);
  const MetricSet metrics = parse_metrics(!o.metrics.empty()                 ? o.metrics
                                          : protocol.network == "classifier" ? "fd"
                                                                             : "fid",
                                          protocol);
  if (protocol.network == "inception" && o.weights.empty())
    throw InputError(cat("--weights: protocol ", protocol.name,
                         " needs the Inception weights (pt_inception-2015-12-05 as .pth or "
                         ".safetensors); without them use --protocol classifier"));
  fs::path weights = o.weights.empty() ? fs::path(o.model) / "measure.safetensors" : fs::path(o.weights);
  if (o.weights.empty() && o.model.empty()) {
    weights = bundled_measure();
    if (weights.empty())
      throw InputError(
          "--weights: give a measure.safetensors or Inception weights, or -m DIR with a folder that holds a "
          "measure network");
    note(cat("measured by ", weights.string(),
             ", which knows traffic signs; --weights names another network"));
  }
  if (!fs::exists(weights)) throw InputError(cat(weights.string(), ": no such file; give --weights"));
  // The classifier has always run on the CPU: its figures in the models' cards do not depend on a GPU.
  const at::Device measure_device = protocol.network == "classifier" ? at::Device(at::kCPU) : device;
  Evaluation e{o,  protocol, metrics, Measurer::open(weights, protocol, metrics.spatial, measure_device),
               {}, device};
  note(describe(protocol));
  if (!o.model.empty()) e.config = read_model_config(o.model), e.crop = e.config->image_size;
  if (o.crop > 0) e.crop = o.crop;

  GivenSet reference;
  if (!o.reference.empty()) {
    MetricSet wanted = metrics;
    wanted.score = false;  // of the measured set only
    reference = open_given(e, o.reference, wanted);
  }
  std::optional<Pipeline> pipeline;
  std::optional<Conditions> conditions;
  std::unique_ptr<Schedule> schedule;
  TableOptions table;
  const bool generates = o.images.empty() && !o.tokenizer;
  if (generates) {  // whatever is wrong with the model or the flags is found before the reference is read
    pipeline.emplace(Pipeline::open(o.model, device, parse_dtype(o.compute.dtype, device)));
    table = o.table.over(e.config->sampling.table);
    schedule = pipeline->schedule(o.schedule, o.steps, table, o.policy);
    conditions.emplace(*pipeline, reference.images.get(), o.skip_broken);
    if (e.config->from_texts()) {  // each caption as often as it stands there
      if (o.labels.empty()) protocol.labels = e.protocol.labels = "reference";
    } else if (protocol.labels == "reference" && !has_labels_of(reference.images.get(), *e.config)) {
      if (!o.labels.empty())
        throw InputError(
            cat("--labels reference: ", o.reference.empty() ? "there is no reference" : o.reference,
                " has no images of the model's classes; use random or balanced"));
      note("classes are taken in turn: the reference has no images of the model's classes");
      protocol.labels = e.protocol.labels = "balanced";
    }
    o.table.refuse_for(*schedule);
  }
  const auto expected = [](const std::string& name, const GivenSet& given) {
    if (given.images) return ExpectedSet{name, given.images->size()};
    return ExpectedSet{name, given.set->count() > 0 ? std::optional(given.set->count()) : std::nullopt};
  };
  std::optional<ExpectedSet> other;
  if (!reference.description.empty()) other = expected(reference.description, reference);
  GivenSet images;
  std::unique_ptr<ImageDataset> source;  // of reconstructions
  if (o.tokenizer)
    source = open_dataset(o.images.empty() ? o.reference : o.images);
  else if (!generates)
    images = open_given(e, o.images, metrics);
  const ExpectedSet own = generates     ? ExpectedSet{"the generated set", o.count}
                          : o.tokenizer ? ExpectedSet{"the reconstructions", source->size()}
                                        : expected(images.description, images);
  require_images(protocol, metrics, own, other);
  measure_given(e, reference, "reference");

  std::vector<std::vector<Figure>> runs;
  std::optional<int64_t> count;
  std::string measured;  // what was given, or reconstructed
  // What is done with each measured set: its figures, its statistics.
  const auto finish = [&](const MeasuredSet& set, const std::string& name, std::vector<Figure> extra) {
    if (runs.empty()) save_statistics(e, set);
    count = set.reported_count();
    std::vector<Figure> figures;
    if (reference.set)
      figures = compare_sets(set, name, *reference.set, reference.description, protocol, metrics);
    else if (metrics.score)
      figures.push_back(score_figure(set, name, protocol));
    if (const auto accuracy = set.accuracy(); accuracy && !reference.set)
      figures.push_back({"accuracy", *accuracy, {}});
    if (o.tokenizer)
      for (Figure& figure : figures)
        if (figure.name == "fid") figure.name = "rfid";
    figures.insert(figures.end(), extra.begin(), extra.end());
    runs.push_back(std::move(figures));
  };
  if (o.tokenizer) {
    measured = source->describe();
    std::vector<Figure> extra;
    const MeasuredSet set = reconstruct_and_measure(e, *source, extra);
    finish(set, "the reconstructions", extra);
  } else if (!o.images.empty()) {
    measured = images.description;
    measure_given(e, images, "measure");
    finish(*images.set, images.description, {});
  } else {
    const Json described = schedule->takes_table_options() ? table_in_force(*schedule, table) : Json();
    for (int64_t r = 0; r < o.repeats; ++r)
      finish(generate_and_measure(e, *pipeline, *conditions, *schedule, described, o.seed + r),
             "the generated set", {});
  }

  Json j;
  j["protocol"] = protocol.name;
  if (count)
    j["count"] = *count;
  else
    j["count"] = nullptr;
  const auto reference_count = reference.set ? reference.set->reported_count() : std::nullopt;
  if (reference_count)
    j["reference_count"] = *reference_count;
  else
    j["reference_count"] = nullptr;
  j["weights_sha256"] = e.measurer.weights_hash();
  j["weights"] = weights.string();
  if (generates)
    j["seed"] = o.seed;
  else
    j["seed"] = nullptr;
  j["metrics"] = figures_to_json(runs);
  if (reference.set)
    if (const auto accuracy = reference.set->accuracy()) j["reference_accuracy"] = *accuracy;
  if (generates) {
    j["model"] = e.config->name;
    j["schedule"] = schedule->name();
    j["steps"] = schedule->steps();
    if (schedule->takes_table_options())
      j["table"] = table_in_force(*schedule, table);
    else
      j["actions"] = schedule->describe();
    j["model_hash"] = pipeline->model_hash();
    j["labels"] = protocol.labels;
    if (e.config->from_texts()) j["text_encoder_sha256"] = conditions->encoder_hash();
    j["dtype"] = dtype_name(parse_dtype(o.compute.dtype, e.device));
  }
  if (!measured.empty()) j["images"] = measured;
  if (o.tokenizer) j["tokenizer"] = true;
  if (!reference.description.empty()) j["reference"] = reference.description;
  if (!reference.hash.empty()) j["reference_sha256"] = reference.hash;
  if (e.crop > 0) j["crop"] = e.crop;
  if (o.skip_broken) j["skipped"] = e.skipped;
  j["protocol_settings"] = config_to_json(protocol);
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace

void add_eval(CLI::App& app) {
  auto* command = app.add_subcommand("eval", "measure a model or a set of images against a reference");
  auto o = std::make_shared<EvalOptions>();
  command->add_option("-m,--model", o->model, "model folder: what is measured, and the measure network");
  command->add_option("--count", o->count, "images to generate");
  command->add_option("--images", o->images,
                      "measure these images instead: dataset, folder, .npz of samples or statistics");
  command->add_option(
      "--reference", o->reference,
      "what to compare with: .npz with mu and sigma, or a dataset; #split and @begin:end may follow");
  command->add_option("--metrics", o->metrics,
                      "fid, kid, is, pr, sfid, with commas (classifier: fd, kd, cs, pr); default: fid (fd)");
  command->add_option(
      "--protocol", o->protocol,
      "adm, torch-fidelity, pytorch-fid, clean, adanat or classifier (the folder's measure network, the "
      "default without --weights; without -m too, that of the bundled traffic signs)");
  command->add_option("--weights", o->weights,
                      "Inception weights (.pth, .safetensors) or a measure network; default: the folder's");
  command->add_option("--repeats", o->repeats, "seeds s, s+1, ...: mean, standard deviation, values")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command->add_option("--save-stats", o->save_stats,
                      "FILE.npz for mean and covariance of the measured set (of the first seed)");
  command
      ->add_option(
          "--crop", o->crop,
          "bring given images to SxS first (ADM centre crop); default: the model's size, else as they are")
      ->check(CLI::Range(1, 16384));
  command
      ->add_option("--labels", o->labels,
                   "classes (or captions, of the reference) of generated images: random, balanced or "
                   "reference; default: the protocol's, for captions reference")
      ->check(CLI::IsMember({"random", "balanced", "reference"}));
  command->add_option("--kid-subsets", o->kid_subsets, "subsets of the kernel distance; default: 100")
      ->check(CLI::Range(1, 100000));
  command->add_option("--kid-subset-size", o->kid_subset_size, "images in a subset; default: 1000")
      ->check(CLI::Range(2, 1000000));
  command->add_flag("--half-distances", o->half_distances,
                    "precision and recall with float16 distances, as the ADM evaluator");
  command->add_flag("--skip-broken", o->skip_broken, "leave unreadable images out and count them");
  command->add_flag("--tokenizer", o->tokenizer,
                    "measure reconstructions of the images: rFID (FD), PSNR, SSIM, code usage");
  command->add_option("--steps", o->steps, "generation steps")->check(CLI::Range(1, 1000));
  command->add_option("--schedule", o->schedule, "as in generate");
  command->add_option("--policy", o->policy, "as in generate");
  o->table.add_to(*command);
  command->add_option("-s,--seed", o->seed, "seed")->capture_default_str();
  command->add_option("-b,--batch-size", o->batch_size, "images at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  command->add_option(
      "--cache", o->cache,
      "DIR for features of generated images, so that a stopped run goes on; none: keep nothing; default: "
      "adanat/features in the user's cache folder");
  command->add_option("--compare", o->compare,
                      "JSON results of eval: a table that marks what may not be compared");
  command->add_option("--plot", o->plot,
                      "FILE.png: the metric over steps, of the results given with --compare");
  command->add_option("--plot-metric", o->plot_metric, "which metric to draw; default: the first");
  o->compute.add_to(*command);
  command->footer(
      "Examples:\n"
      "  adanat eval -m models/signs --count 10000 --reference signs.tar.gz#test --repeats 3\n"
      "  adanat eval -m models/signs --tokenizer --reference signs.tar.gz#test\n"
      "  adanat eval --images out/ --reference real/ --protocol torch-fidelity --weights inception.pth "
      "--metrics fid,kid,is,pr\n"
      "  adanat eval --images real/ --protocol clean --weights inception.pth --save-stats real.npz\n"
      "  adanat eval --compare a.json b.json c.json --plot curves.png");
  command->callback([o] { run_eval(*o); });
}

}  // namespace adanat
