// Making images into files: the flags, outputs and metadata of `adanat generate`. `adanat edit` is the same
// with another start, so it takes all of them from here.
#pragma once
#include <string>
#include <vector>

#include "apps/adanat/cli.h"
#include "apps/adanat/table_flags.h"
#include "core/base/config.h"

namespace adanat {

class Pipeline;
struct BatchRequest;

struct GenerateOptions {
  std::string model, output, classes, schedule, policy, grid, save_tokens, trace, preview;
  std::vector<std::string> prompts;
  int64_t count = 1, steps = 0, seed = 42, first_index = 0, batch_size = 16;
  TableFlags table;
  bool json = false, has_steps = false;
  ComputeOptions compute;

  // `class_help` says what images without --class show. has_steps is set when the command is parsed.
  void add_to(CLI::App& command, const std::string& class_help);
};

// What a command changes about plain generation. Each default is generate's own.
class GenerateJob {
 public:
  virtual ~GenerateJob() = default;
  virtual std::string verb() const { return "generate"; }  // title of the progress bar
  // Once, with the model open, before the first batch.
  virtual void prepare(Pipeline&) {}
  // BatchRequest::start of the request's images.
  virtual at::Tensor start(const BatchRequest&) const { return {}; }
  // Changes the decoded images (B, 3, S, S) u8 of the request in place; previews too.
  virtual void finish(const at::Tensor&, const BatchRequest&) const {}
  // Adds to the JSON in the images' metadata and of --json, and to the line for people in the metadata
  // ("Denoising strength: 0.5", say; empty = nothing).
  virtual void describe(Json&) const {}
  virtual std::string summary() const { return ""; }
};

// The whole command: checks, model, batches, files, reports. Throws Interrupted after a signal, with what is
// finished written.
void run_generate(const GenerateOptions& options, GenerateJob& job);

}  // namespace adanat
