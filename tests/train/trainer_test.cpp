#include "core/train/trainer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <sstream>

#include "core/base/interrupt.h"
#include "core/io/atomic_file.h"
#include "core/nn/linear.h"
#include "support/message_of.h"
#include "train/toy_recipe.h"

namespace adanat {
namespace {
namespace fs = std::filesystem;
using testing::message_of;
using testing::names_in;
using testing::state_of;
using testing::ToyConfig;
using testing::ToyRecipe;

class Trainer : public testing::TrainerFixture {};

TEST_F(Trainer, LayoutOfTheFolder) {
  ToyRecipe recipe;
  run_training(recipe, out_, false, {{"device", "cpu"}});
  Json stored = recipe.config();
  stored["run"] = {{"device", "cpu"}, {"float32_library", float32_library()}};
  EXPECT_EQ(read_json_file((out_ / "config.json").string()), stored);
  EXPECT_EQ(names_in(out_ / "checkpoints"), std::vector<std::string>{"step-10"});
  EXPECT_EQ(names_in(out_ / "model"), std::vector<std::string>{"toy.safetensors"});
  EXPECT_EQ(names_in(out_ / "samples"), std::vector<std::string>{"samples-00000010.png"});
  std::istringstream log(read_file(out_ / "log.jsonl"));
  std::vector<std::string> kinds;
  for (std::string line; std::getline(log, line);) kinds.push_back(Json::parse(line)["kind"]);
  EXPECT_EQ(kinds.size(), 11u);
  EXPECT_EQ(kinds.back(), "evaluate");
}

TEST_F(Trainer, RefusesAFolderThatHoldsARun) {
  ToyRecipe first, second;
  run_training(first, out_, false);
  const std::string message = message_of<InputError>([&] { run_training(second, out_, false); });
  EXPECT_NE(message.find(out_.string()), std::string::npos) << message;
  EXPECT_NE(message.find("--resume"), std::string::npos) << message;
  EXPECT_TRUE(second.steps_seen.empty());
}

TEST_F(Trainer, OneProcessAtATimeTrainsInAFolder) {
  std::filesystem::create_directories(out_);
  const int other = open((out_ / ".lock").c_str(), O_CREAT | O_RDWR, 0644);
  ASSERT_EQ(flock(other, LOCK_EX | LOCK_NB), 0);
  ToyRecipe recipe;
  EXPECT_NE(
      message_of<InputError>([&] { run_training(recipe, out_, true); }).find("another process trains there"),
      std::string::npos);
  close(other);
  run_training(recipe, out_, true);
  EXPECT_EQ(recipe.steps_seen.size(), 10u);
}

// A start that came to nothing does not block its folder; anything else does.
TEST_F(Trainer, ReplacesOnlyWhatHasJustBegun) {
  std::filesystem::create_directories(out_);
  write_file_atomic(out_ / ".lock", "");  // of a start that was stopped before anything was written
  EXPECT_NO_THROW(check_run_folder(out_, false));
  std::filesystem::create_directories(out_ / "samples");
  write_file_atomic(out_ / "config.json", "{}");
  EXPECT_THROW(check_run_folder(out_, false), InputError);  // no log: nobody's run
  write_file_atomic(out_ / "log.jsonl", "");
  EXPECT_NO_THROW(check_run_folder(out_, false));
  std::filesystem::create_directories(out_ / "checkpoints/step-4");
  EXPECT_THROW(check_run_folder(out_, false), InputError);
}

TEST_F(Trainer, NotANumberEndsTheRunAndSparesTheCheckpoint) {
  ToyConfig config;
  config.loop.checkpoint_every = 4;
  ToyRecipe recipe(config);
  recipe.nan_at = 6;
  const std::string message = message_of<RunError>([&] { run_training(recipe, out_, false); });
  EXPECT_NE(message.find("loss"), std::string::npos) << message;
  EXPECT_NE(message.find("step 7"), std::string::npos) << message;
  EXPECT_EQ(names_in(out_ / "checkpoints"), std::vector<std::string>{"step-4"});
  at::manual_seed(7);
  ToyRecipe again(config);
  run_training(again, out_, true);
  ASSERT_FALSE(again.steps_seen.empty());
  EXPECT_EQ(again.steps_seen.front(), 4);
}

TEST_F(Trainer, WeightsThatAreNoNumbersSpareTheModel) {
  ToyConfig config;
  config.loop.checkpoint_every = 4;
  config.loop.log_every = 100;
  ToyRecipe recipe(config);
  recipe.poison_at = 7;  // the loss of that step was still a number
  const std::string message = message_of<RunError>([&] { run_training(recipe, out_, false); });
  EXPECT_NE(message.find("train toy: w is not finite after step 8"), std::string::npos) << message;
  EXPECT_EQ(names_in(out_ / "checkpoints"), std::vector<std::string>{"step-4"});
  const TensorMap model = read_tensors(out_ / "model" / "toy.safetensors");
  EXPECT_CLOSE(model.at("w"), state_of(newest_checkpoint(out_)).at("w"), 0);
}

TEST_F(Trainer, WeightsThatRanAwayAreNamedByTheirStep) {
  ToyConfig config;
  config.optimizer.learning_rate = 1e30, config.optimizer.warmup = 0;
  config.loop.steps = 1;
  ToyRecipe recipe(config);
  const std::string message = message_of<RunError>([&] { run_training(recipe, out_, false); });
  EXPECT_NE(message.find("train toy: the weights after step 1"), std::string::npos) << message;
  EXPECT_NE(message.find("a logit is NaN"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << "one line";
  EXPECT_FALSE(fs::exists(out_ / "model"));
}

TEST_F(Trainer, BrokenImagesAreReportedOnce) {
  const auto reports = [](const fs::path& out) {
    std::vector<Json> found;
    std::istringstream log(read_file(out / "log.jsonl"));
    for (std::string line; std::getline(log, line);)
      if (const Json j = Json::parse(line); j["kind"] == "data") found.push_back(j);
    return found;
  };
  ToyRecipe recipe;
  recipe.health = {.steps_per_pass = 4, .images = 50, .broken = 3};
  ::testing::internal::CaptureStderr();
  run_training(recipe, out_, false);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("3 of 50 images"), std::string::npos) << said;
  ASSERT_EQ(reports(out_).size(), 1u);
  EXPECT_EQ(reports(out_)[0]["step"], 4);
  EXPECT_EQ(reports(out_)[0]["broken_images"], 3);
  // A run shorter than a pass reports at its end, and one resumed after the first pass not again.
  ToyRecipe brief;
  brief.health = {.steps_per_pass = 40, .images = 50, .broken = 0};
  run_training(brief, dir_ / "brief", false);
  ASSERT_EQ(reports(dir_ / "brief").size(), 1u);
  EXPECT_EQ(reports(dir_ / "brief")[0]["step"], 10);
  ToyConfig longer;
  longer.loop.steps = 20;
  ToyRecipe resumed(longer);
  resumed.health = recipe.health;
  run_training(resumed, out_, true);
  EXPECT_EQ(reports(out_).size(), 1u);
}

// A GPU's memory may hold an update in bfloat16 only.
TEST_F(Trainer, AutomaticPrecisionWhereOneDoesNotFit) {
  ToyConfig config;
  config.dtype = "auto";
  at::manual_seed(7);
  ToyRecipe chosen(config);
  chosen.too_large_dtype = "float32";
  run_training(chosen, out_, false);
  // One of each in both phases, and the run.
  EXPECT_EQ(chosen.steps_seen, (std::vector<int64_t>{0, 0, 6, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  const Json stored = read_json_file((out_ / "config.json").string());
  EXPECT_EQ(stored["dtype"], "bfloat16");
  EXPECT_TRUE(stored["run"]["dtype_timings"]["float32_seconds"].is_null());
  EXPECT_GT(stored["run"]["dtype_timings"]["bfloat16_seconds"].get<double>(), 0);

  at::manual_seed(7);
  config.dtype = "bfloat16";
  ToyRecipe given(config);
  run_training(given, dir_ / "given", false);
  const TensorMap a = state_of(newest_checkpoint(out_)), b = state_of(newest_checkpoint(dir_ / "given"));
  for (const auto& [name, tensor] : b) EXPECT_CLOSE(a.at(name), tensor, 0) << name;

  config.dtype = "auto";
  ToyRecipe neither(config);
  neither.too_large_dtype = "bfloat16";
  EXPECT_THROW(run_training(neither, dir_ / "neither", false), c10::OutOfMemoryError);
}

// "auto" times both precisions, takes the faster, and leaves no trace but the choice.
TEST_F(Trainer, AutomaticPrecision) {
  for (const std::string slow : {"float32", "bfloat16"}) {
    const std::string fast = slow == "float32" ? "bfloat16" : "float32";
    ToyConfig config;
    config.dtype = "auto";
    config.loop.steps = 5;
    at::manual_seed(7);
    ToyRecipe chosen(config);
    chosen.slow_dtype = slow;
    const fs::path out = dir_ / fast;
    run_training(chosen, out, false);
    EXPECT_GT(chosen.steps_seen.size(), 5u) << "timed before";
    Json stored = read_json_file((out / "config.json").string());
    EXPECT_EQ(stored["dtype"], fast);
    EXPECT_EQ(stored["run"]["dtype_timings"][slow + "_seconds"].get<double>() > 0.004, true);
    EXPECT_LT(stored["run"]["dtype_timings"][fast + "_seconds"].get<double>(), 0.004);
    const Json line =
        Json::parse(read_file(out / "log.jsonl").substr(0, read_file(out / "log.jsonl").find('\n')));
    EXPECT_EQ(line["kind"], "dtype");
    EXPECT_EQ(line["step"], 0);
    EXPECT_EQ(line["bfloat16"], fast == "bfloat16" ? 1 : 0);

    // Resumed with "auto", the choice stays, though the other one would be faster now.
    config.loop.steps = 10;
    ToyRecipe resumed(config);
    resumed.slow_dtype = fast;
    run_training(resumed, out, true);
    EXPECT_EQ(resumed.steps_seen, (std::vector<int64_t>{5, 6, 7, 8, 9}));
    EXPECT_EQ(read_json_file((out / "config.json").string())["run"], stored["run"]);

    at::manual_seed(7);
    config.dtype = fast;
    ToyRecipe given(config);
    run_training(given, dir_ / (fast + "-given"), false);
    const TensorMap a = state_of(newest_checkpoint(out)),
                    b = state_of(newest_checkpoint(dir_ / (fast + "-given")));
    for (const auto& [name, tensor] : b) EXPECT_CLOSE(a.at(name), tensor, 0) << name;
    config.dtype = slow;
    ToyRecipe other(config);
    EXPECT_NE(message_of<InputError>([&] { run_training(other, out, true); }).find("another dtype"),
              std::string::npos);
  }
}

// The flag that a signal sets is the process's own and is never cleared: each case runs in a child.
template <class F>
int status_of_child(F run) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 99;
    try {
      code = run();
    } catch (...) {
    }
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Sums round otherwise in another library: a run keeps the one that it was begun with.
TEST_F(Trainer, KeepsTheLibraryThatItWasBegunWith) {
  const std::string here = float32_library(), other = here == "MKL" ? "oneDNN" : "MKL";
  ToyConfig half;
  half.loop.steps = 5;
  ToyRecipe first(half);
  run_training(first, out_, false);
  Json stored = read_json_file((out_ / "config.json").string());
  EXPECT_EQ(stored["run"]["float32_library"], here);
  stored["run"]["float32_library"] = other;
  write_file_atomic(out_ / "config.json", stored.dump());
  ToyRecipe second;
  run_training(second, out_, true);
  EXPECT_EQ(float32_library(), other);
  EXPECT_EQ(read_json_file((out_ / "config.json").string())["run"]["float32_library"], other);
  use_float32_library(here);
  stored["run"]["float32_library"] = 3;
  write_file_atomic(out_ / "config.json", stored.dump());
  const std::string message = message_of<InputError>([&] { run_training(second, out_, true); });
  EXPECT_NE(message.find("run.float32_library"), std::string::npos) << message;
}

// The exit status of a process that trains and gets `signal` in the 0-based step `at`.
int status_of_signalled(const ToyConfig& config, const fs::path& out, int64_t at, int signal) {
  return status_of_child([&] {
    install_interrupt_handlers();
    ToyRecipe recipe(config);
    recipe.before_step = [&](int64_t step) {
      if (step != at) return;
      kill(getpid(), signal);
      for (int i = 0; i < 10'000 && interrupt_signal() == 0; ++i) usleep(1'000);
    };
    try {
      run_training(recipe, out, false);
    } catch (const Interrupted& e) {
      return e.exit_code();
    }
    return 98;
  });
}

// The steps after which the log of a run holds an evaluation.
std::vector<int64_t> evaluated_in(const fs::path& out) {
  std::vector<int64_t> steps;
  std::istringstream log(read_file(out / "log.jsonl"));
  for (std::string line; std::getline(log, line);)
    if (const Json j = Json::parse(line); j["kind"] == "evaluate") steps.push_back(j["step"]);
  return steps;
}

TEST_F(Trainer, SignalSavesAndLeaves) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const fs::path out = dir_ / cat("out", signal);
    ToyConfig config;
    config.loop.checkpoint_every = 2;
    EXPECT_EQ(status_of_signalled(config, out, 2, signal), 128 + signal);
    EXPECT_EQ(newest_checkpoint(out).filename(), "step-3") << "the update under way was finished and saved";
    EXPECT_TRUE(fs::exists(out / "model" / "toy.safetensors"));
    ToyRecipe recipe(config);
    run_training(recipe, out, true);
    ASSERT_FALSE(recipe.steps_seen.empty());
    EXPECT_EQ(recipe.steps_seen.front(), 3);
  }
}

TEST_F(Trainer, WhatASignalCutOffIsMeasuredOnResume) {
  for (const int64_t at : {2, 9}) {  // in between, and in the last step
    const fs::path out = dir_ / cat("out", at);
    ToyConfig config;
    config.loop.evaluate_every = 3;
    EXPECT_EQ(status_of_signalled(config, out, at, SIGTERM), 128 + SIGTERM);
    ToyRecipe recipe(config);
    for (int again = 0; again < 2; ++again) run_training(recipe, out, true);
    EXPECT_EQ(evaluated_in(out), (std::vector<int64_t>{3, 6, 9, 10}));
    EXPECT_TRUE(fs::exists(out / "samples" / "samples-00000010.png"));
  }
}

TEST_F(Trainer, WhatWasTrainedOutlivesAMeasurementThatFails) {
  ToyConfig config;
  config.loop.evaluate_every = 3;  // and no checkpoint is due before the end
  ToyRecipe recipe(config);
  recipe.before_evaluate = [] { throw InputError("held-out images: cannot be read"); };
  EXPECT_EQ(message_of([&] { run_training(recipe, out_, false); }), "held-out images: cannot be read");
  EXPECT_EQ(newest_checkpoint(out_).filename(), "step-3");
  recipe.before_evaluate = nullptr;
  run_training(recipe, out_, true);
  EXPECT_EQ(evaluated_in(out_), (std::vector<int64_t>{3, 6, 9, 10}));
}

TEST_F(Trainer, FullDisk) {
  const fs::path disk = dir_ / "disk";
  fs::create_directories(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=2m") != 0)
    GTEST_SKIP() << "skipped: may not mount a tmpfs";
  struct Unmount {
    const fs::path& path;
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
  } unmount{disk};
  const fs::path out = disk / "out";
  ToyConfig config;
  config.loop.checkpoint_every = 2;
  ToyRecipe recipe(config);
  recipe.before_step = [&](int64_t step) {
    if (step == 3) recipe.ballast = 1 << 20;  // the second checkpoint would be 4 MiB
  };
  const std::string message = message_of<RunError>([&] { run_training(recipe, out, false); });
  EXPECT_NE(message.find("state.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("no space left"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << "one line";
  EXPECT_EQ(names_in(out / "checkpoints"), std::vector<std::string>{"step-2"}) << "no half-written folder";
  ToyRecipe again(config);
  run_training(again, out, true);
  ASSERT_FALSE(again.steps_seen.empty());
  EXPECT_EQ(again.steps_seen.front(), 2) << "the older checkpoint is whole";
}

}  // namespace
}  // namespace adanat
