// The one training loop: logs, sample grids, checkpoints, resume, signals. What is trained is a Recipe.
#pragma once
#include <filesystem>

#include "core/train/recipe.h"

namespace adanat {

// InputError where `out` is no folder, or holds something and `resume` is off; what a run left that ended
// before its first checkpoint counts as nothing. Commands call it before the long work of reading data;
// run_training does too.
void check_run_folder(const std::filesystem::path& out, bool resume);

// Prepares --out: check_run_folder; InputError where another process trains there (a lock on out/.lock);
// settles a dtype of "auto" by timing (not on resume: what was chosen stays); writes config.json (resolved).
// On resume config.json must be there if a checkpoint is, and it and the checkpoint must agree with the
// recipe's config except for loop.*, run.* and where the data lies (else InputError naming the first
// differing key). Then runs updates until loop().steps. The folder: docs/command-line.md, "A training run".
// SIGINT/SIGTERM/SIGHUP: saves a checkpoint and the model, then throws Interrupted. Where a measurement or a
// sample grid fails, the checkpoint is saved first; what it still lacks of them a resumed run makes up for. A
// reported value or a tensor of the state that is not finite: RunError that names it and the step; nothing is
// saved over the last good checkpoint and model. Broken images are counted in log.jsonl ("data") after the
// first pass over the data, and told on stderr if there are any. Resumed CPU runs go on bit-exactly.
// `run_info` (where data came from, seed, device) is stored under "run" in config.json and not compared;
// there too lie the timings behind a dtype that was "auto", and which library multiplies in float32 on a CPU,
// which a resumed run keeps.
void run_training(Recipe& recipe, const std::filesystem::path& out, bool resume,
                  const Json& run_info = Json::object());

// The type that the run of this config.json was begun with, "float32" or "bfloat16"; empty where it does not say.
std::string dtype_of_run(const Json& config);

// The whole checkpoints below `out` (checkpoints/step-N), the oldest first; damaged ones are named on stderr.
std::vector<std::filesystem::path> checkpoints_in(const std::filesystem::path& out);
// The newest of them, or an empty path.
std::filesystem::path newest_checkpoint(const std::filesystem::path& out);

}  // namespace adanat
