// adanat generate: images from a model folder (spec/cli.md, generate).
#include "apps/adanat/generate.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <future>

#include "apps/pipeline/pipeline.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/io/atomic_file.h"
#include "core/nn/device.h"
#include "core/nn/tensor_file.h"
#include "core/sampling/observers.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

// Calls work(0), ..., work(count - 1) on `threads` threads. The first exception comes through when all have
// ended.
template <class Work>
void share_out(int64_t count, int64_t threads, const Work& work) {
  const int64_t parts = std::clamp<int64_t>(threads, 1, count);
  std::vector<std::future<void>> running;
  for (int64_t part = 0; part < parts; ++part)
    running.push_back(std::async(std::launch::async, [&work, part, parts, count] {
      for (int64_t i = part; i < count; i += parts) work(i);
    }));
  for (const auto& one : running) one.wait();
  for (auto& one : running) one.get();
}

// Where images go: one grid, or one file per image.
class Output {
 public:
  Output(const std::string& path, const std::string& grid, int64_t count, int64_t first_index)
      : path_(path), first_index_(first_index) {
    const bool numbered = path.find('%') != std::string::npos;
    single_ = !numbered && fs::path(path).extension() == ".png";
    if (numbered) {
      check_pattern(path);
    } else if (!single_) {
      if (!path.ends_with('/') && fs::path(path).has_extension() && !fs::is_directory(path))
        throw InputError(cat("--output ", path, ": must be FILE.png (one grid), DIR/ or DIR/%05d.png"));
      path_ = (fs::path(path) / "%05d.png").string();
    }
    if (single_) {
      if (fs::is_directory(path))
        throw InputError(cat("--output ", path, ": is a folder; give FILE.png or ", path, "/"));
      std::tie(rows_, columns_) = parse_grid(grid, count);
    } else if (!grid.empty()) {
      throw InputError("--grid: only for one FILE.png as --output");
    }
    const fs::path folder = fs::path(path_).parent_path();
    if (folder.string().find('%') != std::string::npos)
      throw InputError(
          cat("--output ", path, ": the number belongs into the file's name, like DIR/%05d.png"));
    std::error_code error;
    if (!folder.empty()) fs::create_directories(folder, error);
    if (error)
      throw InputError(
          cat("--output ", path, ": cannot make the folder ", folder.string(), ": ", error.message()));
    // Found out now, not after the work: nothing may be writable there.
    const AtomicFile probe(single_ ? fs::path(path_) : file(0));
  }

  bool single() const { return single_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  fs::path file(int64_t i) const {
    if (single_) return path_;
    char name[4096];
    std::snprintf(name, sizeof name, path_.c_str(),
                  int(first_index_ + i));  // check_pattern allows one %d only
    return name;
  }

 private:
  static void check_pattern(const std::string& path) {
    if (!path.ends_with(".png"))
      throw InputError(cat("--output ", path,
                           ": images are written as PNG, so the name must end in .png, like DIR/%05d.png"));
    size_t at = path.find('%'), i = at + 1;
    while (i < path.size() && path[i] >= '0' && path[i] <= '9' && i - at < 4) ++i;
    if (i >= path.size() || path[i] != 'd' || path.find('%', at + 1) != std::string::npos ||
        path.size() > 3000)
      throw InputError(cat("--output ", path, ": wants exactly one number, like DIR/%05d.png"));
  }

  static std::pair<int64_t, int64_t> parse_grid(const std::string& grid, int64_t count) {
    if (grid.empty()) return grid_shape(count);
    int rows = 0, columns = 0, used = 0;
    if (grid.size() > 20 || std::sscanf(grid.c_str(), "%5dx%5d%n", &rows, &columns, &used) != 2 ||
        used != int(grid.size()) || rows < 1 || columns < 1)
      throw InputError(cat("--grid ", grid, ": must be ROWSxCOLUMNS, like 4x8"));
    if (int64_t(rows) * columns < count)
      throw InputError(cat("--grid ", grid, ": has ", rows * columns, " cells for ", count, " images"));
    return {rows, columns};
  }

  std::string path_;
  int64_t first_index_, rows_ = 0, columns_ = 0;
  bool single_ = false;
};

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

std::string class_name(const ModelConfig& config, int64_t id) {
  return size_t(id) < config.class_names.size() ? config.class_names[size_t(id)] : std::to_string(id);
}

// The text chunk "parameters": what sd tools read, then the same as JSON.
TextChunks parameters_chunk(const Pipeline& pipeline, const GenerateOptions& options,
                            const TableOptions& table, const Schedule& schedule, int64_t index,
                            const std::vector<int64_t>& classes, at::ScalarType dtype,
                            const GenerateJob& job) {
  const ModelConfig& config = pipeline.config();
  std::string label;
  if (classes.size() != 1)
    label = cat(classes.size(), " images");
  else
    label = config.from_texts() ? options.prompts[size_t(classes[0])] : class_name(config, classes[0]);
  Json j;
  if (config.from_texts() && classes.size() == 1)
    j["prompt"] = label;
  else if (config.from_texts())
    j["prompts"] = options.prompts;
  else if (classes.size() == 1)
    j["class"] = classes[0], j["class_name"] = label;
  else
    j["classes"] = classes;
  j["model"] = config.name;
  j["model_hash"] = pipeline.model_hash();
  j["steps"] = schedule.steps();
  j["schedule"] = schedule.name();
  const bool tabled = schedule.takes_table_options();
  if (tabled) {
    j["guidance"] = table.guidance;
    j["guidance_curve"] = table.guidance_curve;
    if (!schedule.priority()) j["temperature"] = table.temperature;  // an order has none
    j["sampling_temperature"] = table.sampling_temperature;
  } else {
    j["actions"] = schedule.describe();
  }
  j["seed"] = options.seed;
  j["index"] = index;
  j["size"] = config.image_size;
  j["dtype"] = dtype_name(dtype);
  j["version"] = ADANAT_VERSION;
  job.describe(j);
  const std::string guidance = tabled ? cat("CFG scale: ", table.guidance, ", ") : "";
  const std::string summary = job.summary().empty() ? "" : ", " + job.summary();
  const std::string line =
      cat(label, "\nSteps: ", schedule.steps(), ", Sampler: ", schedule.name(), ", ", guidance,
          "Seed: ", options.seed, ", Size: ", config.image_size, "x", config.image_size,
          ", Model hash: ", pipeline.model_hash().substr(0, 10), ", Model: ", config.name, summary,
          ", Version: adanat ", ADANAT_VERSION, "\n", j.dump());
  return {{"parameters", line}};
}

// Collects what --trace writes, batch after batch.
class TraceFile {
 public:
  // `prompts`: of a model of texts, else empty.
  TraceFile(std::string path, int64_t steps, std::vector<std::string> prompts)
      : path_(std::move(path)), prompts_(std::move(prompts)) {
    if (path_.empty()) return;
    out_["steps"] = steps;
    out_["samples"] = Json::array();
    const AtomicFile probe(path_);
  }
  void add(const TraceObserver& trace, int64_t first_index, const std::vector<int64_t>& classes) {
    if (path_.empty()) return;
    const at::Tensor actions = trace.actions(), revealed = trace.revealed();
    const auto a = actions.accessor<double, 3>();
    const auto r = revealed.accessor<int64_t, 2>();
    for (size_t b = 0; b < classes.size(); ++b) {
      Json sample;
      sample["index"] = first_index + int64_t(b);
      if (prompts_.empty())
        sample["class"] = classes[b];
      else
        sample["prompt"] = prompts_[size_t(classes[b])];
      for (int64_t t = 0; t < actions.size(0); ++t) {
        const auto row = a[t][int64_t(b)];
        sample["actions"].push_back({{"mask_ratio", row[0]},
                                     {"remask_temperature", row[1]},
                                     {"sampling_temperature", row[2]},
                                     {"guidance", row[3]}});
        sample["revealed"].push_back(r[t][int64_t(b)]);
      }
      out_["samples"].push_back(std::move(sample));
    }
  }
  void write() const {
    if (!path_.empty()) write_file_atomic(path_, out_.dump() + "\n");
  }

 private:
  std::string path_;
  std::vector<std::string> prompts_;
  Json out_;
};

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
  if (!o.save_tokens.empty()) const AtomicFile probe(o.save_tokens);
  if (!o.preview.empty()) {
    std::error_code error;
    fs::create_directories(o.preview, error);
    if (error) throw InputError(cat("--preview ", o.preview, ": cannot make this folder: ", error.message()));
    const AtomicFile probe(fs::path(o.preview) / "probe.png");
  }
}

void write_previews(Pipeline& pipeline, const TokensObserver& steps, const std::string& folder,
                    const BatchRequest& request, const GenerateJob& job) {
  const at::Tensor proposals = steps.proposals();
  for (int64_t t = 0; t < proposals.size(0); ++t) {
    check_interrupt();
    const at::Tensor images = pipeline.decode(proposals[t]);
    job.finish(images, request);
    for (int64_t b = 0; b < images.size(0); ++b) {
      char name[64];
      std::snprintf(name, sizeof name, "%05lld-step%02lld.png",
                    static_cast<long long>(request.first_index + b), static_cast<long long>(t + 1));
      write_png(fs::path(folder) / name, to_image(images[b]));
    }
  }
}

}  // namespace

void run_generate(const GenerateOptions& o, GenerateJob& job) {
  install_interrupt_handlers();
  check_options(o);
  const double began = monotonic_seconds();
  const at::Device device = o.compute.apply();
  const Output output(o.output, o.grid, o.count, o.first_index);
  const at::ScalarType dtype = parse_dtype(o.compute.dtype, device);
  Pipeline pipeline = Pipeline::open(o.model, device, dtype);
  const ModelConfig& config = pipeline.config();
  const TableOptions table = o.table.over(config.sampling.table);
  const auto schedule = pipeline.schedule(o.schedule, o.steps, table, o.policy);
  o.table.refuse_for(*schedule);
  for (const int64_t cells : {output.rows(), output.columns()})
    if (cells * (config.image_size + 2) > kMaxImageSide)
      throw InputError(cat("--output ", o.output, ": one grid of ", output.rows(), "x", output.columns(),
                           " images of ", config.image_size, " pixels is over the ", kMaxImageSide,
                           "-pixel limit; give DIR/ instead"));
  std::vector<int64_t> classes = choose_conditions(config, o);
  if (config.from_texts()) pipeline.set_prompts(o.prompts);
  job.prepare(pipeline);
  TraceFile trace_file(o.trace, schedule->steps(), o.prompts);
  const double loaded = monotonic_seconds();

  // What is finished, batch after batch. A signal ends the work between two steps; what is finished by then
  // is written as if no more had been asked for.
  Progress progress(job.verb(), o.count, "images");
  std::vector<at::Tensor> grid_images, all_tokens, all_steps;
  std::future<void> writing;  // the files of the last batch, while the next one is made
  int64_t done = 0;
  std::optional<Interrupted> stopped;
  try {
    while (done < o.count) {
      check_interrupt();
      const int64_t size = std::min(o.batch_size, o.count - done), first = o.first_index + done;
      BatchRequest request{{classes.begin() + done, classes.begin() + done + size}, o.seed, first};
      request.start = job.start(request);
      TraceObserver trace(pipeline.generator().mask_id());
      TokensObserver steps;
      InterruptObserver interrupt;
      std::vector<SamplerObserver*> observers = {&interrupt};
      if (!o.trace.empty()) observers.push_back(&trace);
      if (!o.save_tokens.empty() || !o.preview.empty()) observers.push_back(&steps);
      const BatchResult made = pipeline.generate(request, *schedule, observers);
      job.finish(made.images, request);
      if (writing.valid()) writing.get();
      if (!o.trace.empty()) trace_file.add(trace, first, request.classes);
      if (!o.save_tokens.empty()) all_tokens.push_back(made.tokens), all_steps.push_back(steps.tokens());
      if (output.single()) {
        grid_images.push_back(made.images);
      } else {
        // Packed here: what ATen does on a thread of its own would start a team of threads for each.
        const at::Tensor packed = made.images.permute({0, 2, 3, 1}).contiguous();
        const auto write = [&, request, packed, begin = done](int64_t i) {
          const auto* p = packed.const_data_ptr<uint8_t>() + i * packed.stride(0);
          write_png(output.file(begin + i),
                    {int(packed.size(2)), int(packed.size(1)), std::vector<uint8_t>(p, p + packed.stride(0))},
                    parameters_chunk(pipeline, o, table, *schedule, request.first_index + i,
                                     {request.classes[size_t(i)]}, dtype, job));
        };
        writing = std::async(std::launch::async, [write, size, threads = at::get_num_threads()] {
          share_out(size, threads, write);
        });
      }
      done += size;
      if (!o.preview.empty()) write_previews(pipeline, steps, o.preview, request, job);
      progress.update(done);
    }
  } catch (const Interrupted& signal) {
    stopped = signal;
  }
  if (writing.valid()) writing.get();
  classes.resize(size_t(done));
  if (output.single() && done > 0) {
    write_png(o.output, make_grid(at::cat(grid_images), output.rows(), output.columns()),
              parameters_chunk(pipeline, o, table, *schedule, o.first_index, classes, dtype, job));
  }
  if (done > 0) trace_file.write();
  if (!o.save_tokens.empty() && done > 0) {
    Metadata said;
    if (const auto hash = config.files.find("tokenizer.safetensors"); hash != config.files.end())
      said["tokenizer_hash"] = hash->second;
    if (!o.prompts.empty()) said["prompts"] = Json(o.prompts).dump();
    write_tensors(o.save_tokens,
                  {{"tokens", at::cat(all_tokens)},
                   {"steps", at::cat(all_steps, 1)},
                   {"classes", at::tensor(classes, at::kLong)}},
                  said);
  }
  const double ended = monotonic_seconds();
  if (o.json) {
    Json j;
    j["count"] = done;
    j["files"] = Json::array();
    for (int64_t i = 0; i < (output.single() ? std::min<int64_t>(done, 1) : done); ++i)
      j["files"].push_back(output.file(i).string());
    j["model"] = config.name;
    j["steps"] = schedule->steps();
    j["schedule"] = schedule->name();
    j["seed"] = o.seed;
    j["first_index"] = o.first_index;
    j["dtype"] = dtype_name(dtype);
    if (config.from_texts()) j["prompts"] = o.prompts;
    job.describe(j);
    j["seconds"] = {{"load", loaded - began}, {"generate", ended - loaded}};
    std::printf("%s\n", j.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  }
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
