// adanat eval as a user runs it, with the bundled model and its measure network.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "core/io/atomic_file.h"
#include "e2e/eval_fixture.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::adanat_run;
using testing::is_one_line_error;

class Eval : public testing::EvalFixture {};

TEST_F(Eval, FoldersHaveTheKeysOfTheManual) {
  write_set("a", 30, 0);
  write_set("b", 25, 99);
  const Json j = run(given("a", "b") + "--metrics fd,kid,is,pr --kid-subset-size 10 --kid-subsets 4");
  EXPECT_EQ(j.at("protocol"), "classifier");
  EXPECT_EQ(j.at("count"), 30);
  EXPECT_EQ(j.at("reference_count"), 25);
  EXPECT_EQ(j.at("weights_sha256").get<std::string>().size(), 64u);
  EXPECT_TRUE(j.at("seed").is_null());
  for (const char* name : {"fd", "kd", "is", "precision", "recall", "f_score", "density", "coverage"})
    EXPECT_TRUE(j.at("metrics").at(name).at("value").is_number()) << name;
  EXPECT_TRUE(j.at("metrics").at("kd").at("std").is_number());
  EXPECT_FALSE(j.at("metrics").contains("fid"));
  EXPECT_EQ(j.at("protocol_settings").at("kid_subset_size"), 10);
  const Json self = run(given("a", "a"));
  EXPECT_LT(self.at("metrics").at("fd").at("value").get<double>(), 1e-3);
}

// What is reconstructed counts, not what it is compared with.
TEST_F(Eval, ReconstructionsOfOneSetAgainstStatisticsOfAnother) {
  write_set("a", 12, 0);
  write_set("b", 12, 50);
  run("eval --quiet --weights " + model() + "/measure.safetensors --images " + path("b") + " --save-stats " +
      path("b.npz"));
  const std::string tokenizer = "eval --quiet --tokenizer -m " + model() + " --images " + path("a");
  EXPECT_TRUE(
      run(tokenizer + " --reference " + path("b.npz") + " --metrics fd,is").at("metrics").contains("is"));
  EXPECT_TRUE(run(tokenizer + " --metrics is").at("metrics").contains("is"));
}

// Without a model folder and without weights: the measure network that comes with the program.
TEST_F(Eval, TheBundledNetworkMeasures) {
  write_set("a", 12, 0);
  write_set("b", 12, 50);
  const auto outcome = adanat_run(dir_, "eval --images " + path("a") + " --reference " + path("b"));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("models/signs/measure.safetensors"), std::string::npos) << outcome.err;
  EXPECT_EQ(Json::parse(outcome.out).at("protocol"), "classifier");
}

TEST_F(Eval, AFolderWithoutAMeasureNetworkIsMeasuredByTheBundledOne) {
  write_set("b", 12, 50);
  fs::create_directory(path("m"));
  for (const char* file : {"config.json", "tokenizer.safetensors", "generator.safetensors"})
    fs::copy_file(fs::path(model()) / file, fs::path(path("m")) / file);
  const std::string flags = " --count 4 --steps 1 --schedule cosine --cache none --reference " + path("b");
  const auto without = adanat_run(dir_, "eval -m " + path("m") + flags);
  ASSERT_EQ(without.status, 0) << without.err;
  EXPECT_NE(without.err.find("m holds no measure network: measured by "), std::string::npos) << without.err;
  EXPECT_EQ(value(Json::parse(without.out), "fd"), value(run("eval --quiet -m " + model() + flags), "fd"));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, "eval -m " + path("none") + flags), 2, "none"));
  // A damaged one gives no figure.
  std::string bytes = read_file(fs::path(model()) / "measure.safetensors");
  bytes[bytes.size() / 2] ^= 1;
  write_file_atomic(fs::path(path("m")) / "measure.safetensors", bytes);
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, "eval -m " + path("m") + flags), 2,
                                "measure.safetensors: has hash"));
}

TEST_F(Eval, StatisticsGiveTheFiguresOfTheirImages) {
  write_set("a", 30, 0);
  write_set("b", 25, 99);
  const Json images = run(given("a", "b"));
  run("eval --quiet --weights " + model() + "/measure.safetensors --images " + path("b") + " --save-stats " +
      path("b.npz"));
  const Json statistics = run(given("a", "b.npz"));
  EXPECT_EQ(statistics.at("metrics"), images.at("metrics"));
  EXPECT_EQ(statistics.at("reference_count"), 25);
  EXPECT_EQ(statistics.at("reference_sha256").get<std::string>().size(), 64u);
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b.npz") + "--metrics pr"), 2, "b.npz"));
}

TEST_F(Eval, StatisticsOfAnotherNetworkAreRefusedBeforeTheWork) {
  write_set("b", 12, 50);
  run("eval --quiet --weights " + (testing::source_dir() / "models/mnist/measure.safetensors").string() +
      " --images " + path("b") + " --save-stats " + path("b.npz"));
  const auto early =
      adanat_run(dir_, "eval -m " + model() + " --count 8 --cache none --reference " + path("b.npz"));
  EXPECT_TRUE(is_one_line_error(early, 2, "b.npz: mu has 96 dimensions, the network has 128"));
  EXPECT_EQ(early.err.find("generate (seed"), std::string::npos) << early.err;
}

TEST_F(Eval, BadInputIsOneLine) {
  write_set("a", 12, 0);
  write_set("b", 12, 50);
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b") + "--metrics kd"), 2, "1000"));
  // Found out before anything is made.
  const auto early = adanat_run(
      dir_, "eval -m " + model() + " --count 900 --metrics kd --cache none --reference " + path("b"));
  EXPECT_TRUE(is_one_line_error(early, 2, "the generated set has 900"));
  EXPECT_EQ(early.err.find("generate (seed"), std::string::npos) << early.err;
  EXPECT_TRUE(
      is_one_line_error(adanat_run(dir_, given("a", "b") + "--protocol nonsense"), 2, "torch-fidelity"));
  EXPECT_TRUE(
      is_one_line_error(adanat_run(dir_, given("a", "b") + "--protocol clean"), 2, "Inception weights"));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b") + "--metrics sfid"), 2, "sfid"));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b") + "--plot x.png"), 2, "--compare"));
  EXPECT_TRUE(is_one_line_error(
      adanat_run(dir_, "eval --images " + path("a") + " --protocol adm --weights x.pth"), 2, "--reference"));
  EXPECT_TRUE(
      is_one_line_error(adanat_run(dir_, given("a", "b") + "--save-stats " + path("none/x.npz")), 2, "none"));
  write_file_atomic(dir_ / "a" / "i1005.png", "broken");
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b")), 2, "i1005.png"));
  EXPECT_NE(adanat_run(dir_, given("a", "b")).err.find("(--skip-broken leaves such images out)"),
            std::string::npos);
  const Json j = run(given("a", "b") + "--skip-broken");
  EXPECT_EQ(j.at("count"), 11);
  EXPECT_EQ(j.at("skipped"), 1);
}

TEST_F(Eval, OnlyWhatIsMeantIsMeasured) {
  write_set("a", 12, 0);
  write_set("b", 12, 50);
  // A flag without effect, a metric without its reference, one image: refused, not ignored.
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b") + "--steps 4"), 2, "--steps"));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b") + "--labels random"), 2, "--labels"));
  const std::string alone = "eval --quiet --weights " + model() + "/measure.safetensors --images ";
  EXPECT_TRUE(is_one_line_error(
      adanat_run(dir_, alone + path("a") + " --metrics pr --save-stats " + path("s.npz")), 2, "--reference"));
  write_set("one", 1, 0);
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, alone + path("one") + " --save-stats " + path("s.npz")), 2,
                                "2 images"));
  // Statistics to keep need no reference, also where the metric is named.
  EXPECT_EQ(adanat_run(dir_, alone + path("a") + " --metrics fd --save-stats " + path("s.npz")).status, 0);
  EXPECT_TRUE(
      is_one_line_error(adanat_run(dir_, "eval --compare a.json b.json --steps 4"), 2, "--steps does not"));
  // The score needs no reference.
  EXPECT_GE(run(alone + path("a") + " --metrics is").at("metrics").at("is").at("value").get<double>(), 1);
  // The classes of a folder of images are not the model's: in turn, and the result says so.
  const std::string generate =
      "eval -m " + model() + " --count 4 --steps 1 --cache none --reference " + path("b");
  const auto turn = adanat_run(dir_, generate);
  EXPECT_NE(turn.err.find("classes are taken in turn"), std::string::npos) << turn.err;
  EXPECT_EQ(Json::parse(turn.out).at("labels"), "balanced");
  EXPECT_TRUE(
      is_one_line_error(adanat_run(dir_, generate + " --quiet --labels reference"), 2, "--labels reference"));
  // Images of several sizes are no set, also under the classifier; a broken first image is skipped like
  // others.
  write_file_atomic(dir_ / "b" / "i0000.png", "broken");
  EXPECT_EQ(run(given("a", "b") + "--skip-broken").at("skipped"), 1);
  write_png(dir_ / "a" / "z.png", testing::test_image(20, 30, 1));
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, given("a", "b") + "--skip-broken"), 2, "z.png"));
}

// A run that was stopped in the middle goes on from its features and ends with the digits of an unbroken one.
TEST_F(Eval, AStoppedRunGoesOnToTheSameDigits) {
  write_set("b", 30, 99);
  const std::string command = "eval --quiet -m " + model() + " --count 64 -b 4 --steps 3 --reference " +
                              path("b") + " --metrics fd,is,pr --labels random --cache ";
  const Json whole = run(command + path("cache-a"));
  const std::string stopped = testing::binary() + " " + command + path("cache-b") + " >/dev/null 2>&1";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", ("exec " + stopped).c_str(), nullptr);
    _exit(127);
  }
  // The entry appears when generating begins; half a second later some batches are done and many are not.
  for (int i = 0; i < 1200 && !fs::exists(dir_ / "cache-b"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  kill(child, SIGTERM);
  int raw = 0;
  ASSERT_EQ(waitpid(child, &raw, 0), child);
  EXPECT_EQ(WIFEXITED(raw) ? WEXITSTATUS(raw) : -1, 143) << "the run was over before it could be stopped";
  Json resumed = run(command + path("cache-b"));
  EXPECT_EQ(resumed.dump(), whole.dump());
  // And a third time wholly from the cache, for another metric.
  const auto again =
      adanat_run(dir_, "eval -m " + model() + " --count 64 -b 4 --steps 3 --reference " + path("b") +
                           " --metrics fd --labels random --cache " + path("cache-b"));
  EXPECT_NE(again.err.find("features of 64 images come from the cache"), std::string::npos) << again.err;
  EXPECT_EQ(Json::parse(again.out).at("metrics").at("fd"), whole.at("metrics").at("fd"));
}

TEST_F(Eval, RepeatsCompareAndPlot) {
  write_set("b", 20, 99);
  const std::string command =
      "eval --quiet -m " + model() + " --count 12 --reference " + path("b") + " --cache none ";
  const Json two = run(command + "--steps 2 --repeats 2");
  const Json& fd = two.at("metrics").at("fd");
  ASSERT_EQ(fd.at("values").size(), 2u);
  EXPECT_NEAR(fd.at("value").get<double>(),
              (fd.at("values")[0].get<double>() + fd.at("values")[1].get<double>()) / 2, 1e-12);
  write_file_atomic(dir_ / "2.json", two.dump());
  write_file_atomic(dir_ / "1.json", run(command + "--steps 1").dump());
  write_file_atomic(dir_ / "other.json", run(given("b", "b")).dump());
  const auto table = adanat_run(dir_, "eval --compare " + path("2.json") + " " + path("1.json") + " " +
                                          path("other.json") + " --plot " + path("x.png"));
  ASSERT_EQ(table.status, 0) << table.err;
  EXPECT_NE(table.out.find("NO: other count"), std::string::npos) << table.out;
  EXPECT_NE(table.err.find("not in the plot"), std::string::npos);
  EXPECT_EQ(read_image(dir_ / "x.png").width, 960);
  EXPECT_TRUE(is_one_line_error(adanat_run(dir_, "eval --compare " + path("b/i1000.png")), 2, "i1000.png"));
}

}  // namespace
}  // namespace adanat
