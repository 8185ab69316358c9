// The command line at its edges, on a bundled model: signals, outputs, numbers, names. Nothing is trained
// here.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>

#include "core/base/config.h"
#include "core/io/image.h"
#include "e2e/program.h"

namespace adanat {
namespace {

using testing::adanat_run;
using testing::is_one_line_error;
using testing::Outcome;
using testing::TempDir;
namespace fs = std::filesystem;

std::string model() {
  return (testing::source_dir() / "models/mnist").string();
}

// As adanat_run, but sends `signal` once `ready()`; waits two minutes at most for that. Seconds from the
// signal to the end go to `seconds`.
template <class Ready>
Outcome adanat_stop(const TempDir& dir, const std::string& arguments, int signal, Ready ready,
                    double* seconds, int times = 1) {
  const std::string out = (dir / "stdout").string(), err = (dir / "stderr").string();
  const std::string command = "exec " + testing::binary() + " " + arguments + " >" + out + " 2>" + err;
  const pid_t child = fork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0; i < 2400 && !ready(); ++i) usleep(50'000);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) kill(child, signal), usleep(10'000);
  int raw = 0;
  waitpid(child, &raw, 0);
  *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return {WIFSIGNALED(raw) ? 128 + WTERMSIG(raw) : WEXITSTATUS(raw), read_file(out), read_file(err)};
}

bool holds(const fs::path& file, const std::string& text) {
  std::error_code ignored;
  return fs::exists(file, ignored) && read_file(file).find(text) != std::string::npos;
}

// Nothing that a writer left half-done.
::testing::AssertionResult no_temporary_files(const fs::path& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.path().filename().string().find(".tmp-") != std::string::npos)
      return ::testing::AssertionFailure() << entry.path();
  return ::testing::AssertionSuccess();
}

TEST(Signals, AreHeardWithinABatch) {
  const TempDir dir;
  const std::string d = dir.path().string();
  double seconds = 0;
  // One batch of a thousand steps takes minutes; the note about the schedule comes after the handlers stand.
  const auto stopped = adanat_stop(
      dir,
      "generate -m " + model() + " -n 64 -b 64 --steps 1000 -o " + d + "/x.png --save-tokens " + d +
          "/x.safetensors --trace " + d + "/x.json",
      SIGTERM, [&] { return holds(dir / "stderr", "cosine"); }, &seconds);
  EXPECT_EQ(stopped.status, 143) << stopped.err;
  EXPECT_LT(seconds, 20);  // a step takes under a second; the rest is for a busy machine
  EXPECT_NE(stopped.err.find("warning: stopped after 0 of 64 images\n"), std::string::npos) << stopped.err;
  EXPECT_NE(stopped.err.find("error: stopped by signal 15\n"), std::string::npos) << stopped.err;
  for (const char* name : {"x.png", "x.safetensors", "x.json"}) EXPECT_FALSE(fs::exists(dir / name)) << name;
  EXPECT_TRUE(no_temporary_files(dir.path()));
}

// A terminal that is closed; but not for what was started by nohup.
TEST(Signals, AHangUpIsOneUnlessItIsIgnored) {
  const TempDir dir;
  const std::string work =
      "generate -m " + model() + " -n 64 -b 64 --steps 60 -o " + (dir / "x.png").string();
  const auto begun = [&] { return holds(dir / "stderr", "cosine"); };
  double seconds = 0;
  // The second one comes from the kernel when the shell of the terminal has gone; it must not cut the work
  // short.
  const auto stopped = adanat_stop(dir, work, SIGHUP, begun, &seconds, /*times=*/2);
  EXPECT_EQ(stopped.status, 129) << stopped.err;
  EXPECT_NE(stopped.err.find("stopped after 0 of 64 images"), std::string::npos) << stopped.err;
  fs::remove(dir / "stderr");
  const auto before = std::signal(SIGHUP, SIG_IGN);  // handed on to the child
  const auto ignored = adanat_stop(dir, work, SIGHUP, begun, &seconds);
  std::signal(SIGHUP, before);
  EXPECT_EQ(ignored.status, 0) << ignored.err;
}

TEST(Signals, KeepWhatIsFinished) {
  const TempDir dir;
  const std::string d = dir.path().string();
  double seconds = 0;
  const auto stopped = adanat_stop(
      dir,
      "generate --json -m " + model() + " -n 5000 -b 4 --steps 2 --grid 50x100 -o " + d +
          "/x.png --save-tokens " + d + "/x.safetensors --trace " + d + "/x.json --preview " + d + "/preview",
      SIGINT, [&] { return fs::exists(dir / "preview/00007-step02.png"); }, &seconds);
  EXPECT_EQ(stopped.status, 130) << stopped.err;
  const int64_t done = Json::parse(stopped.out).at("count");
  EXPECT_GE(done, 8);
  EXPECT_LT(done, 5000);
  EXPECT_NE(stopped.err.find(cat("stopped after ", done, " of 5000 images, which are written: ")),
            std::string::npos)
      << stopped.err;
  const Image grid = read_image(dir / "x.png");
  EXPECT_EQ(grid.width, 100 * 30 - 2);
  EXPECT_EQ(grid.height, 50 * 30 - 2);
  const Json trace = read_json_file(d + "/x.json");
  EXPECT_EQ(int64_t(trace.at("samples").size()), done);
  const TensorMap saved = read_tensors(dir / "x.safetensors");
  EXPECT_EQ(saved.at("tokens").size(0), done);
  EXPECT_EQ(saved.at("steps").size(1), done);
  EXPECT_EQ(saved.at("classes").size(0), done);
  EXPECT_TRUE(no_temporary_files(dir.path()));
}

TEST(Signals, LeaveWholeFiles) {
  const TempDir dir;
  double seconds = 0;
  const auto stopped = adanat_stop(
      dir,
      "generate --quiet -m " + model() + " -n 100000 -b 8 --steps 2 -o " + dir.path().string() + "/many/",
      SIGTERM, [&] { return fs::exists(dir / "many/00003.png"); }, &seconds);
  EXPECT_EQ(stopped.status, 143) << stopped.err;
  int64_t files = 0;
  for (const auto& entry : fs::directory_iterator(dir / "many")) {
    EXPECT_EQ(read_image(entry.path()).width, 28);
    ++files;
  }
  EXPECT_NE(stopped.err.find(cat("stopped after ", files, " of 100000 images")), std::string::npos)
      << stopped.err << files;
}

TEST(Usage, IsCheckedBeforeTheWork) {
  const TempDir dir;
  const std::string d = dir.path().string(), base = "generate -m " + model() + " ",
                    g = base + "-o " + d + "/x.png ";
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    EXPECT_TRUE(is_one_line_error(adanat_run(dir, arguments), 2, part)) << arguments;
  };
  expect(g + "-n 99999999999999999999", "--count: 99999999999999999999 does not fit 64 bits");
  expect(g + "-s -9223372036854775809", "--seed: -9223372036854775809 does not fit 64 bits");
  expect(g + "-n 0x10", "--count: \"0x10\" is not an integer");
  expect(g + "-n ''", "--count");
  expect(g + "-c 0,", "--class 0,: has an empty item");
  expect(g + "-c ,0", "--class ,0: has an empty item");
  for (const char* flag : {"--class", "--schedule", "--grid", "--trace", "--save-tokens", "--preview",
                           "--guidance-curve", "--device"})
    expect(g + flag + " ''", std::string(flag) + ": must not be empty");
  expect(base + "-o ''", "--output: must not be empty");
  expect(base + "-o " + d + "/%d", "must end in .png");
  expect(base + "-o " + d + "/%05d.jpg", "must end in .png");
  expect(base + "-o " + d + "/x.jpg", "FILE.png");
  expect(g + "--guidance 1e999", "guidance must be in");
  expect(g + "--guidance nan", "guidance must be in");
  expect(g + "-n 2 --first-index 2147483647", "--first-index 2147483647");
  expect(g + "--first-index -1", "--first-index -1");
  expect(g + "--trace " + d + "/./x.png", "named as two outputs");
  expect(g + "--preview " + d + "/x.png", "named as two outputs");
  expect(g + "--trace " + d + "/y --save-tokens " + d + "/y", "named as two outputs");
  expect(g + "-n 1 --grid 1x600", "over the 16384-pixel limit");
  expect(g + "--preview /proc/nothing", "--preview /proc/nothing");
  expect(g + "--save-tokens /proc/nothing/t.safetensors", "/proc/nothing");
  expect(g + "--trace /proc/nothing/t.json", "/proc/nothing");
  expect("tokenize decode -m " + model() + " -i " + d + "/none -o " + d + "/x.jpg", "");
  expect("generate -o x.png -m \"$(printf 'no\\nsuch')\"", "no\\nsuch: is no model folder");
  expect("info \"$(printf 'caf\\351')\"", "argument 2 (caf?) is not valid UTF-8");
  for (const auto& entry : fs::directory_iterator(dir.path()))  // the probes of outputs are gone too
    EXPECT_TRUE(entry.path().filename() == "stdout" || entry.path().filename() == "stderr") << entry.path();
}

TEST(Usage, NumbersAreDecimal) {
  const TempDir dir;
  const auto made = adanat_run(dir, "generate --quiet --json -m " + model() + " --steps 1 -s 010 -n +2 -o " +
                                        dir.path().string() + "/x.png");
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(Json::parse(made.out).at("seed"), 10);
  EXPECT_EQ(Json::parse(made.out).at("count"), 2);
}

TEST(Usage, AFullDiskIsStatusOne) {
  const TempDir dir;
  const auto listed =
      adanat_run(dir, "--version; (" + testing::binary() + " info " + model() + " >/dev/full)");
  EXPECT_TRUE(is_one_line_error(listed, 1, "standard output cannot be written"));
  EXPECT_TRUE(is_one_line_error(
      adanat_run(dir, "generate --quiet -m " + model() + " --steps 1 --trace /dev/full -o " +
                          dir.path().string() + "/x.png"),
      1, "no space left"));
}

TEST(Usage, AConfigThatContradictsItsWeightsIsExplained) {
  const TempDir dir;
  fs::copy(model(), dir / "m");
  Json j = read_json_file((dir / "m/config.json").string());
  j["generator"]["width"] = 65536;
  j["generator"]["heads"] = 1;
  std::ofstream(dir / "m/config.json") << j;
  EXPECT_TRUE(is_one_line_error(
      adanat_run(dir, "generate -m " + (dir / "m").string() + " -o " + (dir / "x.png").string()), 2,
      "generator.safetensors: "));
}

// The dynamic loader is /proc/self/exe then, which must not be started in the program's place.
TEST(Usage, RunsAsAnArgumentOfTheDynamicLoader) {
  const fs::path loader = "/lib64/ld-linux-x86-64.so.2";
  if (!fs::exists(loader)) GTEST_SKIP() << "skipped: no " << loader;
  const TempDir dir;
  const std::string out = (dir / "out").string();
  const std::string command = "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT " + loader.string() + " " +
                              testing::binary() + " --version >" + out;
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_TRUE(read_file(out).starts_with("adanat ")) << read_file(out);
}

TEST(Usage, FlagsWithoutEffectAreRefused) {
  const TempDir dir;
  const std::string generate = "generate -m " + model() + " -o " + (dir / "x.png").string() + " -n 1 ";
  EXPECT_TRUE(is_one_line_error(adanat_run(dir, generate + "--schedule halton --temperature 2"), 2,
                                "--temperature: schedule halton"));
  const auto run = adanat_run(dir, generate + "--schedule halton --steps 2 --sampling-temperature 0.9");
  EXPECT_EQ(run.status, 0) << run.err;
  const std::string told = adanat_run(dir, "info --json " + (dir / "x.png").string()).out;
  EXPECT_NE(told.find("sampling_temperature\\\":"), std::string::npos) << told;
  EXPECT_EQ(told.find("\\\"temperature\\\":"), std::string::npos) << told;
}

TEST(Usage, SearchNamesItsFlags) {
  const TempDir dir;
  const std::string search = "search schedule -m " + model() + " --reference x -o x.json ";
  EXPECT_TRUE(is_one_line_error(adanat_run(dir, search + "--count 1"), 2, "--count must be"));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir, search + "--final-count 1"), 2, "--final-count must be"));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir, search + "--candidates 3 --population 4"), 2,
                                "--population must be 1..--candidates"));
}

}  // namespace
}  // namespace adanat
