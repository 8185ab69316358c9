// adanat search schedule: the best table for all images, by distance in `features` space (the measure is
// never searched on).
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <cstdio>
#include <filesystem>

#include "apps/adanat/cli.h"
#include "apps/pipeline/conditions.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/data/sequential.h"
#include "core/features/feature_net.h"
#include "core/io/atomic_file.h"
#include "core/metrics/frechet.h"
#include "core/nn/device.h"
#include "policy/reward.h"
#include "policy/schedule_search.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

struct SearchOptions {
  std::string model, reference, output, start = "cosine", rule = "maskgit";
  ScheduleSearchConfig search;
  int64_t batch_size = 64;
  bool resume = false;
  ComputeOptions compute;
};

// Everything that the score of a candidate depends on: a history goes on only under the same.
Json identity(const SearchOptions& o, const Pipeline& pipeline, const ScheduleTable& start,
              at::ScalarType dtype, const ImageDataset& data, const Conditions& conditions,
              const std::string& features_hash) {
  Json j = config_to_json(o.search);
  j.erase("candidates");  // a search may be made longer
  j.erase("final_images");
  j["start"] = config_to_json(start);
  j["rule"] = o.rule;
  j["reference"] = o.reference;
  j["reference_images"] = data.size();
  for (const char* part : {"generator.safetensors", "tokenizer.safetensors"})
    if (const auto file = pipeline.config().files.find(part); file != pipeline.config().files.end())
      j["files"][part] = file->second;
  j["dtype"] = dtype_name(dtype);
  j["features"] = features_hash;
  if (!conditions.encoder_hash().empty()) j["text_encoder"] = conditions.encoder_hash();
  return j;
}

std::vector<SearchedTable> read_history(const fs::path& file, const Json& wanted) {
  const Json j = read_json_file(file.string());
  if (!j.is_object() || !j.contains("search") || !j.contains("tables") || !j["tables"].is_array())
    throw InputError(cat(file.string(), ": is no history of a search"));
  if (j["search"] != wanted)
    throw InputError(cat(file.string(),
                         ": is the history of another search (other flags, model or data); give the same, or "
                         "another --output"));
  std::vector<SearchedTable> out;
  for (const Json& entry : j["tables"]) {
    SearchedTable table;
    if (!entry.is_object() || !entry.contains("raw") || !entry.contains("score"))
      throw InputError(cat(file.string(), ": tables[", out.size(), "] lacks raw or score"));
    config_detail::read_value(entry["raw"], table.raw, file.string(), "tables.raw");
    config_detail::read_value(entry["score"], table.score, file.string(), "tables.score");
    if (int64_t(table.raw.size()) != wanted["steps"].get<int64_t>() * 4)
      throw InputError(cat(file.string(), ": tables[", out.size(), "].raw has ", table.raw.size(),
                           " numbers, wanted ", wanted["steps"].get<int64_t>() * 4));
    out.push_back(std::move(table));
  }
  return out;
}

void write_history(const fs::path& file, const Json& search, const std::vector<SearchedTable>& history) {
  Json j;
  j["search"] = search;
  j["tables"] = Json::array();
  for (const SearchedTable& table : history)
    j["tables"].push_back({{"score", table.score}, {"raw", table.raw}});
  write_file_atomic(file, j.dump() + "\n");
}

GaussianStats reference_stats(const ImageDataset& data, int64_t image_size, FeatureNet& net,
                              int64_t batch_size, at::Device device) {
  const at::NoGradGuard no_grad;
  std::optional<GaussianAccumulator> all;
  SequentialReader reader(data, {.batch_size = batch_size, .crop = image_size, .captions = true});
  while (const auto batch = reader.next()) {
    check_interrupt();
    const at::Tensor features = net.forward(batch->images.to(device).to(at::kFloat) / 255, {"pool"})[0];
    if (!all) all.emplace(features.size(1));
    all->add(features);
  }
  return all->stats();
}

double distance(Pipeline& pipeline, const Schedule& schedule, Conditions& conditions, FeatureNet& net,
                const GaussianStats& real, int64_t images, int64_t seed, int64_t batch_size,
                at::Device device) {
  const at::NoGradGuard no_grad;
  GaussianAccumulator made(real.mean.size(0));
  const std::vector<int64_t> shown = conditions.choose("reference", images, seed);
  for (int64_t begin = 0; begin < images; begin += batch_size) {
    check_interrupt();
    const BatchRequest request = conditions.request(shown, seed, begin, std::min(batch_size, images - begin));
    const at::Tensor bytes = pipeline.generate(request, schedule).images.to(device);
    made.add(net.forward(bytes.to(at::kFloat) / 255, {"pool"})[0]);
  }
  return frechet_distance(made.stats(), real);
}

void run_search(const SearchOptions& o) {
  install_interrupt_handlers();
  o.search.validate();
  if (!o.output.ends_with(".json")) throw InputError(cat("--output ", o.output, ": must end in .json"));
  if (fs::weakly_canonical(o.start) == fs::weakly_canonical(o.output))
    throw InputError(
        cat("--output ", o.output, ": is the table that the search starts from; choose another"));
  if (o.rule != "adanat" && o.rule != "maskgit")
    throw InputError(cat("--rule ", o.rule, ": must be adanat or maskgit"));
  const fs::path history_file = o.output.substr(0, o.output.size() - 5) + ".history.json";
  if (!o.resume && fs::exists(history_file))
    throw InputError(cat(history_file.string(),
                         ": holds a search already; add --resume to go on with it, or choose another "
                         "--output"));
  const at::Device device = o.compute.apply();
  const at::ScalarType dtype = parse_dtype(o.compute.dtype, device);
  Pipeline pipeline = Pipeline::open(o.model, device, dtype);
  const fs::path features = fs::path(o.model) / "features.safetensors";
  if (!fs::exists(features))
    throw InputError(
        cat(features.string(), ": no such file; the search measures with the model's features network"));
  check_part_hash(pipeline.config(), features);
  const fs::path measure = fs::path(o.model) / "measure.safetensors";
  const auto net =
      load_unless_measure(features, fs::exists(measure) ? measure : fs::path(), "search schedule");
  net->to(device);
  const auto data = open_dataset(o.reference);
  note(data->describe());
  if (!pipeline.config().from_texts() && data->class_names() != pipeline.config().class_names)
    throw InputError(cat("--reference ", o.reference, ": has other classes than the model"));
  ScheduleTable start;
  if (o.start == "cosine")
    start = cosine_table(o.search.steps, pipeline.config().sampling.table);
  else if (o.start == "autonat")
    start = search_start_table(o.search.steps);
  else
    start = read_schedule_file(o.start);
  if (start.steps != o.search.steps)
    throw InputError(
        cat("--start ", o.start, ": has ", start.steps, " steps, --steps says ", o.search.steps));
  const ActionBase base = table_base(start);

  Conditions conditions(pipeline, data.get(), /*skip_broken=*/false);
  const Json search = identity(o, pipeline, start, dtype, *data, conditions, net->file_hash());
  std::vector<SearchedTable> history;
  if (o.resume && fs::exists(history_file)) history = read_history(history_file, search);
  { const AtomicFile probe(o.output); }
  const GaussianStats real = reference_stats(*data, pipeline.config().image_size, *net, o.batch_size, device);
  const auto score = [&](const ScheduleTable& table, int64_t images, int64_t seed) {
    return distance(pipeline, *make_table_schedule("candidate", table), conditions, *net, real, images, seed,
                    o.batch_size, device);
  };
  const auto table_at = [&](size_t i) { return searched_table(base, history[i].raw, o.rule); };

  Progress progress("search schedule", o.search.candidates, "tables", int64_t(history.size()));
  while (int64_t(history.size()) < o.search.candidates) {
    SearchedTable next{propose_table(o.search, history), 0};
    // The same images' seeds for every candidate: what differs is the table.
    next.score = score(searched_table(base, next.raw, o.rule), o.search.images, o.search.seed);
    history.push_back(std::move(next));
    write_history(history_file, search, history);
    const size_t best = best_tables(history, 1)[0];
    if (best + 1 == history.size())
      write_file_atomic(o.output, config_to_json(table_at(best)).dump(2) + "\n");
    char text[96];
    std::snprintf(text, sizeof text, "FD %.4g, best %.4g (start %.4g)", history.back().score,
                  history[best].score, history[0].score);
    progress.update(int64_t(history.size()), text);
  }
  // The best of many noisy scores is partly luck: the best few are measured again on other seeds.
  size_t chosen = best_tables(history, 1)[0];
  std::optional<double> final_score;
  if (o.search.final_images > 0) {
    for (const size_t i : best_tables(history, o.search.population)) {
      const double s = score(table_at(i), o.search.final_images, o.search.seed + 1);
      if (!final_score || s < *final_score) final_score = s, chosen = i;
    }
  }
  write_file_atomic(o.output, config_to_json(table_at(chosen)).dump(2) + "\n");
  Json j;
  j["file"] = o.output;
  j["candidates"] = history.size();
  j["start_score"] = history[0].score;
  j["score"] = history[chosen].score;
  if (final_score) j["final_score"] = *final_score;
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace

void add_search(CLI::App& app) {
  auto* search = app.add_subcommand("search", "search for a schedule");
  search->require_subcommand(1);
  search->footer(
      "Example:\n"
      "  adanat search schedule -m models/signs --reference signs.tar.gz --steps 4 -o signs-T4.json");
  auto* command =
      search->add_subcommand("schedule", "a table for all images, by FD under the features network");
  auto o = std::make_shared<SearchOptions>();
  ScheduleSearchConfig& s = o->search;
  command->add_option("-m,--model", o->model, "model folder")->required();
  command
      ->add_option(
          "--reference", o->reference,
          "dataset to compare with (captioned, for models of texts); #split and @begin:end may follow")
      ->required();
  command
      ->add_option("-o,--output", o->output,
                   "FILE.json for the table; FILE.history.json holds all that was tried")
      ->required();
  command->add_option("--start", o->start, "cosine (the model's), autonat, or FILE.json")
      ->capture_default_str();
  command->add_option("--rule", o->rule, "re-mask rule of the tables: maskgit or adanat")
      ->capture_default_str();
  command->add_option("--steps", s.steps, "generation steps")->capture_default_str();
  command->add_option("--method", s.method, "random or evolution")->capture_default_str();
  command->add_option("--candidates", s.candidates, "tables tried, the start included")
      ->capture_default_str();
  command->add_option("--population", s.population, "tables that have children and are measured again")
      ->capture_default_str();
  command->add_option("--spread", s.spread, "width of random tables around the start")->capture_default_str();
  command->add_option("--mutation", s.mutation, "width of a child around its parent")->capture_default_str();
  command->add_option("--count", s.images, "images per candidate")->capture_default_str();
  command->add_option("--final-count", s.final_images, "images when the best are measured again; 0 = not")
      ->capture_default_str();
  command->add_option("-s,--seed", s.seed, "seed of tables and images")->capture_default_str();
  command->add_option("-b,--batch-size", o->batch_size, "images at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  command->add_flag("--resume", o->resume, "go on with FILE.history.json");
  o->compute.add_to(*command);
  command->footer(
      "Example:\n"
      "  adanat search schedule -m models/signs --reference signs.tar.gz --steps 4 -o signs-T4.json\n"
      "  adanat generate -m models/signs --schedule signs-T4.json -o signs.png -n 43");
  command->callback([o] { run_search(*o); });
}

}  // namespace adanat
