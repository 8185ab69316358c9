#include "core/train/trainer.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/io/atomic_file.h"

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

constexpr const char* kRngKey = "rng.cpu";
constexpr const char* kStateFile = "state.safetensors";

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error == std::errc::no_space_on_device)
    throw RunError(cat(path.string(), ": cannot make this folder: no space left on device; free some and --resume"));
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

std::vector<fs::path> checkpoints_in(const fs::path& out) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(out / "checkpoints", error))
    if (step_of(entry.path()) >= 0 && is_whole(entry.path() / kStateFile)) found.push_back(entry.path());
  std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) { return step_of(a) < step_of(b); });
  return found;
}

// A folder appears under its final name only when all of it is on disk. Where one stood there before, the two change
// places in one step, so that the name always leads to a whole folder.
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

void save_checkpoint(const Recipe& recipe, const fs::path& out, int64_t step) {
  make_folder(out / "checkpoints");
  write_folder(out / "checkpoints" / cat("step-", step), [&](const fs::path& folder) {
    TensorMap tensors;
    recipe.save(tensors);
    tensors[kRngKey] = at::globalContext().defaultGenerator(at::kCPU).get_state();
    write_tensors(folder / kStateFile, tensors,
                  {{"recipe", recipe.name()}, {"step", std::to_string(step)}, {"version", ADANAT_VERSION}});
  });
  auto all = checkpoints_in(out);
  for (size_t i = 0; i + size_t(recipe.loop().keep_checkpoints) < all.size(); ++i) fs::remove_all(all[i]);
}

int64_t load_checkpoint(Recipe& recipe, const fs::path& folder) {
  Metadata metadata;
  const fs::path file = folder / kStateFile;
  TensorMap tensors = read_tensors(file, &metadata);
  if (metadata["recipe"] != recipe.name())
    throw InputError(cat(file.string(), ": is a checkpoint of a ", metadata["recipe"], ", not of a ", recipe.name()));
  const auto rng = tensors.find(kRngKey);
  if (rng == tensors.end()) throw InputError(cat(file.string(), ": lacks the random state ", kRngKey));
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  if (rng->second.scalar_type() != at::kByte || rng->second.sizes() != generator.get_state().sizes())
    throw InputError(cat(file.string(), ": ", kRngKey, " is not a random state of this program"));
  generator.set_state(rng->second.clone());
  tensors.erase(rng);
  recipe.load(tensors, file.string());
  return step_of(folder);
}

// Parts of config.json that a resumed run may change: longer runs, other intervals, moved data.
bool may_differ(const std::string& path, const std::string& key) {
  return path.empty() && (key == "loop" || key == "run" || key == "data" || key == "held_out");
}

// The first key where the two differ, "" if none.
std::string first_difference(const Json& a, const Json& b, const std::string& path) {
  if (a.is_object() && b.is_object()) {
    for (const auto& item : a.items()) {
      if (may_differ(path, item.key())) continue;
      const std::string here = path.empty() ? item.key() : path + "." + item.key();
      if (!b.contains(item.key())) return here;
      const std::string below = first_difference(item.value(), b.at(item.key()), here);
      if (!below.empty()) return below;
    }
    for (const auto& item : b.items())
      if (!a.contains(item.key()) && !may_differ(path, item.key()))
        return path.empty() ? item.key() : path + "." + item.key();
    return "";
  }
  return a == b ? "" : path;
}

void prepare_out(const Recipe& recipe, const fs::path& out, bool resume, const Json& run_info) {
  check_run_folder(out, resume);
  make_folder(out);
  const fs::path config_file = out / "config.json";
  if (resume && fs::exists(config_file)) {
    const std::string differs = first_difference(read_json_file(config_file.string()), recipe.config(), "");
    if (!differs.empty())
      throw InputError(cat(config_file.string(), ": this run was begun with another ", differs,
                           "; give the same config, or start a new --out"));
  }
  Json resolved = recipe.config();
  resolved["run"] = run_info;
  write_file_atomic(config_file, resolved.dump(2) + "\n");
}

// Sums of reported values since the last log line, kept where they were computed.
class Averager {
 public:
  void add(const StepReport& report) {
    for (const auto& [name, value] : report.values) {
      auto [it, fresh] = sums_.try_emplace(name, Sum{order_.size(), value.detach().clone(), 1});
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
    size_t index;
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
    std::snprintf(part, sizeof part, "%s%s %.4g", i == 0 ? "" : ", ", scalars[i].first.c_str(), scalars[i].second);
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

}  // namespace

void check_run_folder(const fs::path& out, bool resume) {
  if (fs::exists(out) && !fs::is_directory(out)) throw InputError(cat(out.string(), ": exists and is not a folder"));
  if (!resume && fs::exists(out) && !fs::is_empty(out))
    throw InputError(cat(out.string(), ": holds a run already; add --resume to go on with it, or choose another --out"));
}

fs::path newest_checkpoint(const fs::path& out) {
  const auto all = checkpoints_in(out);
  return all.empty() ? fs::path() : all.back();
}

void run_training(Recipe& recipe, const fs::path& out, bool resume, const Json& run_info) {
  const LoopConfig& loop = recipe.loop();
  prepare_out(recipe, out, resume, run_info);
  int64_t start = 0;
  if (resume) {
    const fs::path checkpoint = newest_checkpoint(out);
    if (checkpoint.empty() && fs::exists(out / "model"))
      throw InputError(cat(out.string(), ": holds a model but no whole checkpoint to go on from; choose another --out"));
    if (checkpoint.empty()) {
      note(cat(out.string(), " holds no checkpoint yet: starting from the beginning"));
    } else {
      start = load_checkpoint(recipe, checkpoint);
      note(cat("resumed ", recipe.name(), " from ", checkpoint.string()));
    }
  }
  EventLog log(out, start + 1);  // lines carry the number of finished steps
  Progress progress(cat("train ", recipe.name()), loop.steps, "steps", start);
  Averager averager;
  const auto due = [&](int64_t every, int64_t done) { return every > 0 && done % every == 0; };
  const auto save_all = [&](int64_t done) {
    save_checkpoint(recipe, out, done);
    write_folder(out / "model", [&](const fs::path& folder) { recipe.write_model(folder); });
  };

  double interval_began = monotonic_seconds(), wait_before = recipe.data_wait_seconds();
  int64_t images = 0;
  std::string latest;
  for (int64_t step = start; step < loop.steps; ++step) {
    const StepReport report = recipe.step(step);
    averager.add(report);
    images += report.images;
    const int64_t done = step + 1;
    const bool stopping = interrupt_signal() != 0, last = done == loop.steps;

    // Also before every checkpoint: what is not finite must not replace a good one.
    if (due(loop.log_every, done) || due(loop.checkpoint_every, done) || last || stopping) {
      Scalars scalars = averager.take();
      for (const auto& [name, value] : scalars)
        if (!std::isfinite(value))
          throw RunError(cat("train ", recipe.name(), ": ", name, " is not finite around step ", done,
                             "; lower the learning rate or resume from an earlier checkpoint in ", out.string()));
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
    if (stopping) {
      save_all(done);
      note(cat("stopped after step ", done, "; go on with --resume"));
      check_interrupt();
    }
    const double pause = monotonic_seconds();
    if (due(loop.evaluate_every, done) || last) {
      const Scalars measured = recipe.evaluate();
      if (!measured.empty()) {
        log.scalars(done, "evaluate", measured);
        note(cat("step ", done, ": ", brief(measured)));
      }
    }
    if (due(loop.sample_every, done) || last) write_samples(recipe, log, out, done);
    if (due(loop.checkpoint_every, done) || last) save_all(done);
    log.flush();
    interval_began += monotonic_seconds() - pause;  // images per second are of the updates alone
  }
  if (start >= loop.steps) {
    // The last run may have been cut off between its checkpoint and its model.
    write_folder(out / "model", [&](const fs::path& folder) { recipe.write_model(folder); });
    note(cat(out.string(), ": all ", loop.steps, " steps are done already"));
  }
}

}  // namespace adanat
