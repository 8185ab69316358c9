// What the one training loop (core/train/trainer.h) asks of each thing that can be trained.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/base/config.h"
#include "core/io/image.h"
#include "core/nn/tensor_file.h"
#include "core/train/event_log.h"

namespace adanat {

// The part of every training config that the loop itself reads. Counts are optimizer updates ("steps").
struct LoopConfig {
  int64_t steps = 1000;
  int64_t log_every = 50;
  int64_t evaluate_every = 0;
  int64_t sample_every = 0;
  int64_t checkpoint_every = 1000;
  int64_t keep_checkpoints = 2;

  static constexpr auto fields() {
    using C = LoopConfig;
    return std::tuple{
        field("steps", &C::steps, "updates in all, >= 1"),
        field("log_every", &C::log_every, "updates between log lines, >= 1"),
        field("evaluate_every", &C::evaluate_every, "updates between evaluations, 0 = only at the end"),
        field("sample_every", &C::sample_every, "updates between sample grids, 0 = only at the end"),
        field("checkpoint_every", &C::checkpoint_every, "updates between checkpoints, 0 = only at the end"),
        field("keep_checkpoints", &C::keep_checkpoints, "newest checkpoints kept, >= 1"),
    };
  }
  void validate() const;
  bool operator==(const LoopConfig&) const = default;
};

// Means over the log interval are taken of each value; 0-d tensors, so that a GPU is asked only at a log
// line.
struct StepReport {
  std::vector<std::pair<std::string, at::Tensor>> values;
  int64_t images = 0;  // images (or token rows) this update has seen
};

// How the data has fared so far.
struct DataHealth {
  int64_t steps_per_pass = 0;  // updates in which every image comes up once; 0 = nothing can be broken
  int64_t images = 0;          // in the data set
  int64_t broken = 0;          // met so far, and skipped
};

struct NamedImage {
  std::string name;  // "samples", "reconstructions": used as file name and TensorBoard tag
  Image image;
};

// Owns the model, its optimizers, its data and its random state. Not thread-safe.
class Recipe {
 public:
  virtual ~Recipe() = default;
  virtual std::string name() const = 0;  // "generator"
  virtual Json config() const = 0;       // the resolved config, whole
  virtual const LoopConfig& loop() const = 0;

  // One whole update (all its micro-batches). A pure function of the state and `step`, 0-based.
  virtual StepReport step(int64_t step) = 0;
  // Measured on held-out data with the weights that will be shipped.
  virtual Scalars evaluate() { return {}; }
  virtual std::vector<NamedImage> samples() { return {}; }

  // Everything that must survive a stop, besides torch's default random generators (the loop keeps those).
  virtual void save(TensorMap& tensors) const = 0;
  virtual void load(const TensorMap& tensors, const std::string& where) = 0;
  // Writes a complete model folder (usable by `generate` where it can be) into an empty folder.
  virtual void write_model(const std::filesystem::path& folder) = 0;
  // Seconds spent waiting for data so far.
  virtual double data_wait_seconds() const { return 0; }
  virtual DataHealth data_health() const { return {}; }

  // "float32", "bfloat16" or "auto" (core/train/precision.h); what a recipe does not choose is float32. The
  // loop settles "auto" before the first step by timing both; config() echoes what is in force.
  virtual std::string dtype() const { return "float32"; }
  virtual void set_dtype(const std::string&) {}
  // First steps of the phases whose updates cost differently (0 and the start of an adversarial loss, say),
  // ascending.
  virtual std::vector<int64_t> phases() const { return {0}; }
};

}  // namespace adanat
