// adanat bench, and int8 on the command line.
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "core/base/config.h"
#include "core/io/image.h"
#include "e2e/program.h"

namespace adanat {
namespace {

using testing::adanat_run;
using testing::is_one_line_error;
using testing::TempDir;
namespace fs = std::filesystem;

std::string model() {
  return (testing::source_dir() / "models/mnist").string();
}

// Sizes that take milliseconds.
std::string tiny(const TempDir& dir) {
  std::ofstream(dir / "tiny.json")
      << R"({"generator":{"width":16,"depth":2,"heads":2,"codes":16,"grid_height":4,"grid_width":4,"classes":3},
             "tokenizer":{"image_size":8,"channels":8,"channel_multipliers":[1,1],"residual_blocks":1,
                          "latent_channels":4,"codes":16}})";
  return (dir / "tiny.json").string();
}

void expect_result(const Json& r) {
  const Json& s = r.at("seconds");
  const double low = s.at("low"), median = s.at("median"), high = s.at("high");
  EXPECT_GT(double(s.at("min")), 0);
  EXPECT_LE(double(s.at("min")), low);
  EXPECT_LE(low, median);
  EXPECT_LE(median, high);
  EXPECT_LE(high, double(s.at("max")));
  EXPECT_GE(double(r.at("processor_seconds")), 0);
  EXPECT_GT(double(r.at("peak_mib")), 1);
  EXPECT_GE(int64_t(r.at("calls")), 1);
}

TEST(Bench, ReportsEveryStage) {
  const TempDir dir;
  const std::string file = (dir / "x.json").string();
  const auto made = adanat_run(
      dir, "bench --quiet --json --shape " + tiny(dir) +
               " --batch-sweep 1,3 --dtype-sweep float32,bfloat16 --steps 2 --repeats 3 -o " + file);
  ASSERT_EQ(made.status, 0) << made.err;
  const Json report = Json::parse(made.out);
  EXPECT_EQ(report, read_json_file(file));
  EXPECT_EQ(report.at("schedule"), "cosine");
  EXPECT_EQ(report.at("steps"), 2);
  EXPECT_EQ(report.at("gemm").size(), 2u);
  EXPECT_EQ(report.at("memory").size(), 4u);
  for (const Json& m : report["memory"]) EXPECT_GT(double(m.at("peak_mib")), 1);
  std::multiset<std::string> cases;
  for (const Json& r : report.at("results")) {
    expect_result(r);
    const int64_t batch = r.at("batch");
    const double seconds = r.at("seconds").at("median");
    EXPECT_DOUBLE_EQ(double(r.at("images_per_second")), double(batch) / seconds);
    if (r.at("stage") != "policy") {
      EXPECT_DOUBLE_EQ(double(r.at("tokens_per_second")), double(batch) * 16 / seconds);
    }
    EXPECT_EQ(r.contains("gemm_share"), r.at("stage") == "transformer");
    cases.insert(cat(r.at("stage").get<std::string>(), " ", r.at("dtype").get<std::string>(), " ", batch));
  }
  std::multiset<std::string> wanted;
  for (const char* stage : {"transformer", "decode_step", "policy", "encode", "decode", "generate"})
    for (const char* dtype : {"float32", "bfloat16"})
      for (const int batch : {1, 3}) wanted.insert(cat(stage, " ", dtype, " ", batch));
  EXPECT_EQ(cases, wanted);
}

TEST(Bench, TimesAFolderAndItsLoading) {
  const TempDir dir;
  const auto made = adanat_run(
      dir, "bench --quiet -m " + model() + " --stages load,generate --repeats 2 --steps 1 --warmup 0");
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_NE(made.out.find("\nload "), std::string::npos) << made.out;
  EXPECT_NE(made.out.find("\ngenerate "), std::string::npos) << made.out;
  EXPECT_EQ(made.out.find("\ntransformer "), std::string::npos) << made.out;
}

TEST(Bench, ComparesWithAnEarlierRun) {
  const TempDir dir;
  const std::string file = (dir / "old.json").string(),
                    base = "bench --quiet --stages decode,policy --repeats 2 --shape " + tiny(dir);
  ASSERT_EQ(adanat_run(dir, base + " -o " + file).status, 0);
  Json old = read_json_file(file);
  // An earlier machine on which decoding took a thousand times as long, and the policy the thousandth part.
  for (Json& r : old["results"])
    for (Json& value : r["seconds"]) value = double(value) * (r["stage"] == "decode" ? 1000 : 0.001);
  old["threads"] = 99;
  std::ofstream(dir / "old.json") << old;
  const auto table = adanat_run(dir, base + " --compare " + file);
  ASSERT_EQ(table.status, 0) << table.err;
  EXPECT_NE(table.out.find("not the same in both: threads\n"), std::string::npos) << table.out;
  const auto made = adanat_run(dir, base + " --json --compare " + file);
  ASSERT_EQ(made.status, 0) << made.err;
  const Json lines = Json::parse(made.out).at("comparison").at("lines");
  ASSERT_EQ(lines.size(), 2u);
  for (const Json& line : lines) {
    const bool decode = line.at("stage") == "decode";
    EXPECT_EQ(line.at("verdict"), decode ? "faster" : "slower") << line;
    EXPECT_EQ(double(line.at("speedup")), double(line.at("old_seconds")) / double(line.at("new_seconds")));
    EXPECT_LE(double(line.at("low")), double(line.at("speedup")));
    EXPECT_GE(double(line.at("high")), double(line.at("speedup")));
  }
}

TEST(Bench, TimesTraining) {
  const TempDir dir;
  const auto made = adanat_run(dir, "bench --quiet --json --train --shape " + tiny(dir) +
                                        " --batch-sweep 4 --dtype-sweep float32,bfloat16 --repeats 2");
  ASSERT_EQ(made.status, 0) << made.err;
  const Json results = Json::parse(made.out).at("results");
  ASSERT_EQ(results.size(), 2u);
  for (const Json& r : results) {
    expect_result(r);
    EXPECT_EQ(r.at("stage"), "train");
    EXPECT_GT(double(r.at("gemm_share")), 0);
    EXPECT_DOUBLE_EQ(double(r.at("tokens_per_second")), 64 / double(r.at("seconds").at("median")));
  }
}

TEST(Bench, WrongUseIsOneLine) {
  const TempDir dir;
  const std::string shape = "bench --shape " + tiny(dir) + " ";
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    EXPECT_TRUE(is_one_line_error(adanat_run(dir, arguments), 2, part)) << arguments;
  };
  expect("bench", "give either --model DIR or --shape");
  expect(shape + "-m " + model(), "give either --model DIR or --shape");
  expect("bench --shape giant", "--shape giant: must be adanat-l, signs, or a FILE.json");
  expect("bench -m " + (dir / "none").string(), "none: is no model folder");
  expect(shape + "--batch-sweep 1,,2", "--batch-sweep 1,,2: has an empty item");
  expect(shape + "--batch-sweep 0", "--batch-sweep 0: \"0\" must be a number from 1 to 65536");
  expect(shape + "--batch-sweep 8x", "\"8x\" must be a number");
  expect(shape + "--dtype-sweep float32,float8", "--dtype float8: must be auto, float32, bfloat16 or int8");
  expect(shape + "--dtype-sweep float32 --dtype bfloat16", "--dtype-sweep: is a list of --dtype");
  expect(shape + "--stages generate,cook",
         "--stages generate,cook: \"cook\" must be one of load, transformer");
  expect(shape + "--repeats 0", "--repeats 0: must be 1 to 100000");
  expect(shape + "--steps 0", "--steps 0: must be 1 to 1000");
  expect(shape + "--schedule sine", "--schedule sine");
  expect(shape + "--train --steps 4", "--train: updates know no --steps");
  expect(shape + "-o " + (dir / "no/x.json").string(), "no/x.json");
  std::ofstream(dir / "eval.json") << R"({"protocol":"adm"})";
  expect(shape + "--compare " + (dir / "eval.json").string(), "eval.json: is no report of adanat bench");
  std::ofstream(dir / "zero.json")
      << R"({"results":[{"stage":"decode","dtype":"float32","batch":1,"seconds":{"median":0,"low":0,"high":0}}]})";
  expect(shape + "--compare " + (dir / "zero.json").string(), "results[0].seconds");
  std::ofstream(dir / "odd.json")
      << R"({"generator":{"codes":16,"grid_height":3,"grid_width":3,"width":16,"heads":2},
      "tokenizer":{"image_size":8,"channels":8,"channel_multipliers":[1,1],"codes":16}})";
  expect("bench --shape " + (dir / "odd.json").string(),
         "the generator has 16 codes on 3x3, its tokenizer 16 on 4x4");
  std::ofstream(dir / "half.json") << R"({"generator":{}})";
  expect("bench --shape " + (dir / "half.json").string(), "half.json: lacks \"tokenizer\"");
}

TEST(Int8, MakesImages) {
  const TempDir dir;
  const std::string out = (dir / "x.png").string();
  const auto made =
      adanat_run(dir, "generate --quiet --dtype int8 -n 4 --steps 2 -m " + model() + " -o " + out);
  if (made.status == 2) {  // a CPU without int8 products says so
    EXPECT_TRUE(is_one_line_error(made, 2, "--dtype int8: this CPU has no int8 products"));
    return;
  }
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(read_image(out).width, 2 * 28 + 2);
  const auto timed = adanat_run(dir, "bench --quiet --json --shape " + tiny(dir) +
                                         " --stages transformer --dtype-sweep int8 --repeats 2");
  ASSERT_EQ(timed.status, 0) << timed.err;
  EXPECT_EQ(Json::parse(timed.out).at("results")[0].at("dtype"), "int8");
}

}  // namespace
}  // namespace adanat
