// The model folders that come with the program: whole, verified, able to draw every class.
#include <gtest/gtest.h>

#include <set>

#include "core/base/config.h"
#include "core/base/sha256.h"
#include "core/io/image.h"
#include "e2e/program.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

class Bundled : public ::testing::TestWithParam<std::string> {
 protected:
  std::string folder() const { return testing::source_dir().string() + "/models/" + GetParam(); }
};

TEST_P(Bundled, IsWholeAndDrawsEveryClass) {
  const testing::TempDir dir;
  const auto info = testing::adanat_run(dir, "info --verify --json " + folder());
  ASSERT_EQ(info.status, 0) << info.err;
  const Json j = Json::parse(info.out);
  const size_t classes = j.at("classes").size();
  ASSERT_GE(classes, 2u);
  const auto made =
      testing::adanat_run(dir, "generate --quiet -m " + folder() + " -o " + dir.path().string() +
                                   "/out/ --steps 4 -n " + std::to_string(classes));
  ASSERT_EQ(made.status, 0) << made.err;
  std::set<std::vector<uint8_t>> distinct;
  for (const auto& entry : fs::directory_iterator(dir / "out")) {
    const Image image = read_image(entry.path());
    EXPECT_EQ(image.width, j.at("image_size"));
    distinct.insert(image.rgb);
  }
  EXPECT_EQ(distinct.size(), classes);
  EXPECT_TRUE(fs::exists(folder() + "/card.md"));
}

TEST_P(Bundled, MeasureIsNotWhatTrainingSaw) {
  const Json j = Json::parse(testing::adanat_run(testing::TempDir(), "info --json " + folder()).out);
  EXPECT_NE(j.at("files").at("features.safetensors"), j.at("files").at("measure.safetensors"));
  EXPECT_NE(fs::file_size(folder() + "/features.safetensors"),
            fs::file_size(folder() + "/measure.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(Models, Bundled, ::testing::Values("mnist", "signs"),
                         [](const auto& info) { return info.param; });

TEST(BundledModels, StayUnderThirtyMegabytes) {
  uintmax_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(testing::source_dir().string() + "/models"))
    if (entry.is_regular_file()) bytes += entry.file_size();
  EXPECT_LT(bytes, 30'000'000u);
}

}  // namespace
}  // namespace adanat
