#include "policy/reward.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/base/sha256.h"
#include "core/io/safetensors.h"
#include "policy/reward_kinds.h"

namespace adanat {

Reward::~Reward() = default;

at::Tensor Reward::score(const at::Tensor& images, const at::Tensor& conditions) {
  DeferredChecks checks;
  const at::Tensor scores = score(images, conditions, checks);
  checks.settle();
  return scores;
}

RewardReport Reward::train_step(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                DeferredChecks&) {
  throw RunError(cat("reward ", name(), ": has nothing to train"));
}

RewardReport Reward::train_step(const at::Tensor& real_images, const at::Tensor& real_conditions,
                                const at::Tensor& fake_images, const at::Tensor& fake_conditions) {
  DeferredChecks checks;
  RewardReport report = train_step(real_images, real_conditions, fake_images, fake_conditions, checks);
  checks.settle();
  return report;
}

void Reward::observe_real(const at::Tensor&) {}

void Reward::save(TensorMap&, const std::string&) const {}

void Reward::load(const TensorMap&, const std::string&, const std::string&) {}

void DiscriminatorTrainConfig::validate() const {
  require(loss == "bce" || loss == "hinge", "discriminator.loss", "bce or hinge", loss);
  require(learning_rate > 0, "discriminator.learning_rate", "> 0", learning_rate);
  require(beta1 >= 0 && beta1 < 1, "discriminator.beta1", "in [0, 1)", beta1);
  require(beta2 >= 0 && beta2 < 1, "discriminator.beta2", "in [0, 1)", beta2);
  require(output == "sigmoid" || output == "logit", "discriminator.output", "sigmoid or logit", output);
  augment.validate();
}

void RewardConfig::validate() const {
  static constexpr std::array known{"projected", "features", "conv", "confidence", "frechet"};
  require(!kinds.empty(), "kinds", "a list of at least one kind", "none");
  for (size_t i = 0; i < kinds.size(); ++i) {
    require(std::find(known.begin(), known.end(), kinds[i]) != known.end(), "kinds",
            "a list of projected, features, conv, confidence, frechet", kinds[i]);
    require(std::find(kinds.begin(), kinds.begin() + int64_t(i), kinds[i]) == kinds.begin() + int64_t(i),
            "kinds", "a list without repetitions", kinds[i] + " twice");
  }
  require(weights.empty() || weights.size() == kinds.size(), "weights", "empty or as long as kinds",
          weights.size());
  for (const double weight : weights) require(std::isfinite(weight), "weights", "finite numbers", weight);
  require(mapping_width >= 1 && mapping_width <= 65536, "mapping_width", "in [1, 65536]", mapping_width);
  require(conv_width >= 1 && conv_width <= 1024, "conv_width", "in [1, 1024]", conv_width);
  require(frechet_share == "leave_one_out" || frechet_share == "running" || frechet_share == "batch",
          "frechet_share", "leave_one_out, running or batch", frechet_share);
  require(!frechet_taps.empty(), "frechet_taps", "a list of at least one tap", "none");
  require(frechet_memory >= 0, "frechet_memory", ">= 0", frechet_memory);
  require(frechet_images >= 2, "frechet_images", ">= 2", frechet_images);
  require(score_batch >= 8 && score_batch % 8 == 0, "score_batch", "a multiple of 8, at least 8",
          score_batch);
  discriminator.validate();
}

void check_reward_batch(const std::string& name, const RewardContext& context, const at::Tensor& images,
                        const at::Tensor& conditions) {
  const int64_t side = context.image_size;
  if (images.dim() != 4 || images.size(0) < 1 || images.size(1) != 3 || images.size(2) != side ||
      images.size(3) != side || images.scalar_type() != at::kFloat)
    throw InputError(cat("reward ", name, ": images must be float of shape (B, 3, ", side, ", ", side,
                         "), got ", images.scalar_type(), " ", images.sizes()));
  const int64_t b = images.size(0);
  if (context.text_width > 0) {
    if (conditions.dim() != 2 || conditions.size(0) != b || conditions.size(1) != context.text_width ||
        conditions.scalar_type() != at::kFloat)
      throw InputError(cat("reward ", name, ": conditions must be float of shape (", b, ", ",
                           context.text_width, "), got ", conditions.scalar_type(), " ", conditions.sizes()));
    return;
  }
  if (conditions.dim() != 1 || conditions.size(0) != b || conditions.scalar_type() != at::kLong)
    throw InputError(cat("reward ", name, ": conditions must be int64 of shape (", b, "), got ",
                         conditions.scalar_type(), " ", conditions.sizes()));
  if (!conditions.is_cpu()) return;
  const auto [smallest, largest] = at::aminmax(conditions);
  const int64_t least = smallest.item<int64_t>(), most = largest.item<int64_t>();
  if (least < 0 || most >= context.classes)
    throw InputError(cat("reward ", name, ": conditions must be classes in [0, ", context.classes, "), got ",
                         least < 0 ? least : most));
}

at::Tensor checked_scores(const std::string& name, const at::Tensor& scores, DeferredChecks& checks) {
  checks.expect(at::isfinite(scores).all(), [name](int64_t) {
    return cat("reward ", name, ": a score is not finite; start again with a lower ",
               "reward.discriminator.learning_rate");
  });
  return scores;
}

at::Tensor bytes_tensor(const std::string& text) {
  at::Tensor out = at::zeros({int64_t(text.size())}, at::kByte);
  std::memcpy(out.mutable_data_ptr(), text.data(), text.size());
  return out;
}

namespace fs = std::filesystem;

std::unique_ptr<FeatureNet> load_unless_measure(const fs::path& file, const fs::path& measure,
                                                const std::string& who) {
  const auto metadata = SafetensorsFile::open(file).metadata();
  const auto role = metadata.find("role");
  if (role != metadata.end() && role->second == "measure")
    throw InputError(cat(who, ": ", file.string(), " has the role measure: what judges the result must not ",
                         "be trained for; use a network with the role features"));
  std::unique_ptr<FeatureNet> net = load_feature_net(file);
  if (!measure.empty() && net->file_hash() == sha256_file(measure.string()))
    throw InputError(cat(who, ": ", file.string(), " is the same file as ", measure.string(),
                         ": what judges the result must not be trained for; use another network"));
  return net;
}

namespace {

std::shared_ptr<FeatureNet> load_allowed(const fs::path& file, const RewardContext& context,
                                         const std::string& kind) {
  std::shared_ptr<FeatureNet> net = load_unless_measure(file, context.measure, "reward " + kind);
  net->to(context.device);
  return net;
}

std::shared_ptr<FeatureNet> load_features(const RewardContext& context, const std::string& kind) {
  if (context.features.empty() || !fs::exists(context.features))
    throw InputError(
        cat("reward ", kind, ": needs the model folder's features network, but ",
            context.features.empty() ? "none was given" : context.features.string() + " is missing",
            "; train it with `adanat train classifier` (role features), or use the kind conv"));
  return load_allowed(context.features, context, kind);
}

// The features network and the further ones that the frechet reward looks through.
std::vector<std::shared_ptr<FeatureNet>> frechet_networks(const RewardConfig& config,
                                                          const RewardContext& context,
                                                          const std::shared_ptr<FeatureNet>& features) {
  std::vector<std::shared_ptr<FeatureNet>> out = {features};
  for (const std::string& file : config.frechet_networks) {
    if (!fs::exists(file))
      throw InputError(cat("reward frechet: frechet_networks: ", file,
                           " is missing; train it with `adanat train classifier` (role features)"));
    out.push_back(load_allowed(file, context, "frechet"));
  }
  return out;
}

std::shared_ptr<FeatureNet> load_vit(const RewardConfig& config, const RewardContext& context) {
  if (config.vit.empty() || !fs::exists(config.vit))
    throw InputError(
        cat("reward projected: vit ", config.vit.empty() ? "is not set" : "= " + config.vit + " is missing",
            ": wanted a ViT in timm's layout as safetensors (reference: vit_small_patch16_224.dino, DINO ",
            "ViT-S/16); instead of it the kinds features (the same heads on the model folder's features ",
            "network) and conv need no such file"));
  std::shared_ptr<FeatureNet> net = load_allowed(config.vit, context, "projected");
  if (net->kind() != "vit")
    throw InputError(cat("reward projected: vit = ", config.vit, " is a network of the kind ", net->kind(),
                         ", wanted a ViT in timm's layout"));
  return net;
}

class SumReward : public Reward {
 public:
  SumReward(const RewardConfig& config, std::vector<std::unique_ptr<Reward>> parts)
      : parts_(std::move(parts)), weights_(config.weights), normalise_(config.normalise) {
    if (weights_.empty()) weights_.assign(parts_.size(), 1.0);
  }
  std::string name() const override { return "sum"; }

  at::Tensor score(const at::Tensor& images, const at::Tensor& conditions, DeferredChecks& checks) override {
    at::Tensor sum;
    for (size_t i = 0; i < parts_.size(); ++i) {
      at::Tensor value = parts_[i]->score(images, conditions, checks);
      if (normalise_) {
        value = value - value.mean();
        value = value / (value.square().mean().sqrt() + 1e-8);
      }
      sum = sum.defined() ? sum + weights_[i] * value : weights_[i] * value;
    }
    return sum;
  }

  bool trains() const override {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->trains(); });
  }

  RewardReport train_step(const at::Tensor& real_images, const at::Tensor& real_conditions,
                          const at::Tensor& fake_images, const at::Tensor& fake_conditions,
                          DeferredChecks& checks) override {
    RewardReport out;
    std::vector<at::Tensor> losses, real, fake;
    for (const auto& part : parts_) {
      if (!part->trains()) continue;
      const RewardReport report =
          part->train_step(real_images, real_conditions, fake_images, fake_conditions, checks);
      losses.push_back(report.loss);
      real.push_back(report.accuracy_real);
      fake.push_back(report.accuracy_fake);
      const std::string base = part->name() + ".";
      out.values.emplace_back(base + "loss", report.loss);
      out.values.emplace_back(base + "accuracy_real", report.accuracy_real);
      out.values.emplace_back(base + "accuracy_fake", report.accuracy_fake);
      for (const auto& [name, value] : report.values) out.values.emplace_back(base + name, value);
    }
    if (losses.empty())
      return Reward::train_step(real_images, real_conditions, fake_images, fake_conditions, checks);
    out.loss = at::stack(losses).sum();
    out.accuracy_real = at::stack(real).mean();
    out.accuracy_fake = at::stack(fake).mean();
    return out;
  }

  int64_t wants_real() const override {
    int64_t most = 0;
    for (const auto& part : parts_) most = std::max(most, part->wants_real());
    return most;
  }
  void observe_real(const at::Tensor& images) override {
    for (const auto& part : parts_) part->observe_real(images);
  }
  void save(TensorMap& out, const std::string& prefix) const override {
    for (const auto& part : parts_) part->save(out, prefix + part->name() + ".");
  }
  void load(const TensorMap& in, const std::string& prefix, const std::string& where) override {
    for (const auto& part : parts_) part->load(in, prefix + part->name() + ".", where);
  }

 private:
  std::vector<std::unique_ptr<Reward>> parts_;
  std::vector<double> weights_;
  bool normalise_;
};

}  // namespace

std::unique_ptr<Reward> make_reward(const RewardConfig& config, const RewardContext& context) {
  config.validate();
  require(context.image_size >= 8, "image_size", ">= 8", context.image_size);
  if (context.text_width == 0) require(context.classes >= 1, "classes", ">= 1", context.classes);
  std::shared_ptr<FeatureNet> features;  // one for all kinds that want it
  std::vector<std::unique_ptr<Reward>> parts;
  for (const std::string& kind : config.kinds) {
    if (kind == "conv") {
      parts.push_back(make_adversarial_reward(kind, config, context, nullptr));
      continue;
    }
    if (kind == "projected") {
      parts.push_back(make_adversarial_reward(kind, config, context, load_vit(config, context)));
      continue;
    }
    if (!features) features = load_features(context, kind);
    if (kind == "features")
      parts.push_back(make_adversarial_reward(kind, config, context, features));
    else if (kind == "confidence")
      parts.push_back(make_confidence_reward(config, context, features));
    else
      parts.push_back(make_frechet_reward(config, context, frechet_networks(config, context, features)));
  }
  if (parts.size() == 1 && config.weights.empty() && !config.normalise) return std::move(parts[0]);
  return std::make_unique<SumReward>(config, std::move(parts));
}

}  // namespace adanat
