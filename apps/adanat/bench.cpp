// adanat bench: time, images per second and memory by stage (docs/performance.md).
#include "apps/pipeline/bench.h"
#include "apps/pipeline/bench_report.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "apps/adanat/cli.h"
#include "core/base/interrupt.h"
#include "core/io/atomic_file.h"
#include "core/nn/device.h"

namespace adanat {
namespace {

struct BenchFlags {
  std::string model, shape, batches = "1", dtypes, stages, schedule, output, compare;
  int64_t steps = 0, classes = 0, warmup = 1, repeats = 5;
  bool train = false, json = false, has_steps = false;
  ComputeOptions compute;
};

std::vector<std::string> split(const std::string& flag, const std::string& list) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t comma = std::min(list.find(',', begin), list.size());
    if (comma == begin) throw InputError(cat(flag, " ", list, ": has an empty item"));
    items.push_back(list.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return items;
}

std::vector<int64_t> parse_batches(const std::string& list) {
  std::vector<int64_t> batches;
  for (const std::string& item : split("--batch-sweep", list)) {
    int64_t value = 0;
    const auto [end, code] = std::from_chars(item.data(), item.data() + item.size(), value);
    if (code != std::errc() || end != item.data() + item.size() || value < 1 || value > 65536)
      throw InputError(cat("--batch-sweep ", list, ": \"", item, "\" must be a number from 1 to 65536"));
    batches.push_back(value);
  }
  return batches;
}

void require_range(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw InputError(cat(flag, " ", value, ": must be ", least, " to ", most));
}

void run(const BenchFlags& f) {
  install_interrupt_handlers();
  if (f.model.empty() == f.shape.empty())
    throw InputError("bench: give either --model DIR or --shape NAME; see adanat bench --help");
  require_range("--warmup", f.warmup, 0, 1000);
  require_range("--repeats", f.repeats, 1, 100000);
  require_range("--classes", f.classes, 0, 1 << 24);
  if (f.has_steps) require_range("--steps", f.steps, 1, 1000);
  if (f.train && (f.has_steps || !f.schedule.empty() || !f.stages.empty() || f.classes != 0))
    throw InputError("--train: updates know no --steps, --schedule, --stages and --classes");
  BenchOptions o;
  o.model = f.model, o.shape = f.shape, o.schedule = f.schedule;
  o.steps = f.steps, o.warmup = f.warmup, o.repeats = f.repeats, o.classes = f.classes;
  o.train = f.train;
  o.batches = parse_batches(f.batches);
  o.device = f.compute.apply();
  if (!f.dtypes.empty() && f.compute.dtype != "auto")
    throw InputError("--dtype-sweep: is a list of --dtype; give one of the two");
  o.dtypes.clear();
  for (const std::string& item : split("--dtype-sweep", f.dtypes.empty() ? f.compute.dtype : f.dtypes))
    o.dtypes.push_back(parse_dtype(item, o.device));
  if (!f.stages.empty()) {
    o.stages = split("--stages", f.stages);
    const std::vector<std::string> known = bench_stages();
    std::string list;
    for (const std::string& name : known) list += (list.empty() ? "" : ", ") + name;
    for (const std::string& name : o.stages)
      if (std::find(known.begin(), known.end(), name) == known.end())
        throw InputError(cat("--stages ", f.stages, ": \"", name, "\" must be one of ", list));
    if (f.model.empty() && std::find(o.stages.begin(), o.stages.end(), "load") != o.stages.end())
      throw InputError(cat("--stages ", f.stages, ": load needs a folder to load; give --model DIR"));
  }
  const Json old = f.compare.empty() ? Json() : read_bench_report(f.compare);
  if (!f.output.empty()) {
    const AtomicFile probe(f.output);
  }

  Json report = run_bench(o);
  if (!f.compare.empty()) report["comparison"] = compare_bench(old, report);
  if (!f.output.empty()) write_file_atomic(f.output, report.dump(2) + "\n");
  if (f.json) {
    std::printf("%s\n", report.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  std::printf("%s", bench_table(report).c_str());
  if (!f.compare.empty()) std::printf("\n%s", comparison_text(report["comparison"]).c_str());
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* command = app.add_subcommand("bench", "time, images per second and memory by stage");
  auto f = std::make_shared<BenchFlags>();
  command->add_option("-m,--model", f->model, "model folder");
  command->add_option("--shape", f->shape,
                      "sizes without a model, with random weights: adanat-l, signs, or FILE.json with "
                      "\"generator\" and \"tokenizer\" as in a model's config.json");
  command->add_option("--batch-sweep", f->batches, "batch sizes, like 1,8,64")->capture_default_str();
  command->add_option("--dtype-sweep", f->dtypes, "list of --dtype, like float32,bfloat16,int8");
  command->add_option("--steps", f->steps, "generation steps; default: the model's, or 8");
  command->add_option("--schedule", f->schedule, "as in generate; default: cosine where there is no policy");
  command->add_option("--stages", f->stages,
                      "only some of load, transformer, decode_step, policy, encode, decode, generate");
  command->add_option("--classes", f->classes,
                      "distinct classes (or texts) in a batch; default: as many as there are");
  command->add_option("--warmup", f->warmup, "rounds that do not count")->capture_default_str();
  command->add_option("--repeats", f->repeats, "samples of each stage")->capture_default_str();
  command->add_flag("--train", f->train, "time updates of generator training instead");
  command->add_flag("--json", f->json, "the report as JSON on stdout");
  command->add_option("-o,--output", f->output, "FILE.json for the report");
  command->add_option("--compare", f->compare, "FILE.json of an earlier run: a table of speed-ups");
  f->compute.add_to(*command);
  command->footer(
      "Times are medians, with quartiles, of one call. \"processor\" adds up all threads and does not count "
      "other\n"
      "programs. \"gemm\" is the share of the rate of a large matrix product measured in the same run.\n"
      "Examples:\n"
      "  adanat bench -m models/signs --batch-sweep 1,16 --dtype-sweep float32,bfloat16 -o before.json\n"
      "  adanat bench -m models/signs --batch-sweep 1,16 --compare before.json\n"
      "  adanat bench --shape adanat-l --schedule autonat --dtype-sweep float32,int8\n"
      "  adanat bench --shape signs --train --batch-sweep 64 --dtype-sweep float32,bfloat16");
  command->callback([f, command] {
    f->has_steps = command->count("--steps") > 0;
    run(*f);
  });
}

}  // namespace adanat
