// Training of the generator from a token file (docs/method.md section 3).
#pragma once
#include <functional>
#include <memory>
#include <optional>

#include "core/data/token_file.h"
#include "core/generator/transformer.h"
#include "core/text/text_features.h"
#include "core/train/ema.h"
#include "core/train/precision.h"
#include "core/train/recipe.h"
#include "core/train/recipe_context.h"

namespace adanat {

struct GeneratorInit;

struct GeneratorTrainConfig {
  GeneratorConfig model;
  LoopConfig loop;
  OptimizerConfig optimizer;
  EmaConfig ema;
  int64_t batch_size = 2048;
  std::string mask_law = "beta";
  double mask_alpha = 12;
  double mask_beta = 3;
  double label_smoothing = 0.1;
  double condition_dropout = 0.15;
  std::string data;
  std::string held_out;
  std::string text_features;
  int64_t seed = 0;
  std::string dtype = "auto";
  std::string store = "float16";

  static constexpr auto fields() {
    using C = GeneratorTrainConfig;
    return std::tuple{
        field("model", &C::model,
              "sizes of the transformer; codes, grid and classes come from the token file"),
        field("loop", &C::loop, "steps and intervals"),
        field("optimizer", &C::optimizer, "AdamW"),
        field("ema", &C::ema, "average of the weights, which is what is shipped"),
        field("batch_size", &C::batch_size,
              "images per update and process, split over optimizer.accumulate parts"),
        field("mask_law", &C::mask_law,
              "share of hidden tokens: beta, cosine, or mixed (each half of the time)"),
        field("mask_alpha", &C::mask_alpha, "first parameter of the beta law, (0, 1000]"),
        field("mask_beta", &C::mask_beta, "second parameter of the beta law, (0, 1000]"),
        field("label_smoothing", &C::label_smoothing, "0..1"),
        field("condition_dropout", &C::condition_dropout,
              "share of images trained without their condition, 0..1"),
        field("data", &C::data, "token file to train on; --data wins"),
        field("seed", &C::seed, "of the weights, the order of the data and every random draw; --seed wins"),
        field("held_out", &C::held_out, "a second token file to measure the loss on; empty = none"),
        field("text_features", &C::text_features,
              "file that keeps the encoded captions (condition text); empty = beside the token file"),
        field("dtype", &C::dtype, kDtypeHelp),
        field("store", &C::store, "type of the weights written: float32, float16 or bfloat16"),
    };
  }
  void validate() const;
  bool operator==(const GeneratorTrainConfig&) const = default;
};

// Cross-entropy over the V codes at hidden positions, mean over all of them in the batch.
// ids (B, N) i64 the true codes; hidden (B, N) bool, at least one true; both may lie on the CPU. condition as
// GeneratorImpl::features takes it, on the generator's device.
at::Tensor masked_token_loss(GeneratorImpl& generator, const at::Tensor& ids, const at::Tensor& hidden,
                             const at::Tensor& condition, double label_smoothing);

// Pictures of what the generator makes with its averaged weights; wired up where a decoder is at hand.
using SampleImages = std::function<std::vector<NamedImage>(GeneratorImpl& generator)>;

// `init`: weights to start from, or null (generator_init.h says what fits). The token file supplies
// model.codes, grid and classes. `texts`: the encoded captions of both token files, for a text condition;
// without it the condition is the class. The empty condition is the empty text's states. write_model() writes
// generator.safetensors and then calls context.finish_model.
std::unique_ptr<Recipe> make_generator_recipe(GeneratorTrainConfig config, TokenFile data,
                                              const GeneratorInit* init, RecipeContext context,
                                              SampleImages sample_images,
                                              std::optional<TextFeatures> texts = std::nullopt);

inline constexpr const char* kGeneratorFormat = "adanat-generator-1";
// generator.safetensors: the weights, with the config and kGeneratorFormat as metadata.
void write_generator(const std::filesystem::path& file, const GeneratorConfig& config,
                     const TensorMap& weights);

}  // namespace adanat
