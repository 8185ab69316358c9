// adanat generate: images from a model folder (docs/command-line.md).
#include "apps/adanat/generate.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "apps/adanat/generate_files.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/io/atomic_file.h"
#include "core/nn/device.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

std::vector<int64_t> parse_classes(const ModelConfig& config, const std::string& list, int64_t count,
                                   int64_t first) {
  std::vector<int64_t> wanted;
  if (list.empty()) {
    for (int64_t c = 0; c < config.generator->classes; ++c) wanted.push_back(c);
  } else {
    // A class may have a comma in its name: the whole text is tried first.
    if (std::find(config.class_names.begin(), config.class_names.end(), list) != config.class_names.end()) {
      wanted.push_back(class_id(config, list));
    } else {
      for (size_t begin = 0; begin <= list.size();) {
        const size_t comma = std::min(list.find(',', begin), list.size());
        if (comma == begin)
          throw InputError(cat("--class ", list, ": has an empty item; give NAME or ID, or a list like 0,3"));
        wanted.push_back(class_id(config, list.substr(begin, comma - begin)));
        begin = comma + 1;
      }
    }
  }
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(wanted[size_t((first + i) % int64_t(wanted.size()))]);
  return out;
}

// For every image its class, or its place in the list of prompts.
std::vector<int64_t> choose_conditions(const ModelConfig& config, const GenerateOptions& o) {
  if (!config.from_texts()) {
    if (!o.prompts.empty())
      throw InputError(cat("--prompt: the model ", config.name, " makes images from classes; use --class"));
    return parse_classes(config, o.classes, o.count, o.first_index);
  }
  if (!o.classes.empty())
    throw InputError(cat("--class: the model ", config.name, " makes images from texts; use --prompt TEXT"));
  if (o.prompts.empty())
    throw InputError(
        cat("--prompt: the model ", config.name, " makes images from texts; give one, or several"));
  std::vector<int64_t> out;
  for (int64_t i = 0; i < o.count; ++i) out.push_back((o.first_index + i) % int64_t(o.prompts.size()));
  return out;
}

void check_options(const GenerateOptions& o) {
  if (o.count < 1 || o.count > 100'000'000)
    throw InputError(cat("--count ", o.count, ": must be 1 to 100000000"));
  if (o.has_steps && (o.steps < 1 || o.steps > 1000))
    throw InputError(cat("--steps ", o.steps, ": must be 1 to 1000"));
  if (o.batch_size < 1 || o.batch_size > 65536)
    throw InputError(cat("--batch-size ", o.batch_size, ": must be 1 to 65536"));
  if (o.output.empty()) throw InputError("--output: must not be empty; give FILE.png, DIR/ or DIR/%05d.png");
  if (o.first_index < 0 || o.first_index > (int64_t(1) << 31) - o.count)
    throw InputError(cat("--first-index ", o.first_index, ": image indices must lie in 0 to 2147483647"));
  const std::vector<std::string> outputs = {o.output, o.save_tokens, o.trace};
  for (size_t i = 0; i < outputs.size(); ++i)
    for (size_t j = i + 1; j < outputs.size(); ++j)
      if (!outputs[i].empty() && !outputs[j].empty() &&
          fs::absolute(outputs[i]).lexically_normal() == fs::absolute(outputs[j]).lexically_normal())
        throw InputError(
            cat(outputs[i], ": is named as two outputs; --output, --save-tokens and --trace must differ"));
  for (const std::string& file : outputs)
    if (!o.preview.empty() && fs::path(file).has_extension() &&
        fs::absolute(file).lexically_normal() == fs::absolute(o.preview).lexically_normal())
      throw InputError(cat(o.preview, ": is named as two outputs; --preview is a folder of its own"));
  if (!o.preview.empty()) {
    std::error_code error;
    fs::create_directories(o.preview, error);
    if (error) throw InputError(cat("--preview ", o.preview, ": cannot make this folder: ", error.message()));
    const AtomicFile probe(fs::path(o.preview) / "probe.png");
  }
}

// --json: what was made, and how long it took.
void print_summary(const Making& making, const OutputNames& names, int64_t done, const Json& seconds) {
  const GenerateOptions& o = making.options;
  Json j;
  j["count"] = done;
  j["files"] = Json::array();
  for (int64_t i = 0; i < (names.single() ? std::min<int64_t>(done, 1) : done); ++i)
    j["files"].push_back(names.file(i).string());
  j["model"] = making.pipeline.config().name;
  j["steps"] = making.schedule.steps();
  j["schedule"] = making.schedule.name();
  j["seed"] = o.seed;
  j["first_index"] = o.first_index;
  j["dtype"] = dtype_name(making.dtype);
  if (making.pipeline.config().from_texts()) j["prompts"] = o.prompts;
  making.job.describe(j);
  j["seconds"] = seconds;
  std::printf("%s\n", j.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

}  // namespace

void run_generate(const GenerateOptions& o, GenerateJob& job) {
  install_interrupt_handlers();
  check_options(o);
  const double began = monotonic_seconds();
  const at::Device device = o.compute.apply();
  const OutputNames names(o.output, o.grid, o.count, o.first_index);
  TokensFile tokens_file(o.save_tokens);
  const at::ScalarType dtype = parse_dtype(o.compute.dtype, device);
  Pipeline pipeline = Pipeline::open(o.model, device, dtype);
  const ModelConfig& config = pipeline.config();
  const TableOptions table = o.table.over(config.sampling.table);
  const auto schedule = pipeline.schedule(o.schedule, o.steps, table, o.policy);
  o.table.refuse_for(*schedule);
  for (const int64_t cells : {names.rows(), names.columns()})
    if (cells * (config.image_size + 2) > kMaxImageSide)
      throw InputError(cat("--output ", o.output, ": one grid of ", names.rows(), "x", names.columns(),
                           " images of ", config.image_size, " pixels is over the ", kMaxImageSide,
                           "-pixel limit; give DIR/ instead"));
  std::vector<int64_t> classes = choose_conditions(config, o);
  if (config.from_texts()) pipeline.set_prompts(o.prompts);
  job.prepare(pipeline);
  const Making making{pipeline, o, table, *schedule, job, dtype};
  PictureFiles pictures(names, making);
  TraceFile trace_file(o.trace, schedule->steps(), o.prompts);
  const double loaded = monotonic_seconds();

  // A signal ends the work between two steps; what is finished by then is written as if no more had been
  // asked for.
  Progress progress(job.verb(), o.count, "images");
  int64_t done = 0;
  std::optional<Interrupted> stopped;
  try {
    while (done < o.count) {
      check_interrupt();
      const int64_t size = std::min(o.batch_size, o.count - done);
      BatchRequest request{
          {classes.begin() + done, classes.begin() + done + size}, o.seed, o.first_index + done};
      request.start = job.start(request);
      TraceObserver trace(pipeline.generator().mask_id());
      TokensObserver steps;
      InterruptObserver interrupt;
      std::vector<SamplerObserver*> observers = {&interrupt};
      if (!o.trace.empty()) observers.push_back(&trace);
      if (!o.save_tokens.empty() || !o.preview.empty()) observers.push_back(&steps);
      const BatchResult made = pipeline.generate(request, *schedule, observers);
      job.finish(made.images, request);
      pictures.add(request, made.images);
      trace_file.add(trace, request);
      tokens_file.add(made.tokens, steps);
      done += size;
      if (!o.preview.empty()) write_previews(pipeline, steps, o.preview, request, job);
      progress.update(done);
    }
  } catch (const Interrupted& signal) {
    stopped = signal;
  }
  classes.resize(size_t(done));
  pictures.finish(classes);
  if (done > 0) {
    trace_file.write();
    tokens_file.write(config, o.prompts, classes);
  }
  const double ended = monotonic_seconds();
  if (o.json) print_summary(making, names, done, {{"load", loaded - began}, {"generate", ended - loaded}});
  if (stopped) {
    std::fflush(stdout);
    warning(cat("stopped after ", done, " of ", o.count, " images",
                done > 0 ? ", which are written: " + o.output : ""));
    throw *stopped;
  }
  if (!o.json)
    note(cat(o.count, o.count == 1 ? " image in " : " images in ", format_duration(ended - began), ": ",
             o.output));
}

void GenerateOptions::add_to(CLI::App& command, const std::string& class_help) {
  command.add_option("-m,--model", model, "model folder")->required();
  command.add_option("-o,--output", output, "FILE.png (one grid), DIR/ or DIR/%05d.png")->required();
  command.add_option("-n,--count", count, "images in all")->capture_default_str();
  command.add_option("-c,--class", classes, "NAME or ID, or a list with commas; " + class_help);
  command
      .add_option(
          "-p,--prompt", prompts,
          "TEXT to make an image of, for models of texts; may be repeated: image i takes the i-th in turn")
      ->allow_extra_args(false);
  command.add_option("--steps", steps, "generation steps; default: the model's")
      ->each([this](const std::string&) { has_steps = true; });
  command.add_option(
      "--schedule", schedule,
      "adaptive, cosine, linear, autonat, halton or FILE.json; default: adaptive where the model has a "
      "policy, else cosine");
  command.add_option("--policy", policy, "policy file for --schedule adaptive; default: the model's");
  table.add_to(command);
  command.add_option("-s,--seed", seed, "seed; with an index it fixes an image")->capture_default_str();
  command.add_option("--first-index", first_index, "index of the first image")->capture_default_str();
  command.add_option("-b,--batch-size", batch_size, "images made together")->capture_default_str();
  command.add_option("--grid", grid, "ROWSxCOLUMNS of FILE.png");
  command.add_option("--save-tokens", save_tokens,
                     "FILE.safetensors with the tokens of all images and steps");
  command.add_option("--trace", trace, "FILE.json with the decisions of every step");
  command.add_option("--preview", preview, "DIR for the image after every step");
  command.add_flag("--json", json, "a summary as JSON on stdout");
  compute.add_to(command);
}

void add_generate(CLI::App& app) {
  auto* command = app.add_subcommand("generate", "images from a model folder");
  auto o = std::make_shared<GenerateOptions>();
  o->add_to(*command, "default: all classes in turn");
  command->footer(
      "Examples:\n"
      "  adanat generate -m models/signs -o signs.png -n 43\n"
      "  adanat generate -m models/signs -o out/ -n 100 -c 14,stop --steps 4 -s 7\n"
      "  adanat generate -m models/signs -o x.png -c 1 --schedule linear --guidance 2 --trace x.json\n"
      "  adanat generate -m cc3m -o cat.png -p \"a photo of a cat\"");
  command->callback([o] {
    GenerateJob plain;
    run_generate(*o, plain);
  });
}

}  // namespace adanat
