// Training of a tokenizer: L1 + perceptual + codebook + adversarial loss.
// Source: docs/method.md section 2, "Training".
#pragma once
#include <memory>

#include "core/data/dataset.h"
#include "core/features/feature_net.h"
#include "core/train/ema.h"
#include "core/train/optimizer.h"
#include "core/train/precision.h"
#include "core/train/recipe.h"
#include "core/train/recipe_context.h"
#include "tokenizer/patchgan.h"
#include "tokenizer/quantizer.h"
#include "tokenizer/vqgan.h"

namespace adanat {

struct TokenizerLossConfig {
  double l1 = 1.0;
  double l2 = 0.0;
  double perceptual = 1.0;
  double codebook = 1.0;

  static constexpr auto fields() {
    using C = TokenizerLossConfig;
    return std::tuple{
        field("l1", &C::l1, "weight of the mean absolute difference of pixels, >= 0"),
        field("l2", &C::l2, "weight of the mean squared difference of pixels, >= 0"),
        field("perceptual", &C::perceptual,
              "weight of the distance in the features network, >= 0; needs one if > 0"),
        field("codebook", &C::codebook, "weight of the quantizer's loss, >= 0"),
    };
  }
  void validate() const;
  bool operator==(const TokenizerLossConfig&) const = default;
};

struct TokenizerTrainConfig {
  std::string data;
  std::string held_out;
  std::string features;
  int64_t seed = 0;
  int64_t batch_size = 64;
  bool flip = false;
  std::string dtype = "auto";
  std::string store = "float16";
  int64_t evaluate_images = 1000;
  TokenizerConfig model;
  QuantizerConfig quantizer;
  TokenizerLossConfig loss;
  PatchGanConfig gan;
  OptimizerConfig optimizer{.learning_rate = 4e-4,
                            .weight_decay = 0.0,
                            .beta1 = 0.9,
                            .beta2 = 0.99,
                            .warmup = 200,
                            .schedule = "cosine",
                            .clip = 1.0};
  OptimizerConfig gan_optimizer{
      .learning_rate = 4e-4, .weight_decay = 0.0, .beta1 = 0.5, .beta2 = 0.9, .warmup = 0};
  EmaConfig ema{.decay = 0.999};
  LoopConfig loop;

  static constexpr auto fields() {
    using C = TokenizerTrainConfig;
    return std::tuple{
        field("data", &C::data, "training images; --data wins"),
        field("held_out", &C::held_out,
              "images that are only measured on: a dataset, or #split or @range of the training data's file"),
        field("features", &C::features,
              "the network of the perceptual loss: a features.safetensors, or lpips' VGG; empty = that of "
              "the folder -m"),
        field("seed", &C::seed, "of the weights, the order of the data and every random draw; --seed wins"),
        field("batch_size", &C::batch_size,
              "images per update and process, split over optimizer.accumulate parts"),
        field("flip", &C::flip, "mirror half of the images; wrong where left and right mean something"),
        field("dtype", &C::dtype, kDtypeHelp),
        field("store", &C::store, "type of the weights written (and measured): float32, float16 or bfloat16"),
        field("evaluate_images", &C::evaluate_images,
              "held-out images per evaluation, a fixed random choice; 0 = all"),
        field("model", &C::model, "the tokenizer"),
        field("quantizer", &C::quantizer, "training of the codebook"),
        field("loss", &C::loss, "weights of the losses"),
        field("gan", &C::gan, "the discriminator"),
        field("optimizer", &C::optimizer, "of the tokenizer"),
        field("gan_optimizer", &C::gan_optimizer, "of the discriminator; its steps count from gan.start"),
        field("ema", &C::ema, "moving average of the weights; it is what is measured and written"),
        field("loop", &C::loop, "steps, logs, checkpoints"),
    };
  }
  void validate() const;
  bool operator==(const TokenizerTrainConfig&) const = default;
};

// A recipe called "tokenizer".
//
// step() reports l1, l2 (if weighted), perceptual, codebook, gan_generator, gan_discriminator and gan_weight
// (the adaptive weight; these three from gan.start on), usage, perplexity, gradient_norm, learning_rate. With
// optimizer.accumulate > 1 the codebook and the discriminator's gradients see every micro-batch. RunError
// naming the step if the run has diverged. evaluate() gives psnr, ssim, perceptual, usage, perplexity on
// held_out with the weights as they are written: averaged (codebook too), rounded to `store`, computed in
// float32, reconstructions clamped to [0, 1]. samples() gives "reconstructions": rows of originals, each
// above the row of what the tokenizer makes of them; the same images every time (of held_out, or of train
// without it). write_model() writes tokenizer.safetensors (save_tokenizer), then calls context.finish_model.
//
// held_out and perceptual may be null (loss.perceptual > 0 needs the latter). `init`: weights to start from,
// by the names of the model; its codebook is kept. context.seed becomes config.seed and seeds torch's default
// generator. InputError for a config, data or weights that do not fit.
std::unique_ptr<Recipe> make_tokenizer_recipe(TokenizerTrainConfig config,
                                              std::shared_ptr<const ImageDataset> train,
                                              std::shared_ptr<const ImageDataset> held_out,
                                              std::shared_ptr<FeatureNet> perceptual, RecipeContext context,
                                              const TensorMap* init = nullptr);

}  // namespace adanat
