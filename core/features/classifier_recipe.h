// Training of the small classifiers that serve as `features` and `measure` networks.
#pragma once
#include <memory>

#include "core/data/dataset.h"
#include "core/features/classifier.h"
#include "core/train/ema.h"
#include "core/train/optimizer.h"
#include "core/train/precision.h"
#include "core/train/recipe.h"
#include "core/train/recipe_context.h"

namespace adanat {

// Random changes to training images, drawn anew for every image and step. All off by default.
struct AugmentationConfig {
  bool flip = false;
  double shift = 0.0;
  double rotate = 0.0;
  double scale = 0.0;
  double brightness = 0.0;
  double contrast = 0.0;
  double erase = 0.0;

  static constexpr auto fields() {
    using C = AugmentationConfig;
    return std::tuple{
        field("flip", &C::flip, "mirror half of the images; wrong where left and right mean something"),
        field("shift", &C::shift, "largest shift in pixels, each axis"),
        field("rotate", &C::rotate, "largest rotation in degrees, either way"),
        field("scale", &C::scale, "largest change of size as a share, 0.1 = 0.9..1.1, [0, 0.9]"),
        field("brightness", &C::brightness,
              "largest share added to or taken from the light, 0.3 = x0.7..1.3, [0, 1]"),
        field("contrast", &C::contrast,
              "largest change of the distance from the image's mean, as a share, [0, 1]"),
        field("erase", &C::erase,
              "largest side in pixels of a square that is painted over with the image's mean"),
    };
  }
  void validate() const;
  bool operator==(const AugmentationConfig&) const = default;
};

struct ClassifierTrainConfig {
  std::string role = "features";
  std::string data;
  std::string held_out;
  int64_t seed = 0;
  int64_t batch_size = 128;
  std::string dtype = "auto";
  double label_smoothing = 0.0;
  ClassifierConfig model;
  AugmentationConfig augmentation;
  OptimizerConfig optimizer{.learning_rate = 2e-3,
                            .weight_decay = 0.02,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .warmup = 100,
                            .schedule = "cosine"};
  EmaConfig ema{.decay = 0.995};
  LoopConfig loop;

  static constexpr auto fields() {
    using C = ClassifierTrainConfig;
    return std::tuple{
        field("role", &C::role,
              "features (losses and rewards may use it) or measure (never trained on): the file's name"),
        field("data", &C::data, "training images; --data wins"),
        field("held_out", &C::held_out,
              "images that are only measured on: a dataset, or #split or @range of the training data's file"),
        field("seed", &C::seed, "of the weights, the order of the data and every random change; --seed wins"),
        field("batch_size", &C::batch_size,
              "images per update and process, split over optimizer.accumulate parts"),
        field("dtype", &C::dtype, kDtypeHelp),
        field("label_smoothing", &C::label_smoothing, "share of the target spread over all classes, [0, 1)"),
        field("model", &C::model, "the network"),
        field("augmentation", &C::augmentation, "random changes to training images"),
        field("optimizer", &C::optimizer, "AdamW"),
        field("ema", &C::ema,
              "moving average of weights and norm statistics; it is what is measured and written"),
        field("loop", &C::loop, "steps, logs, checkpoints"),
    };
  }
  void validate() const;
  bool operator==(const ClassifierTrainConfig&) const = default;
};

// Changes a batch: images (B, 3, S, S) float in [0, 1] -> the same shape, in [0, 1], outside pixels repeated
// from the border. Row r draws philox4x32_10 at the counters (1..3, r, step, 3 << 16) with key `seed` (a
// first coordinate of 0 is the loader's); rows count from `first_row`, over all processes. So a change
// depends on the seed, the step and the row alone. The arithmetic does not depend on which changes are on:
// turning one off leaves the others.
at::Tensor augment(const at::Tensor& images, const AugmentationConfig& config, uint64_t seed, int64_t step,
                   int64_t first_row);

// Opens what "held_out" names: empty = null; "#test" and "@9000:" refer to the file of `data`; else a dataset
// of its own.
std::shared_ptr<const ImageDataset> open_held_out(const std::string& held_out, const std::string& data);

// A recipe called "classifier". Reports loss, accuracy (of the training batch), learning_rate; evaluate()
// gives accuracy and loss on held_out with the averaged weights. Writes <role>.safetensors (see
// core/features/feature_net.h). model.classes = 0 becomes the number of classes of `train`. held_out may be
// null; its classes must be those of `train`. init: weights of a file of the same role to start from.
// context.seed becomes config.seed (the command line decides between flag and file) and seeds torch's default
// generator. InputError for a config or data that do not fit.
std::unique_ptr<Recipe> make_classifier_recipe(ClassifierTrainConfig config,
                                               std::shared_ptr<const ImageDataset> train,
                                               std::shared_ptr<const ImageDataset> held_out,
                                               RecipeContext context, const TensorMap* init = nullptr);

}  // namespace adanat
