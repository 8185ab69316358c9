#include "core/train/trainer.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/io/atomic_file.h"
#include "core/nn/linear.h"
#include "core/nn/out_of_memory.h"
#include "core/train/finite.h"
#include "core/train/first_difference.h"
#include "core/train/precision.h"
#include "core/train/random_state.h"

namespace adanat {
namespace fs = std::filesystem;

void LoopConfig::validate() const {
  require(steps >= 1, "steps", ">= 1", steps);
  require(log_every >= 1, "log_every", ">= 1", log_every);
  require(evaluate_every >= 0, "evaluate_every", ">= 0", evaluate_every);
  require(sample_every >= 0, "sample_every", ">= 0", sample_every);
  require(checkpoint_every >= 0, "checkpoint_every", ">= 0", checkpoint_every);
  require(keep_checkpoints >= 1, "keep_checkpoints", ">= 1", keep_checkpoints);
}

namespace {

constexpr const char* kStateFile = "state.safetensors";
constexpr const char* kUnmeasured =
    "unmeasured";  // in its metadata: what was due at its step is still to be made
constexpr const char* kLockFile = ".lock";

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error == std::errc::no_space_on_device)
    throw RunError(
        cat(path.string(), ": cannot make this folder: no space left on device; free some and --resume"));
  if (error) throw InputError(cat(path.string(), ": cannot make this folder: ", error.message()));
}

void sync_folder(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
}

// "step-12" -> 12; -1 for anything else (a temporary folder, say).
int64_t step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (name.rfind("step-", 0) != 0 || name.size() < 6 || name.size() > 20) return -1;
  if (!std::all_of(name.begin() + 5, name.end(), [](char c) { return c >= '0' && c <= '9'; })) return -1;
  return std::stoll(name.substr(5));
}

// A file whose header and sizes hold; a damaged one is left alone and named.
bool is_whole(const fs::path& file) {
  try {
    SafetensorsFile::open(file);
    return true;
  } catch (const InputError& e) {
    warning(cat("checkpoint passed over: ", e.what()));
    return false;
  }
}

// A folder appears under its final name only when all of it is on disk. Where one stood there before, the two
// change places in one step, so that the name always leads to a whole folder.
template <class Fill>
void write_folder(const fs::path& final_name, Fill fill) {
  const fs::path fresh = final_name.string() + ".tmp";
  fs::remove_all(fresh);
  make_folder(fresh);
  try {
    fill(fresh);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(fresh, ignored);
    throw;
  }
  sync_folder(fresh);
  if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, final_name.c_str(), RENAME_EXCHANGE) != 0) {
    // Nothing there, or a file system that cannot exchange; for anything else the old folder stays.
    if (errno != ENOENT && errno != EINVAL && errno != ENOSYS)
      throw RunError(cat(final_name.string(), ": cannot be replaced: ", std::strerror(errno)));
    fs::remove_all(final_name);
    fs::rename(fresh, final_name);
  }
  sync_folder(final_name.parent_path());
  fs::remove_all(fresh);
}

// Parts of config.json that a resumed run may change: longer runs, other intervals, moved data.
// Captions and the reward's networks are told by the hashes that their files and the checkpoint hold.
const std::set<std::string> kMayChange = {
    "loop", "run", "data", "held_out", "features", "text_features", "reward.frechet_networks"};

// What a kill in the middle of write_folder left behind. The caller holds the folder's lock.
void remove_unfinished(const fs::path& out) {
  std::error_code error;
  fs::remove_all(out / "model.tmp", error);
  std::vector<fs::path> unfinished;
  for (const auto& entry : fs::directory_iterator(out / "checkpoints", error))
    if (entry.path().extension() == ".tmp" && step_of(entry.path().stem()) >= 0)
      unfinished.push_back(entry.path());
  for (const fs::path& folder : unfinished) fs::remove_all(folder, error);
}

void save_checkpoint(const Recipe& recipe, const fs::path& out, int64_t step, bool unmeasured) {
  make_folder(out / "checkpoints");
  write_folder(out / "checkpoints" / cat("step-", step), [&](const fs::path& folder) {
    TensorMap tensors;
    recipe.save(tensors);
    save_random_state(tensors);
    Metadata metadata{{"recipe", recipe.name()},
                      {"step", std::to_string(step)},
                      {"config", recipe.config().dump()},
                      {"version", ADANAT_VERSION}};
    if (unmeasured) metadata[kUnmeasured] = "true";
    write_tensors(folder / kStateFile, tensors, metadata);
  });
  auto all = checkpoints_in(out);
  for (size_t i = 0; i + size_t(recipe.loop().keep_checkpoints) < all.size(); ++i) fs::remove_all(all[i]);
}

// Where a run begins.
struct Beginning {
  int64_t steps = 0;        // that are done
  bool unmeasured = false;  // evaluation and samples of the last of them are missing
  Json timings;             // what settle_dtype gives
};

void load_checkpoint(Recipe& recipe, const fs::path& folder, Beginning& begin) {
  Metadata metadata;
  const fs::path file = folder / kStateFile;
  TensorMap tensors = read_tensors(file, &metadata);
  if (metadata["recipe"] != recipe.name())
    throw InputError(
        cat(file.string(), ": is a checkpoint of a ", metadata["recipe"], ", not of a ", recipe.name()));
  const int64_t step = step_of(folder);
  if (metadata["step"] != std::to_string(step))
    throw InputError(cat(file.string(), ": was saved after step ", metadata["step"], ", but its folder says ",
                         step, "; give the folder its own name back, or remove it"));
  // config.json was compared already: it and the checkpoint may have parted since (one was edited, or
  // copied).
  const auto differs = first_difference(parse_json(metadata["config"], file.string() + ": config"),
                                        recipe.config(), kMayChange);
  if (differs)
    throw InputError(
        cat(file.string(), ": was saved by a run with another ", differs->key,
            "; config.json beside it contradicts it: put the right one back, or start a new --out"));
  load_random_state(tensors, file.string());
  std::erase_if(tensors, [](const auto& item) { return is_random_state(item.first); });
  recipe.load(tensors, file.string());
  begin.steps = step, begin.unmeasured = metadata.contains(kUnmeasured);
}

// config.json of a run that goes on; an empty object where nothing has begun.
Json stored_config(const fs::path& file, bool begun) {
  if (!fs::exists(file) && begun)
    throw InputError(cat(file.string(),
                         ": is missing, so nothing says how this run was begun; put it back, or start a "
                         "new --out"));
  Json stored = fs::exists(file) ? read_json_file(file.string()) : Json::object();
  if (!stored.is_object())
    throw InputError(cat(file.string(), ": must hold one JSON object; put the right one back"));
  return stored;
}

// What was stored stays in force, else "auto" is decided by timing. Returns the timings, null where there
// were none.
Json settle_dtype(Recipe& recipe, const Json& stored) {
  if (recipe.dtype() != "auto") return nullptr;
  if (const std::string dtype = dtype_of_run(stored); !dtype.empty()) {
    recipe.set_dtype(dtype);
    return nullptr;
  }
  const DtypeChoice choice = choose_dtype(recipe);
  char seconds[96];
  if (std::isinf(choice.float32_seconds))
    std::snprintf(seconds, sizeof seconds, "more memory than there is in float32, %.4g s with bfloat16",
                  choice.bfloat16_seconds);
  else
    std::snprintf(seconds, sizeof seconds, "%.4g s in float32, %.4g s with bfloat16", choice.float32_seconds,
                  choice.bfloat16_seconds);
  note(cat("an update takes ", seconds, ": training in ", choice.dtype));
  return {{"float32_seconds", choice.float32_seconds}, {"bfloat16_seconds", choice.bfloat16_seconds}};
}

// The library that the run was begun with: with another one it would not go on bit-exactly.
std::string settle_library(const fs::path& config_file, const Json& stored) {
  constexpr const char* kKey = "float32_library";
  const Json run = stored.value("run", Json::object());
  if (!run.contains(kKey)) return float32_library();
  try {
    use_float32_library(run[kKey].is_string() ? run[kKey].get<std::string>() : run[kKey].dump());
  } catch (const InputError& e) {
    throw InputError(cat(config_file.string(), ": run.", e.what(), "; put the right config back"));
  }
  return float32_library();
}

// Checks or makes the folder, settles the precision, loads the newest checkpoint and writes config.json.
Beginning begin_run(Recipe& recipe, const fs::path& out, bool resume, Json run_info) {
  const fs::path config_file = out / "config.json", checkpoint = resume ? newest_checkpoint(out) : fs::path();
  if (resume && checkpoint.empty() && fs::exists(out / "model"))
    throw InputError(
        cat(out.string(), ": holds a model but no whole checkpoint to go on from; choose another --out"));
  const Json stored = resume ? stored_config(config_file, !checkpoint.empty()) : Json::object();
  run_info["float32_library"] = settle_library(config_file, stored);
  Beginning begin;
  begin.timings = settle_dtype(recipe, stored);
  const auto differs = stored.empty() ? std::nullopt : first_difference(stored, recipe.config(), kMayChange);
  if (differs)
    throw InputError(cat(config_file.string(), ": this run was begun with another ", differs->key,
                         "; give the same config, or start a new --out"));
  if (!checkpoint.empty()) {
    load_checkpoint(recipe, checkpoint, begin);
    note(cat("resumed ", recipe.name(), " from ", checkpoint.string()));
  } else if (resume) {
    note(cat(out.string(), " holds no checkpoint yet: starting from the beginning"));
  }
  remove_unfinished(out);
  Json resolved = recipe.config();
  if (!begin.timings.is_null())
    run_info["dtype_timings"] = begin.timings;
  else if (stored.contains("run") && stored["run"].contains("dtype_timings"))
    run_info["dtype_timings"] = stored["run"]["dtype_timings"];
  resolved["run"] = run_info;
  write_file_atomic(config_file, resolved.dump(2) + "\n");
  return begin;
}

// What to do about weights that have run away: only what is possible. A run does not go on with another
// config.
std::string way_out(const fs::path& out) {
  if (newest_checkpoint(out).empty()) return "start again with a lower learning rate";
  return cat("start again with a lower learning rate in another --out, if you like with --init ",
             (out / "model").string());
}

// Throws before anything is written of weights that are not numbers.
void check_finite(const Recipe& recipe, const fs::path& out, int64_t step) {
  TensorMap tensors;
  recipe.save(tensors);
  const std::string name = first_non_finite(tensors);
  if (!name.empty())
    throw RunError(
        cat("train ", recipe.name(), ": ", name, " is not finite after step ", step, "; ", way_out(out)));
}

// Weights that must not take the place of good ones.
class Diverged : public RunError {
 public:
  using RunError::RunError;
};

// Measures and draws with the weights as they are. What LibTorch and the operators refuse then (a logit that
// is not a number, say) comes from weights that are still finite but have diverged: RunError. Other errors
// (held-out images that cannot be read, memory that runs out) say nothing about the weights.
template <class Work>
void use_weights(const Recipe& recipe, const fs::path& out, int64_t step, Work work) {
  try {
    work();
  } catch (const c10::Error& e) {
    if (is_out_of_memory(e)) throw;
    const std::string why = e.what_without_backtrace();
    throw Diverged(cat("train ", recipe.name(), ": the weights after step ", step, " give no usable result (",
                       why.substr(0, why.find('\n')), "); ", way_out(out)));
  }
}

// The step after which broken images are reported: the end of the first pass over the data, or of the next
// whole one where the run was resumed within the first; 0 = they were reported before.
int64_t health_report_step(const Recipe& recipe, int64_t start) {
  const int64_t pass = recipe.data_health().steps_per_pass;
  return start >= pass ? 0 : start == 0 ? pass : 2 * pass;
}

void report_health(const Recipe& recipe, EventLog& log, int64_t step) {
  const DataHealth health = recipe.data_health();
  log.scalars(step, "data", {{"images", double(health.images)}, {"broken_images", double(health.broken)}});
  if (health.broken > 0)
    warning(
        cat(health.broken, " of ", health.images, " images cannot be read and are left out of the training"));
}

// Sums of reported values since the last log line, kept where they were computed.
class Averager {
 public:
  void add(const StepReport& report) {
    for (const auto& [name, value] : report.values) {
      auto [it, fresh] = sums_.try_emplace(name, Sum{value.detach().clone(), 1});
      if (fresh) {
        order_.push_back(name);
      } else {
        it->second.total.add_(value.detach());
        ++it->second.count;
      }
    }
  }
  Scalars take() {
    Scalars out;
    for (const std::string& name : order_) {
      const Sum& sum = sums_.at(name);
      out.emplace_back(name, sum.total.item<double>() / double(sum.count));
    }
    sums_.clear();
    order_.clear();
    return out;
  }

 private:
  struct Sum {
    at::Tensor total;
    int64_t count;
  };
  std::map<std::string, Sum> sums_;
  std::vector<std::string> order_;
};

std::string brief(const Scalars& scalars) {
  std::string text;
  for (size_t i = 0; i < scalars.size() && i < 4; ++i) {
    char part[96];
    std::snprintf(part, sizeof part, "%s%s %.4g", i == 0 ? "" : ", ", scalars[i].first.c_str(),
                  scalars[i].second);
    text += part;
  }
  return text;
}

void write_samples(Recipe& recipe, EventLog& log, const fs::path& out, int64_t step) {
  for (const NamedImage& sample : recipe.samples()) {
    make_folder(out / "samples");
    char name[160];
    std::snprintf(name, sizeof name, "%s-%08lld.png", sample.name.c_str(), static_cast<long long>(step));
    write_png(out / "samples" / name, sample.image, {{"Software", cat("adanat ", ADANAT_VERSION)}});
    log.image(step, sample.name, sample.image);
  }
}

// Whether there is nothing but what a run writes before its first checkpoint: a start that came to nothing. A
// config or samples without a log are somebody's own.
bool only_begun(const fs::path& out) {
  const bool logged = fs::exists(out / "log.jsonl");
  for (const auto& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename().string();
    const bool of_a_run = name == "config.json" || name == "log.jsonl" || name == "samples" ||
                          name == "diagnostics" || name.starts_with("events.out.tfevents.") ||
                          (name == "checkpoints" && fs::is_empty(entry.path()));
    if (name != kLockFile && !(logged && of_a_run)) return false;
  }
  return true;
}

// The folder is one process's until the end of the run, however that ends.
class RunLock {
 public:
  explicit RunLock(const fs::path& out)
      : fd_(open((out / kLockFile).c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
    if (fd_ < 0) throw InputError(cat(out.string(), ": cannot be written: ", std::strerror(errno)));
    // A file system without locks is no reason to stop.
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      close(fd_);
      throw InputError(
          cat(out.string(), ": another process trains there; wait for it or choose another --out"));
    }
  }
  ~RunLock() { close(fd_); }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_;
};

}  // namespace

void check_run_folder(const fs::path& out, bool resume) {
  if (fs::exists(out) && !fs::is_directory(out))
    throw InputError(cat(out.string(), ": exists and is not a folder"));
  if (!resume && fs::exists(out) && !fs::is_empty(out) && !only_begun(out))
    throw InputError(
        cat(out.string(), ": holds a run already; add --resume to go on with it, or choose another --out"));
}

std::string dtype_of_run(const Json& config) {
  const Json dtype = config.is_object() ? config.value("dtype", Json()) : Json();
  return dtype == "float32" || dtype == "bfloat16" ? dtype.get<std::string>() : std::string();
}

std::vector<fs::path> checkpoints_in(const fs::path& out) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(out / "checkpoints", error))
    if (step_of(entry.path()) >= 0 && is_whole(entry.path() / kStateFile)) found.push_back(entry.path());
  std::sort(found.begin(), found.end(),
            [](const fs::path& a, const fs::path& b) { return step_of(a) < step_of(b); });
  return found;
}

fs::path newest_checkpoint(const fs::path& out) {
  const auto all = checkpoints_in(out);
  return all.empty() ? fs::path() : all.back();
}

void run_training(Recipe& recipe, const fs::path& out, bool resume, const Json& run_info) {
  const LoopConfig& loop = recipe.loop();
  check_run_folder(out, resume);
  make_folder(out);
  const RunLock lock(out);
  if (!resume && fs::exists(out / "log.jsonl"))
    note(cat(out.string(), ": replaces a run that came to nothing"));
  const Beginning begin = begin_run(recipe, out, resume, run_info);
  const int64_t start = begin.steps;
  EventLog log(out, start + 1);  // lines carry the number of finished steps
  if (!begin.timings.is_null())
    log.scalars(0, "dtype",
                {{"float32_seconds", begin.timings["float32_seconds"].get<double>()},
                 {"bfloat16_seconds", begin.timings["bfloat16_seconds"].get<double>()},
                 {"bfloat16", recipe.dtype() == "bfloat16" ? 1.0 : 0.0}});
  const int64_t health_due = health_report_step(recipe, start);
  Progress progress(cat("train ", recipe.name()), loop.steps, "steps", start);
  Averager averager;
  const auto due = [&](int64_t every, int64_t done) { return every > 0 && done % every == 0; };
  const auto evaluates = [&](int64_t done) { return due(loop.evaluate_every, done) || done == loop.steps; };
  const auto draws = [&](int64_t done) { return due(loop.sample_every, done) || done == loop.steps; };
  const auto save_all = [&](int64_t done, bool unmeasured = false) {
    save_checkpoint(recipe, out, done, unmeasured);
    write_folder(out / "model", [&](const fs::path& folder) { recipe.write_model(folder); });
  };
  // Evaluation and samples, where they are due after `done` steps. What was trained outlives their failure.
  const auto measure = [&](int64_t done) {
    try {
      if (evaluates(done)) {
        Scalars measured;
        use_weights(recipe, out, done, [&] { measured = recipe.evaluate(); });
        if (!measured.empty()) {
          log.scalars(done, "evaluate", measured);
          note(cat("step ", done, ": ", brief(measured)));
        }
      }
      if (draws(done)) use_weights(recipe, out, done, [&] { write_samples(recipe, log, out, done); });
    } catch (const Diverged&) {
      throw;
    } catch (...) {
      try {
        save_checkpoint(recipe, out, done, /*unmeasured=*/true);
      } catch (const std::exception& e) {
        warning(cat("what was trained could not be saved either: ", e.what()));
      }
      throw;
    }
  };
  if (begin.unmeasured && (evaluates(start) || draws(start))) {
    check_finite(recipe, out, start);
    measure(start);
    save_all(start);
  }

  double interval_began = monotonic_seconds(), wait_before = recipe.data_wait_seconds();
  int64_t images = 0;
  std::string latest;
  for (int64_t step = start; step < loop.steps; ++step) {
    const StepReport report = recipe.step(step);
    averager.add(report);
    images += report.images;
    const int64_t done = step + 1;
    const bool stopping = interrupt_signal() != 0, last = done == loop.steps;

    const bool saving = due(loop.checkpoint_every, done) || last || stopping;
    // Also before every checkpoint: what is not finite must not replace a good one.
    if (due(loop.log_every, done) || saving) {
      Scalars scalars = averager.take();
      for (const auto& [name, value] : scalars)
        if (!std::isfinite(value))
          throw RunError(cat("train ", recipe.name(), ": ", name, " is not finite around step ", done, "; ",
                             way_out(out)));
      const double now = monotonic_seconds(), seconds = now - interval_began;
      latest = brief(scalars);
      scalars.emplace_back("images_per_second", seconds > 0 ? double(images) / seconds : 0);
      scalars.emplace_back("data_wait_share",
                           seconds > 0 ? (recipe.data_wait_seconds() - wait_before) / seconds : 0);
      log.scalars(done, "train", scalars);
      log.flush();
      interval_began = now, wait_before = recipe.data_wait_seconds(), images = 0;
    }
    progress.update(done, latest);
    if (saving || evaluates(done) || draws(done)) check_finite(recipe, out, done);
    if (health_due > 0 && (done == health_due || (last && done < health_due)))
      report_health(recipe, log, done);
    if (stopping) {
      save_all(done, /*unmeasured=*/evaluates(done) || draws(done));
      note(cat("stopped after step ", done, "; go on with --resume"));
      check_interrupt();
    }
    const double pause = monotonic_seconds();
    measure(done);
    if (due(loop.checkpoint_every, done) || last) save_all(done);
    log.flush();
    interval_began += monotonic_seconds() - pause;  // images per second are of the updates alone
  }
  if (start >= loop.steps) {
    check_finite(recipe, out, start);
    // The last run may have been cut off between its checkpoint and its model.
    write_folder(out / "model", [&](const fs::path& folder) { recipe.write_model(folder); });
    note(cat(out.string(), ": all ", loop.steps, " steps are done already"));
  }
}

}  // namespace adanat
