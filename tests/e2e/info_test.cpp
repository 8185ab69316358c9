// `adanat info` on files of tensors, friendly and hostile.
#include <gtest/gtest.h>

#include <fstream>
#include <span>

#include "core/base/config.h"
#include "core/io/image.h"
#include "core/io/npy.h"
#include "core/io/safetensors.h"
#include "core/io/zip.h"
#include "e2e/program.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::adanat_run;
using testing::TempDir;

fs::path checkpoint(const std::string& name) {
  return testing::golden_dir() / "checkpoints" / name;
}

TEST(Info, ListsAPyTorchFile) {
  const TempDir dir;
  const auto run = adanat_run(dir, "info --json --verify " + checkpoint("policy_legacy.pth").string());
  ASSERT_EQ(run.status, 0) << run.err;
  const Json j = Json::parse(run.out);
  EXPECT_EQ(j.at("kind"), "PyTorch file (legacy)");
  EXPECT_EQ(j.at("tensors").size(), 14u);
  EXPECT_EQ(j.at("tensors")[0].at("name"), "model.policy.actor.linear3.weight");
  EXPECT_EQ(j.at("tensors")[0].at("dtype"), "F32");
  EXPECT_EQ(j.at("plain").at("global_step"), 1000);
  EXPECT_FALSE(j.contains("refused"));
  const auto text = adanat_run(dir, "info " + checkpoint("policy_legacy.pth").string());
  EXPECT_NE(text.out.find("model.policy.actor.linear3.weight F32 ["), std::string::npos) << text.out;
}

TEST(Info, KnowsSafetensorsByTheirContent) {
  const TempDir dir;
  const fs::path model = testing::source_dir() / "models/mnist";
  fs::copy_file(model / "generator.safetensors", dir / "weights.bin");
  const auto run = adanat_run(dir, "info --json " + (dir / "weights.bin").string());
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out).at("kind"), "safetensors");
}

TEST(Info, KnowsPicturesByTheirContent) {
  const TempDir dir;
  write_png(dir / "a.png", Image{2, 1, std::vector<uint8_t>(6)});
  fs::rename(dir / "a.png", dir / "A.PNG");
  EXPECT_EQ(adanat_run(dir, "info " + (dir / "A.PNG").string()).status, 0);
}

TEST(Info, ListsTheCheckpointsOfARunByAge) {
  const TempDir dir;
  for (const char* name : {"step-1000", "step-500"}) {
    fs::create_directories(dir / "checkpoints" / name);
    fs::copy_file(testing::source_dir() / "models/mnist/policy-T4.safetensors",
                  dir / "checkpoints" / name / "state.safetensors");
  }
  fs::create_directories(dir / "checkpoints" / "step-2000.tmp");  // what a kill left
  std::ofstream(dir / "config.json") << "{}";
  const auto run = adanat_run(dir, "info --json " + dir.path().string());
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out).at("checkpoints"), Json({"step-500", "step-1000"}));
}

TEST(Info, HostileAndDamagedFilesAreSafe) {
  const TempDir dir;
  for (const auto& entry : fs::directory_iterator(checkpoint(""))) {
    if (entry.path().extension() != ".pth") continue;
    const std::string file = fs::absolute(entry.path()).string();
    const auto run = adanat_run(dir, "info --json " + file);
    EXPECT_TRUE(run.status == 0 || testing::is_one_line_error(run, 2, entry.path().filename().string()))
        << file << ": " << run.err;
    EXPECT_TRUE(run.status != 0 || Json::accept(run.out)) << file;
    EXPECT_FALSE(fs::exists("pwned"));
  }
  const auto hostile = adanat_run(dir, "info --json " + checkpoint("hostile_zip.pth").string());
  ASSERT_EQ(hostile.status, 0) << hostile.err;
  EXPECT_EQ(Json::parse(hostile.out).at("refused"), Json::array({"posix.system"}));
  EXPECT_EQ(Json::parse(hostile.out).at("tensors")[0].at("name"), "w");
  const auto flipped = adanat_run(dir, "info --verify " + checkpoint("bitflip_zip_data.pth").string());
  EXPECT_TRUE(testing::is_one_line_error(flipped, 2, "CRC"));
}

// What a file says may hold what a terminal obeys.
TEST(Info, ShowsNoControlCharacters) {
  const TempDir dir;
  const float weight[] = {1};
  const std::string name = "a\x1b]0;x\x07\nkind: forged", text = "\x1b[2J\nwidth: 7\xc2\x9b";
  write_safetensors(dir / "a.safetensors", {{name, DType::kF32, {1}, weight, 4}}, {{"note", text}});
  write_png(dir / "a.png", Image{2, 1, {1, 2, 3, 4, 5, 6}}, {{"adanat:prompt", text}});
  for (const char* file : {"a.safetensors", "a.png"}) {
    const auto run = adanat_run(dir, "info " + (dir / file).string());
    ASSERT_EQ(run.status, 0) << run.err;
    for (const char c : run.out) EXPECT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= ' ') << int{c};
    EXPECT_EQ(run.out.find("\nkind: forged"), std::string::npos) << run.out;
    EXPECT_EQ(run.out.find("\nwidth: 7"), std::string::npos) << run.out;
    EXPECT_EQ(run.out.find("\xc2\x9b"), std::string::npos) << run.out;
  }
}

TEST(Info, AKeyMayBeCalledTensors) {
  const TempDir dir;
  const float weight[] = {1};
  write_safetensors(dir / "a.safetensors", {{"w", DType::kF32, {1}, weight, 4}}, {{"tensors", "many"}});
  const auto run = adanat_run(dir, "info " + (dir / "a.safetensors").string());
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_NE(run.out.find("  tensors: many\n"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("  w F32 [1]\n"), std::string::npos) << run.out;
}

// A file of names and numbers by the hundred thousand: listed as far as there is memory for, and soon.
TEST(Info, ManyPlainValues) {
  const TempDir dir;
  std::string pickle = "\x80\x02}(";
  for (int32_t i = 0; i < 200000; ++i)
    pickle +=
        "J" + std::string(reinterpret_cast<const char*>(&i), sizeof i) + "G\x7f\xf8" + std::string(6, '\0');
  pickle += "u.";
  ZipWriter writer(dir / "a.pth");
  const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(pickle))};
  writer.add("a/data.pkl", pieces, false);
  writer.commit();
  const auto run = adanat_run(dir, "info --json " + (dir / "a.pth").string());
  ASSERT_EQ(run.status, 0) << run.err;
  const Json j = Json::parse(run.out);
  EXPECT_EQ(j.at("plain").size() + j.at("plain_left_out").get<size_t>(), 200000u);
  EXPECT_GT(j.at("plain").size(), 50000u);
  EXPECT_EQ(j.at("plain").at("7"), "nan");
}

TEST(Info, DecodesAPictureOnlyToVerifyIt) {
  const TempDir dir;
  const std::string whole = encode_png(Image{2, 1, {1, 2, 3, 4, 5, 6}});
  // Pixels of another picture than its header says.
  std::string wrong = encode_png(Image{2, 2, std::vector<uint8_t>(12, 9)});
  const size_t at = whole.find("IDAT") - 4, from = wrong.find("IDAT") - 4;
  wrong = wrong.substr(0, from) + whole.substr(at);
  std::ofstream(dir / "a.png", std::ios::binary) << wrong;
  const auto run = adanat_run(dir, "info --json " + (dir / "a.png").string());
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out).at("height"), 2);
  const auto verified = adanat_run(dir, "info --verify " + (dir / "a.png").string());
  EXPECT_TRUE(testing::is_one_line_error(verified, 2, "a.png")) << verified.err;
}

TEST(Info, ListsNumpyFiles) {
  const TempDir dir;
  const double mu[] = {1, 2};
  write_npz(dir / "a.npz", {{"mu", DType::kF64, {2}, mu, 16}}, true);
  write_npy(dir / "a.npy", {"", DType::kF64, {2, 1}, mu, 16});
  const auto run = adanat_run(dir, "info --json --verify " + (dir / "a.npz").string());
  ASSERT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out).at("tensors")[0].dump(), R"({"name":"mu","dtype":"F64","shape":[2]})");
  const auto array = adanat_run(dir, "info --json " + (dir / "a.npy").string());
  ASSERT_EQ(array.status, 0) << array.err;
  EXPECT_EQ(Json::parse(array.out).at("tensors")[0].at("shape"), Json::array({2, 1}));
}

}  // namespace
}  // namespace adanat
