// adanat eval: how good generated or given images are, under a named protocol
// (docs/evaluation.md).
#include <cmath>
#include <cstdio>
#include <set>

#include "apps/adanat/eval_subject.h"
#include "apps/pipeline/comparison.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/io/atomic_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

// --compare and --plot: nothing is measured.
void run_compare(const EvalOptions& o) {
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
  const bool score_alone = o.metrics == "is";  // needs no reference
  if (o.reference.empty() && o.save_stats.empty() && !score_alone)
    throw InputError(
        "--reference: give the images or statistics to compare with (or --save-stats FILE.npz to keep "
        "statistics)");
  const bool generation_flags = o.steps > 0 || !o.schedule.empty() || !o.policy.empty() || o.table.any() ||
                                !o.labels.empty() || !o.cache.empty();
  if (!o.generates() && generation_flags)
    throw InputError(
        "--steps, --schedule, --policy, --guidance, --temperature, --labels, --cache and their like: only "
        "for "
        "images made by -m DIR");
  if (o.reference.empty() && o.tokenizer && o.images.empty())
    throw InputError("--reference: give the images to reconstruct");
  if (!o.images.empty() && o.count > 0)
    throw InputError("--count: only for images made by -m DIR, not with --images");
  if (o.generates() && o.count < 2) throw InputError("--count: say how many images to generate, at least 2");
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

// The weights of the protocol's network: --weights, the model's, or those of the bundled signs.
fs::path choose_weights(const EvalOptions& o, const Protocol& protocol) {
  if (protocol.network == "inception" && o.weights.empty())
    throw InputError(cat("--weights: protocol ", protocol.name,
                         " needs the Inception weights (pt_inception-2015-12-05 as .pth or "
                         ".safetensors); without them use --protocol classifier"));
  if (!o.weights.empty()) {
    if (!fs::exists(o.weights)) throw InputError(cat("--weights ", o.weights, ": no such file"));
    return o.weights;
  }
  if (!o.model.empty()) {
    const ModelConfig config = read_model_config(o.model);
    if (const fs::path own = fs::path(o.model) / "measure.safetensors"; fs::exists(own)) {
      check_part_hash(config, own);
      return own;
    }
  }
  const fs::path bundled = bundled_measure();
  if (bundled.empty())
    throw InputError(
        "--weights: give a measure.safetensors or Inception weights, or -m DIR with a folder that holds a "
        "measure network");
  const std::string by =
      cat("measured by ", bundled.string(), ", which knows traffic signs; --weights names another network");
  if (o.model.empty())
    note(by);
  else
    warning(cat(o.model, " holds no measure network: ", by));
  return bundled;
}

Evaluation open_evaluation(const EvalOptions& o, const Protocol& protocol, const MetricSet& metrics,
                           const fs::path& weights, at::Device device) {
  // The classifier has always run on the CPU: its figures in the models' cards do not depend on a GPU.
  const at::Device measure_device = protocol.network == "classifier" ? at::Device(at::kCPU) : device;
  Evaluation e{o,  protocol, metrics, Measurer::open(weights, protocol, metrics.spatial, measure_device),
               {}, device};
  note(describe(protocol));
  if (!o.model.empty()) e.config = read_model_config(o.model), e.crop = e.config->image_size;
  if (o.crop > 0) e.crop = o.crop;
  return e;
}

std::vector<Figure> figures_of(const Evaluation& e, const MeasuredSet& set, const std::string& name,
                               const GivenSet& reference) {
  std::vector<Figure> figures;
  if (reference.set)
    figures = compare_sets(set, name, *reference.set, reference.description, e.protocol, e.metrics);
  else if (e.metrics.score)
    figures.push_back(score_figure(set, name, e.protocol));
  if (const auto accuracy = set.accuracy(); accuracy && !reference.set)
    figures.push_back({"accuracy", *accuracy, {}});
  if (e.options.tokenizer)
    for (Figure& figure : figures)
      if (figure.name == "fid") figure.name = "rfid";
  return figures;
}

void run_eval(const EvalOptions& o) {
  install_interrupt_handlers();
  check_options(o);
  const at::Device device = o.compute.apply();
  const Protocol protocol = choose_protocol(o);
  const std::string standard = protocol.network == "classifier" ? "fd" : "fid";
  const MetricSet metrics = parse_metrics(o.metrics.empty() ? standard : o.metrics, protocol);
  // Statistics that are kept, and the score, are of one set.
  if (o.reference.empty() && (metrics.kernel || metrics.manifold))
    throw InputError(cat("--metrics ", o.metrics, ": give --reference to compare with"));
  const fs::path weights = choose_weights(o, protocol);
  Evaluation e = open_evaluation(o, protocol, metrics, weights, device);

  GivenSet reference;
  if (!o.reference.empty()) {
    MetricSet wanted = metrics;
    wanted.score = false;  // of the measured set only
    reference = open_given(e, o.reference, wanted);
  }
  const std::unique_ptr<EvalSubject> subject = open_subject(e, reference);
  const ExpectedSet own = subject->expected();
  require_images(e.protocol, metrics, own,
                 o.reference.empty() ? std::nullopt : std::optional(reference.expected()));
  measure_given(e, reference, "reference");

  std::vector<std::vector<Figure>> runs;
  std::optional<int64_t> count;
  for (int64_t run = 0; run < subject->runs(); ++run) {
    std::vector<Figure> extra;
    const MeasuredSet set = subject->measure(run, extra);
    if (run == 0) save_statistics(e, set);
    count = set.reported_count();
    runs.push_back(figures_of(e, set, own.name, reference));
    runs.back().insert(runs.back().end(), extra.begin(), extra.end());
  }

  const auto or_null = [](const std::optional<int64_t>& value) { return value ? Json(*value) : Json(); };
  Json j;
  j["protocol"] = e.protocol.name;
  j["count"] = or_null(count);
  j["reference_count"] = or_null(reference.set ? reference.set->reported_count() : std::nullopt);
  j["weights_sha256"] = e.measurer.weights_hash();
  j["weights"] = weights.string();
  j["seed"] = nullptr;  // of generated images alone
  j["metrics"] = figures_to_json(runs);
  if (reference.set)
    if (const auto accuracy = reference.set->accuracy()) j["reference_accuracy"] = *accuracy;
  subject->describe(j);
  if (!reference.description.empty()) j["reference"] = reference.description;
  if (!reference.hash.empty()) j["reference_sha256"] = reference.hash;
  if (e.crop > 0) j["crop"] = e.crop;
  if (o.skip_broken) j["skipped"] = e.skipped;
  j["protocol_settings"] = config_to_json(e.protocol);
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
                      "fid, kid, is, pr, sfid, with commas (classifier: fd, kd, is, pr); default: fid (fd)");
  command->add_option(
      "--protocol", o->protocol,
      "adm, torch-fidelity, pytorch-fid, clean, adanat or classifier (the folder's measure network, the "
      "default without --weights; where there is none, that of the bundled traffic signs)");
  command->add_option(
      "--weights", o->weights,
      "Inception weights (.pth, .safetensors) or a measure network; default: the folder's, else "
      "that of the bundled traffic signs");
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
  command->callback([o, command] {
    if (o->compare.empty()) return run_eval(*o);
    install_interrupt_handlers();
    const std::set<std::string> fitting = {"--compare", "--plot", "--plot-metric", "--quiet"};
    for (const CLI::Option* option : command->get_options())
      if (option->count() > 0 && !fitting.contains(option->get_name()))
        throw InputError(
            cat("--compare: reads finished results; ", option->get_name(), " does not go with it"));
    run_compare(*o);
  });
}

}  // namespace adanat
