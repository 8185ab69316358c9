// What measured images show: classes by the protocol's labels, captions of the reference.
#include "apps/pipeline/conditions.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "io/bytes.h"
#include "pipeline/small_model.h"
#include "support/support.h"

namespace adanat {
namespace {

TEST(GenerationClasses, ByPolicy) {
  ModelConfig config;
  config.generator.emplace();
  config.generator->classes = 10;
  const auto balanced = generation_classes("balanced", 25, 1, config, nullptr);
  EXPECT_EQ(balanced[12], 2);
  const auto random = generation_classes("random", 20000, 1, config, nullptr);
  std::vector<int> counts(10, 0);
  for (const int64_t c : random) ++counts.at(size_t(c));
  for (const int n : counts) EXPECT_NEAR(n, 2000, 5 * std::sqrt(2000 * 0.9));  // five deviations
  EXPECT_EQ(std::vector(random.begin(), random.begin() + 100),
            generation_classes("random", 100, 1, config, nullptr));
  EXPECT_NE(random, generation_classes("random", 20000, 2, config, nullptr));
  EXPECT_EQ(generation_classes("reference", 25, 1, config, nullptr), balanced)
      << "without a reference: in turn";
}

// Three images of class x and one of y.
class Labelled : public ImageDataset {
 public:
  int64_t size() const override { return 4; }
  int64_t label(int64_t i) const override { return i / 3; }
  Image image(int64_t) const override { throw InputError("no images here"); }
  std::string item_name(int64_t i) const override { return std::to_string(i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override { return "labels"; }

 private:
  std::vector<std::string> names_ = {"x", "y"};
};

TEST(GenerationClasses, AsOftenAsInTheReferenceInItsOrder) {
  ModelConfig config;
  config.generator.emplace();
  config.generator->classes = 10;
  const Labelled data;
  EXPECT_EQ(generation_classes("reference", 8, 1, config, &data),
            (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}))
      << "other classes than the model's: in turn";
  config.class_names = data.class_names();
  config.generator->classes = 2;
  EXPECT_EQ(generation_classes("reference", 8, 1, config, &data),
            (std::vector<int64_t>{0, 0, 0, 0, 0, 0, 1, 1}));
}

// Captions "a", "b", ... without images; the given ones cannot be read.
class Captions : public ImageDataset {
 public:
  explicit Captions(int64_t count, std::vector<int64_t> broken = {}) : count_(count), broken_(broken) {}
  int64_t size() const override { return count_; }
  int64_t label(int64_t) const override { return 0; }
  Image image(int64_t) const override { throw InputError("no images here"); }
  bool has_captions() const override { return true; }
  std::string caption(int64_t i) const override {
    if (std::find(broken_.begin(), broken_.end(), i) != broken_.end()) throw InputError("broken");
    return std::string(1, char('a' + i));
  }
  std::string item_name(int64_t i) const override { return std::to_string(i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override { return "captions"; }

 private:
  int64_t count_;
  std::vector<int64_t> broken_;
  std::vector<std::string> names_ = {"all"};
};

class TextConditionsOfAModel : public ::testing::Test {
 protected:
  TextConditionsOfAModel() {
    testing::write_small_text_model(dir_ / "m");
    pipeline_.emplace(Pipeline::open(dir_ / "m", at::kCPU, at::kFloat));
  }
  // What the images of a request show, by what a greedy run makes of them.
  at::Tensor tokens_of(const BatchRequest& request) {
    return pipeline_->generate_tokens(request, *pipeline_->schedule("cosine", 2, {.guidance = 1}));
  }
  testing::TempDir dir_;
  std::optional<Pipeline> pipeline_;
};

TEST_F(TextConditionsOfAModel, AreCaptionsByTheLabels) {
  const Captions data(5);
  const Conditions conditions(*pipeline_, &data, false);
  EXPECT_EQ(conditions.choose("reference", 10, 1), (std::vector<int64_t>{0, 0, 1, 1, 2, 2, 3, 3, 4, 4}));
  EXPECT_EQ(conditions.choose("reference", 5, 1), (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(conditions.choose("balanced", 7, 1), (std::vector<int64_t>{0, 1, 2, 3, 4, 0, 1}));
  const auto random = conditions.choose("random", 1000, 1);
  EXPECT_EQ(std::set(random.begin(), random.end()), (std::set<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_NE(random, conditions.choose("random", 1000, 2));
}

TEST_F(TextConditionsOfAModel, MakeTheImagesOfTheirPrompts) {
  const Captions data(5);
  Conditions conditions(*pipeline_, &data, false);
  const std::vector<int64_t> chosen = {4, 0, 0, 3};
  const at::Tensor made = tokens_of(conditions.request(chosen, 9, 1, 3));
  pipeline_->set_prompts({"a", "d"});
  EXPECT_TRUE(at::equal(made, tokens_of({{0, 0, 1}, 9, 1})));
  pipeline_->set_prompts({"e"});
  EXPECT_FALSE(at::equal(made, tokens_of({{0, 0, 0}, 9, 1})));
}

TEST_F(TextConditionsOfAModel, AreKnownByTextsAndEncoder) {
  const Captions data(5), longer(6), shifted(5, {0});
  const auto hash = [&](const ImageDataset& of, const std::vector<int64_t>& chosen) {
    return Conditions(*pipeline_, &of, true).hash(chosen);
  };
  EXPECT_EQ(hash(data, {1, 2}), hash(longer, {1, 2}));
  EXPECT_NE(hash(data, {1, 2}), hash(data, {2, 1}));
  EXPECT_EQ(hash(data, {1, 2}), hash(shifted, {0, 1}));  // the same texts at other places
  const std::string before = hash(data, {1, 2});
  TensorMap weights = testing::golden_weights();
  weights["text_model.final_layer_norm.bias"] += 1;
  write_tensors(dir_ / "m/text_encoder/model.safetensors", weights);
  EXPECT_NE(hash(data, {1, 2}), before);
}

TEST_F(TextConditionsOfAModel, ComeFromCaptionsThatCanBeRead) {
  const Captions broken(4, {1}), all_broken(2, {0, 1});
  testing::expect_input_error([&] { Conditions(*pipeline_, nullptr, true); },
                              {"--reference", "texts", "captioned data set"});
  testing::expect_input_error([&] { Conditions(*pipeline_, &broken, false); }, {"broken; the captions are"});
  testing::expect_input_error([&] { Conditions(*pipeline_, &all_broken, true); }, {"none of the captions"});
  EXPECT_EQ(Conditions(*pipeline_, &broken, true).choose("balanced", 4, 1),
            (std::vector<int64_t>{0, 1, 2, 0}));
}

}  // namespace
}  // namespace adanat
