// What a policy acts in: a frozen generator with its tokenizer, and the data that its images are compared
// with.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/data/dataset.h"
#include "core/data/loader.h"
#include "core/features/feature_net.h"
#include "core/generator/transformer.h"
#include "core/io/image.h"
#include "core/sampling/sampler.h"
#include "core/text/text_features.h"
#include "policy/reward.h"
#include "tokenizer/vqgan.h"

namespace adanat {

// The frozen parts of a model folder, and what only the program can do. Generator and tokenizer are on the
// context's device, in evaluation mode and without gradients.
struct PolicyParts {
  Generator generator{nullptr};
  Tokenizer tokenizer{nullptr};
  std::string generator_hash;            // SHA-256 of generator.safetensors, "" = not known
  std::string tokenizer_hash;            // of tokenizer.safetensors, "" = not known
  std::vector<std::string> class_names;  // that the generator was trained with; empty = not known
  std::optional<TextFeatures> texts;     // generators of texts: the encoded captions of the data
  std::shared_ptr<FeatureNet>
      features;  // the folder's features network: evaluation and warnings; may be null
  std::function<std::unique_ptr<Reward>()> make_reward;
  std::function<Image(const at::Tensor& images)> grid;  // (B, 3, S, S) u8 -> one picture; may be empty
  std::filesystem::path
      diagnostics;  // folder for the state of a run that met a value that is not finite; "" = nowhere
  bool checks_at_once = true;  // of DeferredChecks; false: on the CPU as on a GPU, for tests
};

struct EnvironmentOptions {
  int64_t decode_batch = 64;               // images decoded at a time
  bool reals_are_reconstructions = false;  // real images pass through the tokenizer
  bool classes_of_data = false;            // classes are drawn as often as the data has them, else uniformly
  at::Device device = at::kCPU;
  int64_t threads = 1;  // that read the data
  uint64_t seed = 0;    // of the order of the data
};

// A "class" here is the id of a class or, for generators of texts, the place of an encoded caption. Not
// thread-safe.
class PolicyEnvironment {
 public:
  // InputError: data of other classes than the generator's, or without captions for one of texts (a broken
  // caption counts as the empty one).
  PolicyEnvironment(PolicyParts parts, std::shared_ptr<const ImageDataset> data, EnvironmentOptions options);

  const PolicyParts& parts() const { return parts_; }
  GeneratorImpl& generator() { return *parts_.generator; }
  const GeneratorConfig& sizes() const { return parts_.generator->config(); }
  const ImageDataset& data() const { return *data_; }
  std::shared_ptr<const ImageDataset> shared_data() const { return data_; }
  at::Device device() const { return options_.device; }
  int64_t image_size() const { return parts_.tokenizer->config().image_size; }
  bool takes_texts() const { return sizes().condition == "text"; }
  at::TensorOptions long_options() const;
  // begin, begin + 1, ..., i64 on the device.
  at::Tensor arange(int64_t begin, int64_t count) const;

  // Of every image of the data, (n) i64 on the device; undefined where classes are drawn uniformly.
  const at::Tensor& labels() const { return labels_; }
  // `count` classes of the data as evenly spread as the data, or all in turn, for samples `index` (B) of
  // `count`.
  at::Tensor spread(const at::Tensor& index, int64_t count) const;
  // All classes in turn (captions from all over the data), for samples `index` of `count`.
  at::Tensor in_turn(const at::Tensor& index, int64_t count, int64_t classes) const;
  at::Tensor classes_of(const Batch& batch) const;
  // What a reward is shown: the class (B), or the text's pooled state (B, width).
  at::Tensor reward_condition(const at::Tensor& classes) const;

  // Everything masked, of one seed for all samples.
  SamplerStart start_of(const at::Tensor& classes, int64_t seed, const at::Tensor& index) const;
  // tokens (B, N) -> (B, 3, S, S) f32 in [0, 1].
  at::Tensor decode(const at::Tensor& tokens);
  // bytes (B, 3, S, S) u8 of the data -> what a discriminator sees as real.
  at::Tensor real_images(const at::Tensor& bytes);
  // What rewards that compare with real images are shown, once, before their first score.
  void show_real_images(Reward& reward);

 private:
  at::Tensor caption_rows() const;

  PolicyParts parts_;
  std::shared_ptr<const ImageDataset> data_;
  EnvironmentOptions options_;
  at::Tensor labels_;
};

}  // namespace adanat
