#include "apps/adanat/generate_files.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <cstdio>

#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/parallel.h"
#include "core/io/atomic_file.h"
#include "core/nn/device.h"
#include "core/nn/tensor_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

void check_pattern(const std::string& path) {
  if (!path.ends_with(".png"))
    throw InputError(cat("--output ", path,
                         ": images are written as PNG, so the name must end in .png, like DIR/%05d.png"));
  size_t at = path.find('%'), i = at + 1;
  while (i < path.size() && path[i] >= '0' && path[i] <= '9' && i - at < 4) ++i;
  if (i >= path.size() || path[i] != 'd' || path.find('%', at + 1) != std::string::npos || path.size() > 3000)
    throw InputError(cat("--output ", path, ": wants exactly one number, like DIR/%05d.png"));
}

std::pair<int64_t, int64_t> parse_grid(const std::string& grid, int64_t count) {
  if (grid.empty()) return grid_shape(count);
  int rows = 0, columns = 0, used = 0;
  if (grid.size() > 20 || std::sscanf(grid.c_str(), "%5dx%5d%n", &rows, &columns, &used) != 2 ||
      used != int(grid.size()) || rows < 1 || columns < 1)
    throw InputError(cat("--grid ", grid, ": must be ROWSxCOLUMNS, like 4x8"));
  if (int64_t(rows) * columns < count)
    throw InputError(cat("--grid ", grid, ": has ", rows * columns, " cells for ", count, " images"));
  return {rows, columns};
}

std::string class_name(const ModelConfig& config, int64_t id) {
  return size_t(id) < config.class_names.size() ? config.class_names[size_t(id)] : std::to_string(id);
}

// The text chunk "parameters": what sd tools read, then the same as JSON.
TextChunks parameters_chunk(const Making& making, int64_t index, const std::vector<int64_t>& classes) {
  const auto& [pipeline, options, table, schedule, job, dtype] = making;
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
    // What is applied at each step; a policy that decides it for every image leaves it to --trace.
    Json applied = Json::array();
    for (int64_t t = 0; t < schedule.steps(); ++t)
      if (const auto w = schedule.known_guidance(t)) applied.push_back(*w);
    j["guidance"] = int64_t(applied.size()) == schedule.steps() ? applied : Json(schedule.name());
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

}  // namespace

OutputNames::OutputNames(const std::string& path, const std::string& grid, int64_t count, int64_t first_index)
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
    throw InputError(cat("--output ", path, ": the number belongs into the file's name, like DIR/%05d.png"));
  std::error_code error;
  if (!folder.empty()) fs::create_directories(folder, error);
  if (error)
    throw InputError(
        cat("--output ", path, ": cannot make the folder ", folder.string(), ": ", error.message()));
  // Found out now, not after the work: nothing may be writable there.
  const AtomicFile probe(single_ ? fs::path(path_) : file(0));
}

fs::path OutputNames::file(int64_t i) const {
  if (single_) return path_;
  char name[4096];
  std::snprintf(name, sizeof name, path_.c_str(),
                int(first_index_ + i));  // check_pattern allows one %d only
  return name;
}

PictureFiles::~PictureFiles() {
  if (writing_.valid()) writing_.wait();
}

void PictureFiles::wait() {
  if (writing_.valid()) writing_.get();
}

void PictureFiles::add(const BatchRequest& request, const at::Tensor& images) {
  wait();
  if (names_.single()) {
    grid_.push_back(images);
    return;
  }
  // Packed here: what ATen does on a thread of its own would start a team of threads for each.
  const at::Tensor packed = images.permute({0, 2, 3, 1}).contiguous();
  const auto write = [this, request, packed, begin = added_](int64_t i) {
    const auto* p = packed.const_data_ptr<uint8_t>() + i * packed.stride(0);
    write_png(names_.file(begin + i),
              {int(packed.size(2)), int(packed.size(1)), std::vector<uint8_t>(p, p + packed.stride(0))},
              parameters_chunk(making_, request.first_index + i, {request.classes[size_t(i)]}));
  };
  writing_ = std::async(std::launch::async, [write, count = packed.size(0), threads = at::get_num_threads()] {
    for_each_in_parallel(count, threads, write);
  });
  added_ += packed.size(0);
}

void PictureFiles::finish(const std::vector<int64_t>& classes) {
  wait();
  if (!grid_.empty())
    write_png(names_.file(0), make_grid(at::cat(grid_), names_.rows(), names_.columns()),
              parameters_chunk(making_, making_.options.first_index, classes));
}

TraceFile::TraceFile(std::string path, int64_t steps, std::vector<std::string> prompts)
    : path_(std::move(path)), prompts_(std::move(prompts)) {
  if (path_.empty()) return;
  out_["steps"] = steps;
  out_["samples"] = Json::array();
  const AtomicFile probe(path_);
}
void TraceFile::add(const TraceObserver& trace, const BatchRequest& request) {
  if (path_.empty()) return;
  const at::Tensor actions = trace.actions(), revealed = trace.revealed();
  const auto a = actions.accessor<double, 3>();
  const auto r = revealed.accessor<int64_t, 2>();
  for (size_t b = 0; b < request.classes.size(); ++b) {
    Json sample;
    sample["index"] = request.first_index + int64_t(b);
    if (prompts_.empty())
      sample["class"] = request.classes[b];
    else
      sample["prompt"] = prompts_[size_t(request.classes[b])];
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
void TraceFile::write() const {
  if (!path_.empty()) write_file_atomic(path_, out_.dump() + "\n");
}

TokensFile::TokensFile(std::string path) : path_(std::move(path)) {
  if (!path_.empty()) const AtomicFile probe(path_);
}

void TokensFile::add(const at::Tensor& tokens, const TokensObserver& steps) {
  if (!path_.empty()) tokens_.push_back(tokens), steps_.push_back(steps.tokens());
}

void TokensFile::write(const ModelConfig& config, const std::vector<std::string>& prompts,
                       const std::vector<int64_t>& classes) const {
  if (path_.empty()) return;
  Metadata said;
  if (const auto hash = config.files.find("tokenizer.safetensors"); hash != config.files.end())
    said["tokenizer_hash"] = hash->second;
  if (!prompts.empty()) said["prompts"] = Json(prompts).dump();
  write_tensors(path_,
                {{"tokens", at::cat(tokens_)},
                 {"steps", at::cat(steps_, 1)},
                 {"classes", at::tensor(classes, at::kLong)}},
                said);
}

void write_previews(Pipeline& pipeline, const TokensObserver& steps, const fs::path& folder,
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
      write_png(folder / name, to_image(images[b]));
    }
  }
}

}  // namespace adanat
