// What the policy is trained for: a number per image. Everything that can play that part stands behind one
// interface.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/config.h"
#include "core/features/feature_net.h"
#include "core/nn/deferred_checks.h"
#include "core/nn/tensor_file.h"
#include "policy/augment.h"

namespace adanat {

// One update of a reward that trains. 0-d float tensors, so that a GPU is asked only at a log line.
struct RewardReport {
  at::Tensor loss;
  at::Tensor accuracy_real, accuracy_fake;  // shares of images on the right side of 0 (mean logit), [0, 1]
  // Further figures: score_real, score_fake (mean logits); of a sum each part's under "<kind>.".
  std::vector<std::pair<std::string, at::Tensor>> values;
};

// Scores images under their conditions. Not thread-safe.
//
// images      (B, 3, H, W) float in [0, 1], B >= 1, H = W = the context's image_size
// conditions  (B) int64 in [0, classes), or (B, text_width) float where the context has a text_width
// Both on the context's device. InputError for other shapes, dtypes or sizes, on the CPU also for other
// values (a GPU is not asked for them: there a class out of range ends in LibTorch's own assertion).
class Reward {
 public:
  virtual ~Reward();
  virtual std::string name() const = 0;  // "conv", "projected", ..., "sum"

  // -> (B) float, larger is better. Evaluation mode, no gradient; no state changes except the draw of a crop
  // where a ViT sees images larger than its own (one for all images of a call: they are compared with each
  // other), and the running statistics of frechet. That a value is not finite is noted in `checks`, with the
  // reward's name. Nothing waits for a GPU, but for frechet, whose algebra is the host's.
  virtual at::Tensor score(const at::Tensor& images, const at::Tensor& conditions,
                           DeferredChecks& checks) = 0;
  // The same, asking at once: RunError.
  at::Tensor score(const at::Tensor& images, const at::Tensor& conditions);

  // Whether there is anything to train; train_step may be called only then.
  virtual bool trains() const { return false; }
  // One update by the reward's own optimizer: real images up, fake ones down. The two batches may differ in
  // size. That the loss or its gradient is not finite is noted in `checks`. Weights and vectors keep their
  // values then, and where anything noted there has failed before.
  virtual RewardReport train_step(const at::Tensor& real_images, const at::Tensor& real_conditions,
                                  const at::Tensor& fake_images, const at::Tensor& fake_conditions,
                                  DeferredChecks& checks);
  // The same, asking at once: RunError.
  RewardReport train_step(const at::Tensor& real_images, const at::Tensor& real_conditions,
                          const at::Tensor& fake_images, const at::Tensor& fake_conditions);

  // How many real images must pass through observe_real before the first score; 0 = none, and 0 after load.
  virtual int64_t wants_real() const { return 0; }
  virtual void observe_real(const at::Tensor& images);

  // Everything that must survive a stop, under names that begin with `prefix`: weights, vectors of the
  // spectral norms, moments of the optimizer, the state of the reward's own random generator, statistics of
  // real images. Frozen networks are not in it (their hashes are). load: InputError naming `where` and the
  // key.
  virtual void save(TensorMap& out, const std::string& prefix) const;
  virtual void load(const TensorMap& in, const std::string& prefix, const std::string& where);
};

// How the discriminators learn, and what they say.
struct DiscriminatorTrainConfig {
  std::string loss = "bce";
  double learning_rate = 1e-4;
  double beta1 = 0.5;
  double beta2 = 0.999;
  std::string output = "sigmoid";
  DiffAugmentConfig augment;

  static constexpr auto fields() {
    using C = DiscriminatorTrainConfig;
    return std::tuple{
        field("loss", &C::loss, "bce (mean softplus of -D(real) and of D(fake)) or hinge"),
        field("learning_rate", &C::learning_rate, "of Adam, constant, > 0"),
        field("beta1", &C::beta1, "decay of the first moment, [0, 1)"),
        field("beta2", &C::beta2, "decay of the second moment, [0, 1)"),
        field("output", &C::output,
              "score = sigmoid of the mean logit (the reference), or logit: the mean itself"),
        field("augment", &C::augment, "random changes to the images the discriminator is trained on"),
    };
  }
  void validate() const;
  bool operator==(const DiscriminatorTrainConfig&) const = default;
};

struct RewardConfig {
  std::vector<std::string> kinds = {"conv", "features"};
  std::vector<double> weights = {};
  bool normalise = false;
  std::string vit;
  std::vector<std::string> taps = {};
  int64_t mapping_width = 512;
  int64_t conv_width = 32;
  std::vector<std::string> frechet_taps = {"pool"};
  std::vector<std::string> frechet_networks = {};
  std::string frechet_share = "leave_one_out";
  int64_t frechet_images = 10000;
  int64_t frechet_memory = 5000;
  int64_t score_batch = 256;
  DiscriminatorTrainConfig discriminator;

  static constexpr auto fields() {
    using C = RewardConfig;
    return std::tuple{
        field("kinds", &C::kinds,
              "rewards that are added up: projected (discriminator on a ViT), features (the same on the "
              "features "
              "network), conv (discriminator from nothing), confidence (probability of the class under the "
              "features "
              "network), frechet (distance to real images under the features network, or several)"),
        field("weights", &C::weights, "weight of each kind; empty = 1 each"),
        field("normalise", &C::normalise,
              "bring each kind to mean 0 and spread 1 over the batch before they are added"),
        field("vit", &C::vit,
              "projected: safetensors file of a ViT in timm's layout (reference: DINO ViT-S/16, 224 pixels)"),
        field("taps", &C::taps, "features: taps of the network that get a head; empty = every stage"),
        field("mapping_width", &C::mapping_width, "projected, features: width of the class embedding, >= 1"),
        field("conv_width", &C::conv_width,
              "conv: channels of the first layer, doubled per halving up to 4 times, >= 1"),
        field("frechet_taps", &C::frechet_taps,
              "frechet: taps of the features networks that are compared, spatial ones averaged over a 2x2 "
              "grid; "
              "several are brought to the same total variance of the real images"),
        field(
            "frechet_networks", &C::frechet_networks,
            "frechet: files of further classifiers (role features) that are looked through beside the model "
            "folder's, each with the same taps: what satisfies several is less likely to be a trick on one"),
        field("frechet_share", &C::frechet_share,
              "leave_one_out: what each image takes off the batch's distance; running: what more of its like "
              "would take off the distance of the last frechet_memory images; batch: minus the distance, for "
              "all alike"),
        field("frechet_images", &C::frechet_images, "frechet: real images that are compared with, >= 2"),
        field("frechet_memory", &C::frechet_memory,
              "frechet running: images that the running statistics remember, >= 0"),
        field("score_batch", &C::score_batch,
              "images that a network sees at once when scoring, a multiple of 8"),
        field("discriminator", &C::discriminator, "training of projected, features and conv"),
    };
  }
  void validate() const;
  bool operator==(const RewardConfig&) const = default;
};

// What a reward is told besides its config.
struct RewardContext {
  int64_t image_size = 0;
  int64_t classes = 0;     // class conditions: their number; not read where text_width > 0
  int64_t text_width = 0;  // text conditions: width of the embedding; 0 = class conditions
  // The model folder's features.safetensors; may be empty where no kind needs it.
  std::filesystem::path features = {};
  // The network that judges: no reward may see it. May be empty, then roles alone are checked.
  std::filesystem::path measure = {};
  at::Device device = at::kCPU;
  uint64_t seed = 0;  // of crops and augmentation. Weights are drawn from torch's default generator.
};

// Loads a frozen network that something is optimised with. InputError, beginning with `who`, where it is what
// judges the result: by its role, or as the same file as `measure` ("" = none).
std::unique_ptr<FeatureNet> load_unless_measure(const std::filesystem::path& file,
                                                const std::filesystem::path& measure, const std::string& who);

// One kind alone, or their weighted sum ("sum"). InputError: a file that is missing (saying which is wanted
// and what can stand in), or that is the measure network (by its role or its hash); a kind that does not fit
// the conditions.
std::unique_ptr<Reward> make_reward(const RewardConfig& config, const RewardContext& context);

}  // namespace adanat
