// What the tests of adanat eval share: folders of small images, the bundled model, results as JSON.
#pragma once
#include "core/base/config.h"
#include "core/io/image.h"
#include "e2e/program.h"
#include "io/bytes.h"

namespace adanat::testing {

class EvalFixture : public ::testing::Test {
 protected:
  void write_set(const std::string& name, int count, int tint, int side = 32) {
    std::filesystem::create_directories(dir_ / name);
    for (int i = 0; i < count; ++i)
      write_png(dir_ / name / cat("i", 1000 + i, ".png"), test_image(side, side, uint8_t(i * 13 + tint)));
  }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::string model() const { return source_dir().string() + "/models/signs"; }
  // Images of one folder against another's, by the measure network of the bundled model.
  std::string given(const std::string& a, const std::string& b) const {
    return "eval --quiet --weights " + model() + "/measure.safetensors --images " + path(a) +
           " --reference " + path(b) + " ";
  }
  Json run(const std::string& arguments) {
    const auto outcome = adanat_run(dir_, arguments);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return outcome.status == 0 ? Json::parse(outcome.out) : Json();
  }
  static double value(const Json& result, const std::string& metric) {
    return result.at("metrics").at(metric).at("value").get<double>();
  }
  TempDir dir_;
};

}  // namespace adanat::testing
