// Editing through the real binary, on the bundled signs: 32x32 pixels, 8x8 tokens of 4x4 pixels.
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/base/config.h"
#include "core/base/sha256.h"
#include "core/io/image.h"
#include "core/nn/module_state.h"
#include "e2e/program.h"
#include "policy/policy_schedule.h"

namespace adanat {
namespace {

using testing::adanat_run;
using testing::is_one_line_error;
using testing::TempDir;
namespace fs = std::filesystem;

constexpr int kSide = 32, kCell = 4, kGrid = 8;

std::string model() {
  return (testing::source_dir() / "models/signs").string();
}

// Smooth, but no sign: what the tokenizer gives back differs from it.
Image waves(int width, int height) {
  Image out{width, height, std::vector<uint8_t>(size_t(width * height * 3))};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c)
        out.rgb[size_t((y * width + x) * 3 + c)] =
            uint8_t(40 + (x * (c + 1) * 224 / width + y * (3 - c) * 224 / height) % 200);
  return out;
}

// White where `on(x, y)`.
template <class On>
void write_mask(const fs::path& file, int width, int height, On on) {
  Image mask{width, height, std::vector<uint8_t>(size_t(width * height * 3))};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      std::fill_n(mask.rgb.begin() + (y * width + x) * 3, 3, uint8_t(on(x, y) ? 255 : 0));
  write_png(file, mask);
}

class Edit : public ::testing::Test {
 protected:
  Edit() { write_picture("in", kSide, kSide); }
  // The only picture of a folder.
  void write_picture(const std::string& folder, int width, int height) {
    fs::create_directories(dir_ / folder);
    write_png(dir_ / (folder + "/a.png"), waves(width, height));
  }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  // `edit` of the picture with few steps; the rest of the command line is given.
  std::string edit(const std::string& arguments) const {
    return "edit --quiet --steps 3 -m " + model() + " -i " + path("in/a.png") + " " + arguments;
  }
  void expect_ok(const std::string& arguments) {
    const auto outcome = adanat_run(dir_, arguments);
    ASSERT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
  }
  // Tokens of the only picture in a folder, as `tokenize encode` has them.
  at::Tensor encoded(const std::string& folder) {
    expect_ok("tokenize encode --quiet -m " + model() + " --data " + path(folder) + " -o " +
              path("encoded.safetensors"));
    return read_tensors(path("encoded.safetensors")).at("tokens")[0].to(at::kLong);
  }
  TempDir dir_;
};

TEST_F(Edit, KeepsTheTokensOutsideTheBox) {
  const at::Tensor own = encoded("in");
  expect_ok(edit("--box 9,6,7,8 -c stop,yield -n 3 -o " + path("out/") + " --preview " + path("preview") +
                 " --save-tokens " + path("t.safetensors") + " --trace " + path("t.json")));
  const TensorMap saved = read_tensors(path("t.safetensors"));
  const at::Tensor tokens = saved.at("tokens"), steps = saved.at("steps");
  ASSERT_EQ(tokens.sizes(), (std::vector<int64_t>{3, 64}));
  ASSERT_EQ(steps.sizes(), (std::vector<int64_t>{3, 3, 64}));
  bool changed = false;
  for (int row = 0; row < kGrid; ++row)
    for (int column = 0; column < kGrid; ++column) {
      const int64_t p = row * kGrid + column, kept = own[p].item<int64_t>();
      const bool anew = column >= 2 && column <= 3 && row >= 1 && row <= 3;  // x 9..15, y 6..13
      for (int64_t i = 0; i < 3; ++i) {
        if (!anew) {
          EXPECT_EQ(tokens[i][p].item<int64_t>(), kept) << p;
          for (int64_t t = 0; t < 3; ++t) EXPECT_EQ(steps[t][i][p].item<int64_t>(), kept) << p;
        }
        changed = changed || tokens[i][p].item<int64_t>() != kept;
      }
    }
  EXPECT_TRUE(changed);
  // 6 of 64 tokens are open: the schedule uses all its steps for them.
  const Json trace = read_json_file(path("t.json"));
  EXPECT_EQ(trace["samples"][1]["class"], 42);
  const std::vector<int64_t> revealed = trace["samples"][1]["revealed"];
  EXPECT_GE(revealed[0], 58);
  EXPECT_LT(revealed[0], revealed[1]);
  EXPECT_EQ(revealed[2], 64);
  expect_ok("tokenize decode --quiet -m " + model() + " -i " + path("t.safetensors") + " -o " +
            path("decoded"));
  EXPECT_EQ(read_image(path("decoded/00002.png")).rgb, read_image(path("out/00002.png")).rgb);
  EXPECT_EQ(read_image(path("preview/00002-step03.png")).rgb, read_image(path("out/00002.png")).rgb);
  EXPECT_TRUE(fs::exists(path("preview/00002-step01.png")));
}

TEST_F(Edit, PasteBackKeepsThePixels) {
  const Image given = read_image(path("in/a.png"));
  const auto count_equal = [&](const Image& image, bool inside) {
    int equal = 0;
    for (int y = 0; y < kSide; ++y)
      for (int x = 0; x < kSide; ++x) {
        const bool in = x >= 9 && x < 16 && y >= 6 && y < 14;
        const size_t at = size_t((y * kSide + x) * 3);
        equal += in == inside && std::equal(&given.rgb[at], &given.rgb[at] + 3, &image.rgb[at]);
      }
    return equal;
  };
  expect_ok(edit("--box 9,6,7,8 -c stop -o " + path("plain.png")));
  expect_ok(
      edit("--box 9,6,7,8 -c stop --paste-back --preview " + path("preview") + " -o " + path("pasted.png")));
  const Image plain = read_image(path("plain.png")), pasted = read_image(path("pasted.png"));
  EXPECT_LT(count_equal(plain, false), 400);  // the tokenizer's way with waves
  EXPECT_EQ(count_equal(pasted, false), kSide * kSide - 56);
  EXPECT_LT(count_equal(pasted, true), 20);
  EXPECT_EQ(count_equal(read_image(path("preview/00000-step01.png")), false), kSide * kSide - 56);
}

TEST_F(Edit, AMaskIsABoxOfAnyShape) {
  expect_ok(edit("--box 9,6,7,8 -c 3 -s 7 -o " + path("box.png")));
  write_mask(dir_ / "mask.png", kSide, kSide,
             [](int x, int y) { return x >= 9 && x < 16 && y >= 6 && y < 14; });
  expect_ok(edit("--mask " + path("mask.png") + " -c 3 -s 7 -o " + path("mask-out.png")));
  EXPECT_EQ(read_image(path("box.png")).rgb, read_image(path("mask-out.png")).rgb);
  // The same region from a smaller mask, grown.
  write_mask(dir_ / "core.png", kSide, kSide,
             [](int x, int y) { return x >= 11 && x < 14 && y >= 8 && y < 12; });
  expect_ok(edit("--mask " + path("core.png") + " --dilate 2 -c 3 -s 7 -o " + path("grown.png")));
  EXPECT_EQ(read_image(path("box.png")).rgb, read_image(path("grown.png")).rgb);
}

TEST_F(Edit, ASeedIsAnEditWhateverTheBatch) {
  const std::string some = "--strength 0.4 -c stop -s 3 ";
  expect_ok(edit(some + "-n 5 -b 5 -o " + path("whole/")));
  expect_ok(edit(some + "-n 5 -b 2 -o " + path("parts/")));
  expect_ok(edit(some + "-n 1 --first-index 4 -o " + path("last/%d.png")));
  for (int i = 0; i < 5; ++i) {
    const std::string name = "0000" + std::to_string(i) + ".png";
    EXPECT_EQ(read_file(path("whole/" + name)), read_file(path("parts/" + name))) << i;
  }
  EXPECT_EQ(read_file(path("whole/00004.png")), read_file(path("last/4.png")));
  EXPECT_NE(read_image(path("whole/00003.png")).rgb, read_image(path("whole/00004.png")).rgb);
  expect_ok(edit("--strength 0.4 -c stop -s 4 -n 1 -o " + path("other.png")));
  EXPECT_NE(read_image(path("whole/00000.png")).rgb, read_image(path("other.png")).rgb);
}

TEST_F(Edit, StrengthIsTheShareThatChanges) {
  const at::Tensor own = encoded("in");
  expect_ok(
      edit("--strength 0.25 -c stop -n 4 -o " + path("out/") + " --save-tokens " + path("t.safetensors")));
  const at::Tensor start_kept = (read_tensors(path("t.safetensors")).at("tokens") == own).sum(1);
  for (int64_t i = 0; i < 4; ++i) EXPECT_GE(start_kept[i].item<int64_t>(), 48) << i;
  EXPECT_LT(start_kept.min().item<int64_t>(), 60);
  // All of it: nothing of the picture is left, and the images are those of generate.
  expect_ok(edit("--strength 1 -c stop -n 2 -o " + path("all/")));
  expect_ok("generate --quiet --steps 3 -m " + model() + " -c stop -n 2 -o " + path("generated/"));
  for (const char* name : {"/00000.png", "/00001.png"})
    EXPECT_EQ(read_image(path("all") + name).rgb, read_image(path("generated") + name).rgb);
}

TEST_F(Edit, NothingToDoIsSaid) {
  write_mask(dir_ / "black.png", kSide, kSide, [](int, int) { return false; });
  const auto outcome =
      adanat_run(dir_, edit("--mask " + path("black.png") + " -c stop --paste-back -o " + path("x.png")));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("warning: nothing is made anew"), std::string::npos) << outcome.err;
  EXPECT_EQ(read_image(path("x.png")).rgb, read_image(path("in/a.png")).rgb);
}

TEST_F(Edit, OtherSizesAreBroughtToTheModels) {
  // Twice as large: pixel 2x is pixel x. One white pixel opens one cell.
  write_picture("large", 64, 64);
  const at::Tensor own = encoded("large");
  write_mask(dir_ / "dot.png", 64, 64, [](int x, int y) { return x == 31 && y == 40; });
  const std::string base = "edit --quiet --steps 2 -m " + model() + " -i " + path("large/a.png");
  expect_ok(base + " --mask " + path("dot.png") + " -c 1 -n 8 -o " + path("l/") + " --save-tokens " +
            path("t.safetensors"));
  const at::Tensor differs = (read_tensors(path("t.safetensors")).at("tokens") != own).any(0);
  for (int64_t p = 0; p < 64; ++p) EXPECT_TRUE(p == 5 * kGrid + 3 || !differs[p].item<bool>()) << p;
  EXPECT_TRUE(differs[5 * kGrid + 3].item<bool>());
  EXPECT_EQ(read_image(path("l/00000.png")).width, kSide);
}

TEST_F(Edit, ExpandingMakesTheBorder) {
  // 16x24 with 16 columns and 8 rows more is a square of 32; the picture keeps 4x6 cells of it.
  write_picture("small", 16, 24);
  const std::string base =
      "edit --steps 3 -m " + model() + " -i " + path("small/a.png") + " -c roundabout -n 2 --paste-back ";
  const auto outcome = adanat_run(dir_, base + "--expand 4,8,12,0 --json -o " + path("e/"));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const Json said = Json::parse(outcome.out).at("edit");
  EXPECT_EQ(said.at("tokens"), 64);
  EXPECT_EQ(said.at("tokens_remade"), 64 - 4 * 6);
  const Image given = read_image(path("small/a.png")), made = read_image(path("e/00001.png"));
  for (int y = 0; y < 24; ++y)
    for (int x = 0; x < 16 * 3; ++x)
      ASSERT_EQ(made.rgb[size_t((y + 8) * kSide * 3 + 4 * 3 + x)], given.rgb[size_t(y * 48 + x)]);
  // What is no square gets its missing sides.
  const auto filled = adanat_run(dir_, base + "--expand 0,0,0,0 --json -o " + path("f/"));
  ASSERT_EQ(filled.status, 0) << filled.err;
  EXPECT_EQ(Json::parse(filled.out).at("edit").at("tokens_remade"),
            2 * 8 * 2);  // 4 of 24 columns, scaled 4/3
}

TEST_F(Edit, SaysHowItWasMade) {
  write_mask(dir_ / "mask.png", kSide, kSide, [](int x, int) { return x < 16; });
  expect_ok(edit("--mask " + path("mask.png") + " --strength 0.5 --dilate 1 --paste-back -c stop -s 9 -o " +
                 path("x.png")));
  const auto text = read_png_text(path("x.png"));
  ASSERT_EQ(text.size(), 1u);
  const std::string& value = text[0].second;
  EXPECT_NE(value.find("stop\nSteps: 3, Sampler: cosine"), std::string::npos) << value;
  EXPECT_NE(value.find(", Denoising strength: 0.5, Version: adanat"), std::string::npos) << value;
  const Json j = Json::parse(value.substr(value.rfind('\n') + 1));
  EXPECT_EQ(j.at("seed"), 9);
  const Json& said = j.at("edit");
  EXPECT_EQ(said.at("image"), "a.png");
  EXPECT_EQ(said.at("image_sha256"), sha256_file(path("in/a.png")));
  EXPECT_EQ(said.at("mask"), "mask.png");
  EXPECT_EQ(said.at("mask_sha256"), sha256_file(path("mask.png")));
  EXPECT_EQ(said.at("strength"), 0.5);
  EXPECT_EQ(said.at("dilate"), 1);
  EXPECT_EQ(said.at("paste_back"), true);
  EXPECT_EQ(said.at("tokens_remade"), 20);  // half of 5 columns of 8 cells
  expect_ok(edit("--box 1,2,3,4 -c stop -o " + path("y.png")));
  EXPECT_NE(read_png_text(path("y.png"))[0].second.find("\"box\":[1,2,3,4]"), std::string::npos);
}

// A policy reads the state it is given; its decisions for an edit are not those for an empty image.
TEST_F(Edit, APolicyDecidesFromTheKnownTokens) {
  PolicySettings settings;
  settings.steps = 3;
  settings.network.input_width = 192, settings.network.codes = 512;
  settings.network.grid_height = settings.network.grid_width = kGrid;
  settings.network.hidden = 16, settings.network.channels = 4, settings.network.mlp = 16;
  PolicyNetwork actor(settings.network, 4);
  testing::fill_procedural(*actor, "actor.");
  write_policy(dir_ / "p.safetensors", settings, module_state(*actor));
  const at::Tensor own = encoded("in");
  const std::string policy = " --schedule adaptive --policy " + path("p.safetensors");
  expect_ok(edit("--box 0,0,32,20 -c stop -n 2 -o " + path("out/") + policy + " --trace " + path("e.json") +
                 " --save-tokens " + path("t.safetensors")));
  expect_ok("generate --quiet -m " + model() + " -c stop -n 2 -o " + path("g/") + policy + " --trace " +
            path("g.json"));
  const at::Tensor tokens = read_tensors(path("t.safetensors")).at("tokens");
  EXPECT_TRUE(at::equal(tokens.narrow(1, 40, 24), own.narrow(0, 40, 24).expand({2, 24})));
  const Json edited = read_json_file(path("e.json")), made = read_json_file(path("g.json"));
  EXPECT_NE(edited["samples"][0]["actions"][0], made["samples"][0]["actions"][0]);
  EXPECT_EQ(edited["samples"][0]["revealed"][2], 64);
  const std::string said = read_png_text(path("out/00000.png"))[0].second;
  EXPECT_NE(said.find("Sampler: adaptive"), std::string::npos);
  EXPECT_NE(said.find("\"guidance\":\"adaptive\""), std::string::npos) << said;
}

TEST_F(Edit, WithoutAClassTheyAreTakenInTurn) {
  const std::string rest = " --box 0,0,20,20 -n 2 --schedule cosine -o ";
  std::string aloud = edit(rest + path("turn/"));
  aloud.erase(aloud.find(" --quiet"), 8);
  const auto outcome = adanat_run(dir_, aloud);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("no --class says what the image is to show: all classes in turn"),
            std::string::npos);
  expect_ok(edit("-c 0,1" + rest + path("named/")));
  for (const char* name : {"00000.png", "00001.png"}) {
    const std::string turn = read_file(path("turn/") + name);
    EXPECT_EQ(turn, read_file(path("named/") + name)) << name;
  }
}

TEST_F(Edit, WrongUseIsOneLineAndStatusTwo) {
  write_mask(dir_ / "small.png", 31, 32, [](int, int) { return true; });
  std::ofstream(path("broken.png")) << read_file(path("in/a.png")).substr(0, 100);
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    EXPECT_TRUE(is_one_line_error(adanat_run(dir_, arguments), 2, part)) << arguments;
  };
  const std::string to = "-c stop -o " + path("x.png") + " ", box = " --box 0,0,8,8 ";
  expect(edit(to), "say what to make anew");
  expect(edit(to + "--dilate 1"), "say what to make anew");
  expect(edit("-c nonsense -o " + path("x.png") + box), "close ones");
  expect(edit(to + "--box 30,0,3,3"), "--box 30,0,3,3: leaves the image, which is 32x32 pixels");
  expect(edit(to + "--box 1,2,3"), "--box 1,2,3: must be X,Y,WIDTH,HEIGHT");
  expect(edit(to + "--expand -1,0,0,0"), "--expand -1,0,0,0: must be LEFT,TOP,RIGHT,BOTTOM");
  expect(edit(to + "--expand 16384,0,0,0"), "over the limit");
  expect(edit(to + "--expand 1,1,1,1" + box), "give one of them");
  expect(edit(to + "--mask " + path("small.png") + box), "give one of them");
  expect(edit(to + "--mask " + path("small.png")), "small.png: is 31x32 pixels, the image is 32x32");
  expect(edit(to + "--mask " + path("broken.png")), "broken.png");
  expect(edit(to + "--mask " + path("none.png")), "none.png");
  expect("edit -m " + model() + " -i " + path("broken.png") + " " + to + box, "broken.png");
  expect("edit -m " + model() + " " + to + box, "--image");
  for (const char* bad : {"1.01", "-0.1", "nan"}) expect(edit(to + "--strength " + bad), "--strength");
  expect(edit(to + "--strength ''"), "--strength");
  expect(edit(to + box + "--dilate -1"), "--dilate");
  expect(edit(to + box + "--schedule adaptive"), "no policy");
  expect(edit(to + box + "--guidance -1"), "guidance");
  EXPECT_FALSE(fs::exists(path("x.png")));
  EXPECT_EQ(adanat_run(dir_, "edit --help").status, 0);
}

}  // namespace
}  // namespace adanat
