// What `adanat bench` measures: the time of each stage of a generation, images and tokens per second, memory.
//
// Each stage is called until a sample lasts some milliseconds, and the stages take turns, so that a machine
// that gets slower hits all of them. Times are of the wall clock; the processor time of all threads stands
// beside it, for machines that do other things as well.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <filesystem>
#include <string>
#include <vector>

#include "apps/pipeline/model_folder.h"

namespace adanat {

struct BenchOptions {
  std::filesystem::path model;  // a model folder; empty: `shape`
  std::string shape;            // a name of bench_shapes(), or FILE.json: {"generator": .., "tokenizer": ..}
  std::vector<int64_t> batches = {1};
  std::vector<at::ScalarType> dtypes = {at::kFloat};  // as parse_dtype returns them
  std::string schedule;                               // as Pipeline::schedule takes it
  int64_t steps = 0;                                  // 0 = the model's
  int64_t warmup = 1, repeats = 5;                    // rounds before, and samples of each stage
  std::vector<std::string> stages;                    // only these of bench_stages(); empty = all
  int64_t classes = 0;  // distinct classes (texts) in a batch; 0 = as many as there are
  bool train = false;   // time updates of generator training instead of the stages
  at::Device device = at::kCPU;
};

// Sizes that need no file: weights of the right shape are drawn at random, the same every time.
std::vector<std::string> bench_shapes();
// InputError: no such name or file, or sizes that cannot be.
ModelConfig bench_shape(const std::string& name);

// The names of the stages: load (folders only; batch 0), transformer (one forward of `batch` rows with the
// head at every position), decode_step (guided), policy (one decision), encode, decode, generate (classes in,
// or texts' states drawn at random, since a text encoder is no part of a generation; bytes out).
std::vector<std::string> bench_stages();

// Measures and returns the report:
//   {"program", "platform", "device", "threads", "model": {"name", "hash", "generator", "tokenizer"},
//    "schedule", "steps", "policy", "warmup", "repeats", "float32_library",
//    "gemm": [{"dtype", "flops_per_second"}],
//    "results": [{"stage", "dtype", "batch", "calls", "seconds": {"median", "low", "high", "min", "max"},
//                 "processor_seconds", "images_per_second", "tokens_per_second", "gemm_share"}],
//    "memory": [{"dtype", "batch", "peak_mib"}]}
// The stage of `train` is "train", one update. `low` and `high` are the quartiles, all times of one call;
// "processor_seconds" is the median. "gemm_share" (transformer, train): the multiplications' rate over that
// of a large product, which "gemm" measured in the same run; on a CPU both are taken by processor time.
// "peak_mib": of the process (resident) or of the GPU's tensors.
// InputError as from Pipeline; Interrupted.
Json run_bench(const BenchOptions& options);

}  // namespace adanat
