#include "core/features/classifier_recipe.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "core/base/log.h"
#include "core/features/feature_net.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/train/trainer.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
namespace fs = std::filesystem;
using testing::message_of;
using testing::TempDir;

// Three classes of 16x16 images: a bar that stands, one that lies, a block; place and colour differ.
class Shapes : public ImageDataset {
 public:
  Shapes(int64_t size, uint64_t seed, int64_t classes = 3) : size_(size), seed_(seed) {
    for (int64_t i = 0; i < classes; ++i) names_.push_back(cat("shape", i));
  }
  int64_t size() const override { return size_; }
  int64_t label(int64_t i) const override { return i % 3; }
  std::string item_name(int64_t i) const override { return cat("shape ", i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override { return cat("shapes, seed ", seed_, ": ", size_, " images"); }
  Image image(int64_t i) const override {
    Image out{16, 16, std::vector<uint8_t>(16 * 16 * 3, 40)};
    uint64_t state = testing::fnv1a64(cat(seed_, ":", i));
    const auto next = [&](uint64_t bound) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      return int((state >> 33) % bound);
    };
    const int wide = i % 3 == 0 ? 2 : i % 3 == 1 ? 10 : 5, high = i % 3 == 0 ? 10 : i % 3 == 1 ? 2 : 5;
    const int left = next(uint64_t(17 - wide)), top = next(uint64_t(17 - high)), red = 120 + next(120),
              blue = next(255);
    for (int y = top; y < top + high; ++y)
      for (int x = left; x < left + wide; ++x) {
        out.rgb[size_t((y * 16 + x) * 3)] = uint8_t(red);
        out.rgb[size_t((y * 16 + x) * 3 + 2)] = uint8_t(blue);
      }
    return out;
  }

 private:
  int64_t size_;
  uint64_t seed_;
  std::vector<std::string> names_;
};

ClassifierTrainConfig toy_config(int64_t steps) {
  ClassifierTrainConfig config;
  config.batch_size = 12;
  config.dtype = "float32";
  config.label_smoothing = 0.05;
  config.model = {
      .image_size = 16, .widths = {8, 12}, .blocks = {1, 1}, .activation = "relu", .dropout = 0.2};
  config.augmentation = {
      .flip = true, .shift = 1.5, .rotate = 5, .scale = 0.1, .brightness = 0.2, .contrast = 0.2, .erase = 3};
  config.optimizer = {.learning_rate = 5e-3, .weight_decay = 0.01, .beta1 = 0.9, .beta2 = 0.99, .warmup = 3};
  config.optimizer.accumulate = 2;
  config.ema = {.decay = 0.9};
  config.loop = {.steps = steps, .log_every = 5, .checkpoint_every = 0};
  return config;
}

std::unique_ptr<Recipe> make(const ClassifierTrainConfig& config, uint64_t seed = 3,
                             std::function<void(const fs::path&)> finish = {}) {
  return make_classifier_recipe(config, std::make_shared<Shapes>(60, 1), std::make_shared<Shapes>(30, 2),
                                {.seed = seed, .threads = 1, .finish_model = std::move(finish)});
}

TensorMap state_of(const fs::path& file) {
  TensorMap out;
  for (const auto& [name, tensor] : read_tensors(file)) out[name] = tensor.clone();
  return out;
}

class ClassifierRecipe : public ::testing::Test {
 protected:
  void SetUp() override { set_quiet(true); }
  TempDir dir_;
};

TEST_F(ClassifierRecipe, TenStepsAreFiveStopAndFive) {
  run_training(*make(toy_config(10)), dir_ / "whole", false);
  run_training(*make(toy_config(5)), dir_ / "parts", false);
  at::manual_seed(1234);
  run_training(*make(toy_config(10)), dir_ / "parts", true);
  for (const char* file : {"checkpoints/step-10/state.safetensors", "model/features.safetensors"}) {
    const TensorMap a = state_of(dir_ / "whole" / file), b = state_of(dir_ / "parts" / file);
    ASSERT_EQ(a.size(), b.size());
    EXPECT_GT(a.size(), 20u);
    for (const auto& [name, tensor] : a) {
      ASSERT_TRUE(b.contains(name)) << name;
      EXPECT_CLOSE(b.at(name), tensor, 0) << file << ": " << name;
    }
  }
  // The random draws matter: another seed ends elsewhere.
  run_training(*make(toy_config(10), 4), dir_ / "other", false);
  EXPECT_FALSE(testing::close(state_of(dir_ / "other/model/features.safetensors").at("stem.weight"),
                              state_of(dir_ / "whole/model/features.safetensors").at("stem.weight"), 1e-3));
}

TEST_F(ClassifierRecipe, AFinishedRunResumedWritesTheSameFile) {
  const fs::path file = dir_ / "out/model/features.safetensors";
  run_training(*make(toy_config(3)), dir_ / "out", false);
  const std::string before = read_file(file);
  EXPECT_TRUE(SafetensorsFile::open(file).metadata().contains("held_out_accuracy"));
  run_training(*make(toy_config(3)), dir_ / "out", true);
  EXPECT_EQ(read_file(file), before) << "its hash is its name";
}

TEST_F(ClassifierRecipe, WeightsThatMovedOnAreNotCalledMeasured) {
  const auto recipe = make(toy_config(3));
  recipe->step(0);
  recipe->evaluate();
  recipe->step(1);
  recipe->write_model(dir_.path());
  EXPECT_FALSE(SafetensorsFile::open(dir_ / "features.safetensors").metadata().contains("held_out_accuracy"));
}

TEST_F(ClassifierRecipe, AccumulationSplitsTheBatch) {
  ClassifierTrainConfig config = toy_config(3);
  EXPECT_EQ(config.optimizer.accumulate, 2);
  EXPECT_EQ(make(config)->step(0).images, config.batch_size);
  config.batch_size = 2;
  EXPECT_THROW(make(config), InputError) << "norms need two images";
  config.batch_size = 5;
  EXPECT_THROW(make(config), InputError);
  config.optimizer.accumulate = 0;
  EXPECT_THROW(make(config), InputError);
}

TEST_F(ClassifierRecipe, LearnsAndWritesWhatCanBeRead) {
  ClassifierTrainConfig config = toy_config(150);
  config.role = "measure";
  config.optimizer.accumulate = 1;
  config.batch_size = 30;
  fs::path told;
  auto recipe = make(config, 3, [&](const fs::path& folder) {
    told = folder;
    EXPECT_TRUE(fs::exists(folder / "measure.safetensors")) << "called after the recipe's own files";
  });
  run_training(*recipe, dir_ / "out", false);
  EXPECT_FALSE(told.empty());
  const Scalars measured = recipe->evaluate();
  ASSERT_EQ(measured[0].first, "accuracy");
  EXPECT_GE(measured[0].second, 0.9);

  const fs::path file = dir_ / "out" / "model" / "measure.safetensors";
  Metadata metadata;
  read_tensors(file, &metadata);
  EXPECT_EQ(metadata["role"], "measure");
  EXPECT_EQ(Json::parse(metadata["class_names"]), Json({"shape0", "shape1", "shape2"}));
  EXPECT_EQ(metadata["data"], "shapes, seed 1: 60 images");
  // The file alone gives the same accuracy as the recipe measured.
  const auto net = load_feature_net(file);
  const Shapes held_out(30, 2);
  int64_t right = 0;
  for (int64_t i = 0; i < 30; ++i) {
    const Image image = held_out.image(i);
    at::Tensor x = at::empty({16, 16, 3}, at::kByte);
    std::copy(image.rgb.begin(), image.rgb.end(), x.mutable_data_ptr<uint8_t>());
    x = x.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat) / 255;
    right += net->forward(x, {"logits"})[0].argmax(1).item<int64_t>() == i % 3;
  }
  EXPECT_NEAR(double(right) / 30, measured[0].second, 1e-9);
}

TEST_F(ClassifierRecipe, LearnsInBfloat16) {
  ClassifierTrainConfig config = toy_config(80);
  config.dtype = "bfloat16";
  config.optimizer.accumulate = 1;
  config.batch_size = 30;
  auto recipe = make(config);
  double first = 0, last = 0;
  for (int64_t s = 0; s < 80; ++s) {
    last = recipe->step(s).values[0].second.item<double>();
    if (s == 0) first = last;
  }
  EXPECT_LT(last, 0.7 * first);
}

class OtherNames : public Shapes {
 public:
  OtherNames() : Shapes(60, 1) {}
  const std::vector<std::string>& class_names() const override { return names_; }

 private:
  std::vector<std::string> names_ = {"bar", "block", "line"};
};

TEST_F(ClassifierRecipe, ResumesOnTheSameImagesOnly) {
  run_training(*make(toy_config(3)), dir_ / "out", false);
  const auto resume = [&](std::shared_ptr<const ImageDataset> data) {
    const auto recipe =
        make_classifier_recipe(toy_config(4), std::move(data), nullptr, {.seed = 3, .finish_model = {}});
    return message_of([&] { run_training(*recipe, dir_ / "out", true); });
  };
  EXPECT_NE(resume(std::make_shared<Shapes>(61, 1)).find("trained_on.images"), std::string::npos);
  EXPECT_NE(resume(std::make_shared<OtherNames>()).find("trained_on.class_names"), std::string::npos);
}

// Every tenth image is broken, or all of them.
class BrokenShapes : public Shapes {
 public:
  explicit BrokenShapes(int64_t every) : Shapes(60, 1), every_(every) {}
  Image image(int64_t i) const override {
    if (i % every_ == 0) throw InputError(cat("shape ", i, ": is broken"));
    return Shapes::image(i);
  }

 private:
  int64_t every_;
};

TEST_F(ClassifierRecipe, CountsBrokenImages) {
  const auto train = [&](int64_t every, const fs::path& out) {
    run_training(*make_classifier_recipe(toy_config(6), std::make_shared<BrokenShapes>(every), nullptr,
                                         {.seed = 3, .finish_model = {}}),
                 out, false);
  };
  ::testing::internal::CaptureStderr();
  train(10, dir_ / "some");
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("6 of 60 images"), std::string::npos) << said;
  std::istringstream log(read_file(dir_ / "some/log.jsonl"));
  bool found = false;
  for (std::string line; std::getline(log, line);)
    if (const Json j = Json::parse(line); j["kind"] == "data") {
      EXPECT_EQ(j["step"], 5) << "60 images, 12 per step";
      EXPECT_EQ(j["broken_images"], 6);
      found = true;
    }
  EXPECT_TRUE(found);
  EXPECT_THROW(train(1, dir_ / "all"), InputError);
  EXPECT_FALSE(fs::exists(dir_ / "all/model"));
}

TEST_F(ClassifierRecipe, StartsFromGivenWeights) {
  run_training(*make(toy_config(4)), dir_ / "first", false, {});
  const TensorMap first = state_of(dir_ / "first/model/features.safetensors");
  const auto weights_of = [&](const TensorMap* init) {
    TensorMap out;
    make_classifier_recipe(toy_config(1), std::make_shared<Shapes>(60, 1), nullptr,
                           {.seed = 9, .threads = 1, .finish_model = {}}, init)
        ->save(out);
    return out;
  };
  const TensorMap fresh = weights_of(nullptr), started = weights_of(&first);
  int equal = 0, moved = 0;
  for (const auto& [name, tensor] : first)
    for (const auto& [key, value] : started)
      if (key.ends_with(name) && key.find("optimizer") == std::string::npos &&
          value.sizes() == tensor.sizes()) {
        equal += at::equal(value, tensor.to(value.scalar_type()));
        moved += !at::equal(value, fresh.at(key));
      }
  EXPECT_GE(equal, int(first.size()));
  EXPECT_GT(moved, 0);
  const TensorMap wrong{{"stem.weight", first.begin()->second}};
  EXPECT_THROW(weights_of(&wrong), InputError);
}

TEST_F(ClassifierRecipe, RefusesWhatDoesNotFit) {
  ClassifierTrainConfig config = toy_config(5);
  config.model.classes = 4;
  EXPECT_THROW(make(config), InputError);
  config = toy_config(5);
  EXPECT_THROW(
      make_classifier_recipe(config, std::make_shared<Shapes>(60, 1), std::make_shared<Shapes>(60, 1, 4), {}),
      InputError);
  config.batch_size = 61;
  EXPECT_THROW(make(config), InputError) << "fewer images than a batch";
  config = toy_config(5);
  config.role = "judge";
  EXPECT_THROW(make(config), InputError);
  EXPECT_EQ(make(toy_config(5), 77)->config()["seed"], 77) << "the seed in force is what is echoed";
  EXPECT_EQ(make(toy_config(5))->config()["model"]["classes"], 3);
}

TEST(Augment, DependsOnSeedStepAndRowAlone) {
  const AugmentationConfig config{
      .shift = 2, .rotate = 10, .scale = 0.2, .brightness = 0.3, .contrast = 0.3, .erase = 6};
  const at::Tensor images = testing::input_u("augment", {6, 3, 16, 16});
  const at::Tensor whole = augment(images, config, 5, 9, 0);
  EXPECT_CLOSE(augment(images.narrow(0, 2, 3), config, 5, 9, 2), whole.narrow(0, 2, 3), 1e-6);
  EXPECT_FALSE(testing::close(augment(images, config, 5, 10, 0), whole, 1e-2));
  EXPECT_FALSE(testing::close(augment(images, config, 6, 9, 0), whole, 1e-2));
  EXPECT_GE(whole.min().item<double>(), 0);
  EXPECT_LE(whole.max().item<double>(), 1);
  EXPECT_TRUE(augment(images, {}, 5, 9, 0).is_same(images)) << "nothing on: nothing done";
}

TEST(Augment, StaysInItsRange) {
  // A dot in the middle moves by at most the shift; light changes by at most its share.
  at::Tensor images = at::full({200, 3, 17, 17}, 0.2);
  images.select(3, 8).select(2, 8).fill_(1);
  const at::Tensor moved = augment(images, {.shift = 3}, 1, 0, 0) - 0.2;
  double widest = 0, mean = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const at::Tensor columns = moved[i][0].sum(0), place = at::arange(17, at::kFloat) - 8;
    const double at_column = ((columns * place).sum() / columns.sum()).item<double>();
    widest = std::max(widest, std::abs(at_column));
    mean += at_column / 200;
  }
  EXPECT_LE(widest, 3.01);
  EXPECT_GT(widest, 2.5);
  EXPECT_NEAR(mean, 0, 0.5);
  const at::Tensor light =
      augment(at::full({200, 3, 8, 8}, 0.5), {.brightness = 0.4}, 1, 0, 0).mean({1, 2, 3});
  EXPECT_GE(light.min().item<double>(), 0.5 * 0.6 - 1e-6);
  EXPECT_LE(light.max().item<double>(), 0.5 * 1.4 + 1e-6);
  EXPECT_GT(light.std().item<double>(), 0.08);
  // At most a square of the given side is painted over.
  const at::Tensor before = testing::input_u("erase", {200, 3, 16, 16});
  const at::Tensor changed = augment(before, {.erase = 6}, 1, 0, 0).ne(before);
  const at::Tensor pixels = changed.any(1).sum({1, 2});
  EXPECT_LE(pixels.max().item<int64_t>(), 36);
  EXPECT_GT(pixels.max().item<int64_t>(), 24);
  EXPECT_TRUE(changed.any(1).equal(changed.all(1))) << "all channels of a pixel";
}

TEST(OpenHeldOut, RefersToTheFileOfTheTrainingData) {
  ADANAT_NEEDS_DATA();
  EXPECT_EQ(open_held_out("", "x"), nullptr);
  const std::string digits = (testing::shared_data() / "mnist").string();
  EXPECT_EQ(open_held_out("@9000:", digits + "@:9000")->size(), 1000);
  EXPECT_EQ(open_held_out("@9000:9500", digits)->size(), 500);
  EXPECT_EQ(open_held_out(digits + "@10:20", "elsewhere")->size(), 10);
}

TEST(ShippedConfigs, AreValidAndTheTwoRolesDiffer) {
  for (const char* data : {"mnist", "signs", "cifar10"}) {
    const auto read = [&](const std::string& role) {
      const std::string file = cat(testing::source_dir().string(), "/configs/", data, "/", role, ".json");
      const auto config = config_from_json<ClassifierTrainConfig>(read_json_file(file), file);
      EXPECT_EQ(config.role, role) << file;
      EXPECT_EQ(config_from_json<ClassifierTrainConfig>(config_to_json(config), file), config);
      const bool mirrors = std::string(data) == "cifar10";
      EXPECT_EQ(config.augmentation.flip, mirrors)
          << file << ": left and right mean something in digits and signs";
      return config;
    };
    const ClassifierTrainConfig features = read("features"), measure = read("measure");
    EXPECT_NE(features.seed, measure.seed);
    EXPECT_NE(features.model.widths, measure.model.widths);
  }
}

}  // namespace
}  // namespace adanat
