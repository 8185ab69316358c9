// Rewards that are discriminators: trained beside the policy to tell its images from real ones.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>

#include "core/nn/module_state.h"
#include "core/train/optimizer.h"
#include "policy/discriminator.h"
#include "policy/reward_kinds.h"

namespace adanat {
namespace {

class AdversarialReward : public Reward {
 public:
  AdversarialReward(std::string name, const RewardConfig& config, const RewardContext& context,
                    std::shared_ptr<FeatureNet> net)
      : name_(std::move(name)),
        config_(config.discriminator),
        score_batch_(config.score_batch),
        context_(context),
        net_(std::move(net)),
        generator_(at::detail::createCPUGenerator(context.seed)) {
    const ConditionShape condition{.classes = context.classes, .text_width = context.text_width};
    if (net_) {
      taps_ = chosen_taps(config.taps);
      if (net_->kind() == "vit") crop_ = net_->image_size();
      heads_ = std::make_shared<ProjectedDiscriminator>(tap_channels(), condition, config.mapping_width);
    } else {
      conv_ = std::make_shared<ConvDiscriminator>(context.image_size, config.conv_width, condition);
    }
    module().to(context.device);
    optimizer_ = std::make_unique<Optimizer>(named_parameters(module()),
                                             OptimizerConfig{.learning_rate = config_.learning_rate,
                                                             .weight_decay = 0,
                                                             .beta1 = config_.beta1,
                                                             .beta2 = config_.beta2,
                                                             .warmup = 0});
  }

  std::string name() const override { return name_; }
  bool trains() const override { return true; }

  at::Tensor score(const at::Tensor& images, const at::Tensor& conditions, DeferredChecks& checks) override {
    check_reward_batch(name_, context_, images, conditions);
    const at::NoGradGuard no_grad;
    module().eval();
    const auto window = draw_crop();
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; begin < images.size(0); begin += score_batch_) {
      const int64_t rows = std::min(score_batch_, images.size(0) - begin);
      const at::Tensor seen = cropped(images.narrow(0, begin, rows), window);
      const at::Tensor mean = logits(seen, conditions.narrow(0, begin, rows)).mean(1);
      parts.push_back(config_.output == "sigmoid" ? at::sigmoid(mean) : mean);
    }
    return checked_scores(name_, at::cat(parts), checks);
  }

  RewardReport train_step(const at::Tensor& real_images, const at::Tensor& real_conditions,
                          const at::Tensor& fake_images, const at::Tensor& fake_conditions,
                          DeferredChecks& checks) override {
    check_reward_batch(name_, context_, real_images, real_conditions);
    check_reward_batch(name_, context_, fake_images, fake_conditions);
    const at::AutoGradMode with_grad(true);
    module().train();
    const std::vector<at::Tensor> buffers = module().buffers();
    std::vector<at::Tensor> before;
    for (const at::Tensor& buffer : buffers) before.push_back(buffer.clone());
    // The real batch first: each forward turns the spectral norms' vectors once.
    const at::Tensor real = logits(training_view(real_images.detach()), real_conditions);
    const at::Tensor fake = logits(training_view(fake_images.detach()), fake_conditions);
    const at::Tensor loss = discriminator_loss(config_.loss, real, fake);
    loss.backward();
    std::vector<at::Tensor> gradients;
    for (const auto& [key, parameter] : optimizer_->parameters())
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    const at::Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients)));
    const at::NoGradGuard no_grad;
    const at::Tensor fine = at::isfinite(loss.detach() + norm);
    const at::Tensor skipped = checks.failed_with(fine);
    optimizer_->step(config_.learning_rate, skipped);
    for (size_t i = 0; i < buffers.size(); ++i)
      buffers[i].copy_(at::where(skipped == 0, buffers[i], before[i]));
    checks.expect(fine, [name = name_](int64_t) {
      return cat("reward ", name,
                 ": the loss or its gradient is not finite; go back to an earlier checkpoint, ",
                 "or lower the reward's learning_rate");
    });
    const at::Tensor real_mean = real.detach().mean(1), fake_mean = fake.detach().mean(1);
    RewardReport report;
    report.loss = loss.detach();
    report.accuracy_real = (real_mean > 0).to(at::kFloat).mean();
    report.accuracy_fake = (fake_mean < 0).to(at::kFloat).mean();
    report.values = {
        {"score_real", real_mean.mean()}, {"score_fake", fake_mean.mean()}, {"gradient_norm", norm}};
    return report;
  }

  void save(TensorMap& out, const std::string& prefix) const override {
    for (const auto& [key, tensor] : module_state(module())) out[prefix + "model." + key] = tensor;
    optimizer_->save(out, prefix + "optimizer.");
    out[prefix + "random"] = generator_.get_state();
    if (net_) out[prefix + "network"] = hash_tensor();
  }

  void load(const TensorMap& in, const std::string& prefix, const std::string& where) override {
    const auto take = [&](const std::string& key, const at::Tensor& like) {
      const auto found = in.find(prefix + key);
      if (found == in.end()) throw InputError(cat(where, ": lacks the tensor ", prefix, key));
      if (found->second.sizes() != like.sizes() || found->second.scalar_type() != at::kByte)
        throw InputError(cat(where, ": ", prefix, key, " has type ", found->second.scalar_type(),
                             " and shape ", found->second.sizes(), ", wanted bytes of shape ", like.sizes()));
      return found->second.cpu().clone();
    };
    if (net_ && !take("network", hash_tensor()).equal(hash_tensor()))
      throw InputError(cat(where, ": was trained on another network than the one of reward ", name_,
                           "; resume with the file it was started with"));
    TensorMap model;
    const std::string base = prefix + "model.";
    for (const auto& [key, tensor] : in)
      if (key.starts_with(base)) model[key.substr(base.size())] = tensor;
    const at::NoGradGuard no_grad;
    load_module_state(module(), model, where + ": reward " + name_);
    optimizer_->load(in, prefix + "optimizer.", where);
    generator_.set_state(take("random", generator_.get_state()));
  }

 private:
  struct Window {
    int64_t top, left;
  };

  torch::nn::Module& module() const { return conv_ ? static_cast<torch::nn::Module&>(*conv_) : *heads_; }

  // ViT: the blocks in order, then the position embedding (the reference's order of heads). Else: what was
  // asked for, or every spatial tap but the first, which knows little more than the pixels and costs most.
  std::vector<std::string> chosen_taps(const std::vector<std::string>& asked) const {
    std::vector<std::string> taps = net_->taps();
    if (net_->kind() == "vit") {
      std::rotate(taps.begin(), taps.begin() + 1, taps.end());
      return taps;
    }
    std::erase_if(taps, [](const std::string& tap) { return tap == "pool" || tap == "logits"; });
    if (asked.empty()) {
      if (taps.size() > 1) taps.erase(taps.begin());
      return taps;
    }
    for (const std::string& tap : asked)
      if (std::find(taps.begin(), taps.end(), tap) == taps.end()) {
        std::string known;
        for (const std::string& name : taps) known += (known.empty() ? "" : ", ") + name;
        throw InputError(cat("reward ", name_, ": taps: no spatial tap ", tap, "; the network has ", known));
      }
    return asked;
  }

  // Seen from an empty image: a network's file need not say how wide its taps are.
  std::vector<int64_t> tap_channels() const {
    const at::NoGradGuard no_grad;
    const int64_t side = context_.image_size;
    const auto seen = net_->forward(at::zeros({1, 3, side, side}, at::TensorOptions(context_.device)), taps_);
    std::vector<int64_t> channels;
    for (size_t i = 0; i < seen.size(); ++i) {
      if (seen[i].size(2) * seen[i].size(3) < 4)
        throw InputError(cat("reward ", name_, ": taps: ", taps_[i], " has ",
                             seen[i].size(2) * seen[i].size(3),
                             " positions, a head needs at least 4; leave it out"));
      channels.push_back(seen[i].size(1));
    }
    return channels;
  }

  at::Tensor logits(const at::Tensor& images, const at::Tensor& conditions) {
    if (conv_) return conv_->forward(images, conditions);
    std::vector<at::Tensor> taps;
    {
      const at::NoGradGuard no_grad;  // frozen: nothing before the heads is ever trained here
      taps = net_->forward(images, taps_);
    }
    for (at::Tensor& tap : taps) tap = tap.flatten(2);
    return heads_->forward(taps, conditions);
  }

  // Images larger than the ViT's are cut to its size half of the time, one window for the whole batch, in
  // evaluation too; otherwise they are resized as a whole. Smaller ones draw nothing.
  std::optional<Window> draw_crop() {
    const int64_t room = context_.image_size - crop_;
    if (crop_ == 0 || room <= 0) return std::nullopt;
    if (at::rand({}, generator_, at::kFloat).item<float>() >= 0.5f) return std::nullopt;
    const at::Tensor corner = at::randint(0, room + 1, {2}, generator_, at::kLong);
    return Window{corner[0].item<int64_t>(), corner[1].item<int64_t>()};
  }

  at::Tensor cropped(const at::Tensor& images, const std::optional<Window>& window) const {
    return window ? images.narrow(2, window->top, crop_).narrow(3, window->left, crop_) : images;
  }

  at::Tensor training_view(const at::Tensor& images) {
    const at::Tensor changed =
        config_.augment.any() ? diff_augment(images, config_.augment, generator_) : images;
    return cropped(changed, draw_crop());
  }

  at::Tensor hash_tensor() const { return bytes_tensor(net_->file_hash()); }

  std::string name_;
  DiscriminatorTrainConfig config_;
  int64_t score_batch_;
  RewardContext context_;
  std::shared_ptr<FeatureNet> net_;
  int64_t crop_ = 0;  // side of the crop; 0 = never
  std::vector<std::string> taps_;
  std::shared_ptr<ProjectedDiscriminator> heads_;
  std::shared_ptr<ConvDiscriminator> conv_;
  std::unique_ptr<Optimizer> optimizer_;
  at::Generator generator_;
};

}  // namespace

std::unique_ptr<Reward> make_adversarial_reward(const std::string& name, const RewardConfig& config,
                                                const RewardContext& context,
                                                std::shared_ptr<FeatureNet> net) {
  return std::make_unique<AdversarialReward>(name, config, context, std::move(net));
}

}  // namespace adanat
