// Checkpoints of the training loop: what is kept, what is taken, and going on from it.
#include "core/io/atomic_file.h"
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

class TrainerResume : public testing::TrainerFixture {};

TEST_F(TrainerResume, TenStepsAreFiveStopAndFive) {
  ToyRecipe whole;
  run_training(whole, dir_ / "whole", false);

  at::manual_seed(7);
  ToyConfig half;
  half.loop.steps = 5;
  ToyRecipe first(half);
  run_training(first, out_, false);
  EXPECT_EQ(newest_checkpoint(out_).filename(), "step-5");
  at::manual_seed(99);  // another process: weights and noise must come from the checkpoint
  ToyRecipe second;
  run_training(second, out_, true);
  EXPECT_EQ(second.steps_seen, (std::vector<int64_t>{5, 6, 7, 8, 9}));

  const TensorMap a = state_of(dir_ / "whole" / "checkpoints" / "step-10"),
                  b = state_of(newest_checkpoint(out_));
  ASSERT_EQ(a.size(), b.size());
  EXPECT_GE(a.size(), 6u) << "weights, two moments, count, average, random state";
  for (const auto& [name, tensor] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    EXPECT_CLOSE(b.at(name), tensor, 0) << name;
  }
}

TEST_F(TrainerResume, ResumeWithAnotherConfigNamesTheKey) {
  ToyConfig config;
  config.loop.steps = 3;
  ToyRecipe first(config);
  run_training(first, out_, false);
  const std::string stored = read_file(out_ / "config.json");
  config.optimizer.learning_rate = 0.02;
  ToyRecipe other(config);
  const std::string message = message_of<InputError>([&] { run_training(other, out_, true); });
  EXPECT_NE(message.find("optimizer.learning_rate"), std::string::npos) << message;
  EXPECT_TRUE(other.steps_seen.empty());
  EXPECT_EQ(read_file(out_ / "config.json"), stored);
  // The loop's own numbers may change: the run is made longer.
  config = {};
  config.loop.steps = 4;
  ToyRecipe longer(config);
  run_training(longer, out_, true);
  EXPECT_EQ(longer.steps_seen, std::vector<int64_t>{3});
}

TEST_F(TrainerResume, ResumeWithoutACheckpointBegins) {
  ToyRecipe recipe;
  run_training(recipe, out_, true);
  EXPECT_EQ(recipe.steps_seen.size(), 10u);
}

TEST_F(TrainerResume, KeepsTheNewestCheckpoints) {
  ToyConfig config;
  config.loop.checkpoint_every = 2;
  config.loop.keep_checkpoints = 3;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  EXPECT_EQ(names_in(out_ / "checkpoints"), (std::vector<std::string>{"step-10", "step-6", "step-8"}));
  EXPECT_EQ(newest_checkpoint(out_).filename(), "step-10") << "by number, not by name";
}

TEST_F(TrainerResume, HalfWrittenCheckpointsAreNotTaken) {
  ToyConfig config;
  config.loop.steps = 4;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  fs::create_directories(out_ / "checkpoints" / "step-9");
  fs::create_directories(out_ / "checkpoints" / "step-8.tmp");
  write_file_atomic(out_ / "checkpoints" / "step-8.tmp" / "state.safetensors", "half");
  EXPECT_EQ(newest_checkpoint(out_).filename(), "step-4");
  fs::create_directories(out_ / "model.tmp");
  run_training(recipe, out_, true);
  EXPECT_EQ(names_in(out_ / "checkpoints"), (std::vector<std::string>{"step-4", "step-9"}));
  EXPECT_FALSE(fs::exists(out_ / "model.tmp"));
}

TEST_F(TrainerResume, CheckpointOfAnotherRecipe) {
  ToyConfig config;
  config.loop.steps = 2;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  const fs::path file = newest_checkpoint(out_) / "state.safetensors";
  Metadata metadata;
  TensorMap tensors = state_of(newest_checkpoint(out_));
  write_tensors(file, tensors, {{"recipe", "tokenizer"}, {"step", "2"}});
  const std::string message = message_of<InputError>([&] { run_training(recipe, out_, true); });
  EXPECT_NE(message.find("tokenizer"), std::string::npos) << message;
  EXPECT_NE(message.find(file.string()), std::string::npos) << message;
}

TEST_F(TrainerResume, CheckpointUnderAnotherName) {
  ToyConfig config;
  config.loop.steps = 4;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  fs::rename(out_ / "checkpoints" / "step-4", out_ / "checkpoints" / "step-7");
  const std::string message = message_of<InputError>([&] { run_training(recipe, out_, true); });
  EXPECT_NE(message.find("step-7"), std::string::npos) << message;
  EXPECT_NE(message.find("after step 4"), std::string::npos) << message;
}

TEST_F(TrainerResume, CheckpointWithoutARandomState) {
  ToyConfig config;
  config.loop.steps = 2;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  const fs::path file = newest_checkpoint(out_) / "state.safetensors";
  const Metadata metadata{{"recipe", "toy"}, {"step", "2"}, {"config", recipe.config().dump()}};
  TensorMap tensors = state_of(newest_checkpoint(out_));
  tensors["rng.cpu"] = at::zeros({7}, at::kByte);
  write_tensors(file, tensors, metadata);
  EXPECT_NE(message_of<InputError>([&] { run_training(recipe, out_, true); }).find("rng.cpu"),
            std::string::npos);
  tensors.erase("rng.cpu");
  write_tensors(file, tensors, metadata);
  EXPECT_NE(message_of<InputError>([&] { run_training(recipe, out_, true); }).find("lacks"),
            std::string::npos);
}

TEST_F(TrainerResume, ResumeWithoutItsConfig) {
  ToyConfig config;
  config.loop.steps = 2;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  fs::remove(out_ / "config.json");
  const std::string message = message_of<InputError>([&] { run_training(recipe, out_, true); });
  EXPECT_NE(message.find("config.json: is missing"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(out_ / "config.json"));
}

TEST_F(TrainerResume, ConfigThatContradictsTheCheckpoint) {
  ToyConfig config;
  config.loop.steps = 2;
  ToyRecipe recipe(config);
  run_training(recipe, out_, false);
  Json edited = read_json_file((out_ / "config.json").string());
  edited["noise"] = 0.3;
  write_file_atomic(out_ / "config.json", edited.dump());
  config.noise = 0.3;
  ToyRecipe other(config);
  const std::string message = message_of<InputError>([&] { run_training(other, out_, true); });
  EXPECT_NE(message.find("state.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("another noise"), std::string::npos) << message;
  write_file_atomic(out_ / "config.json", "[]");
  EXPECT_NE(message_of<InputError>([&] { run_training(other, out_, true); }).find("JSON object"),
            std::string::npos);
}

TEST_F(TrainerResume, LogLinesAreKeptAfterResume) {
  const auto lines = [&] {
    std::vector<std::string> out;
    std::istringstream log(read_file(out_ / "log.jsonl"));
    for (std::string line; std::getline(log, line);)
      if (Json::parse(line)["kind"] == "train") out.push_back(line);
    return out;
  };
  ToyConfig config;
  config.loop.checkpoint_every = 3;
  ToyRecipe first(config);
  first.nan_at = 8;  // the run breaks off between checkpoint 6 and 9; step 7 and 8 are in the log
  EXPECT_THROW(run_training(first, out_, false), RunError);
  const std::vector<std::string> before = lines();
  ASSERT_EQ(before.size(), 8u);
  ToyRecipe second(config);
  run_training(second, out_, true);
  const std::vector<std::string> after = lines();
  ASSERT_EQ(after.size(), 10u) << "one line for each step";
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(after[i], before[i]);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(Json::parse(after[i])["step"], i + 1);
}

TEST_F(TrainerResume, ADamagedCheckpointIsPassedOver) {
  ToyConfig config;
  config.loop.checkpoint_every = 5;
  ToyRecipe first(config);
  run_training(first, out_, false);
  const fs::path newest = out_ / "checkpoints" / "step-10" / "state.safetensors";
  const TensorMap expected = state_of(out_ / "checkpoints" / "step-10");
  fs::resize_file(newest, fs::file_size(newest) - 3);
  ToyRecipe second(config);
  ::testing::internal::CaptureStderr();
  run_training(second, out_, true);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("checkpoint passed over"), std::string::npos) << said;
  EXPECT_NE(said.find("step-10"), std::string::npos) << said;
  EXPECT_EQ(second.steps_seen, (std::vector<int64_t>{5, 6, 7, 8, 9}));
  for (const auto& [name, tensor] : state_of(out_ / "checkpoints" / "step-10"))
    EXPECT_CLOSE(tensor, expected.at(name), 0) << name;
}

}  // namespace
}  // namespace adanat
