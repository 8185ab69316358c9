// Rewards without training: the classifier's confidence, and the metric itself.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <optional>

#include "policy/reward_kinds.h"

namespace adanat {
namespace {

using Networks = std::vector<std::shared_ptr<FeatureNet>>;

// The same taps of several networks over a batch of any size, side by side: (B, D), spatial ones averaged
// over 2x2. `widths`, where it is given: the columns of each tap of each network.
at::Tensor joined_taps(const Networks& nets, const std::vector<std::string>& taps, const at::Tensor& images,
                       int64_t at_once, std::vector<int64_t>* widths = nullptr) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < images.size(0); begin += at_once) {
    const at::Tensor some = images.narrow(0, begin, std::min(at_once, images.size(0) - begin));
    std::vector<at::Tensor> columns;
    for (const auto& net : nets)
      for (const at::Tensor& value : net->forward(some, taps))
        columns.push_back(value.dim() == 4 ? at::adaptive_avg_pool2d(value, {2, 2}).flatten(1) : value);
    parts.push_back(at::cat(columns, 1));
    if (widths == nullptr) continue;
    widths->clear();
    for (const at::Tensor& column : columns) widths->push_back(column.size(1));
  }
  return at::cat(parts);
}

// One tap of a network over a batch of any size.
at::Tensor tap_of(FeatureNet& net, const std::string& tap, const at::Tensor& images, int64_t at_once) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < images.size(0); begin += at_once)
    parts.push_back(
        net.forward(images.narrow(0, begin, std::min(at_once, images.size(0) - begin)), {tap})[0]);
  return at::cat(parts);
}

void require_tap(const FeatureNet& net, const std::string& reward, const std::string& tap) {
  const std::vector<std::string> taps = net.taps();
  if (std::find(taps.begin(), taps.end(), tap) == taps.end())
    throw InputError(cat("reward ", reward, ": needs a features network with the tap ", tap,
                         " (a classifier), got a ", net.kind()));
}

class ConfidenceReward : public Reward {
 public:
  ConfidenceReward(const RewardConfig& config, const RewardContext& context, std::shared_ptr<FeatureNet> net)
      : at_once_(config.score_batch), context_(context), net_(std::move(net)) {
    if (context.text_width > 0)
      throw InputError("reward confidence: needs class conditions; for text use projected, features or conv");
    require_tap(*net_, name(), "logits");
    const at::Tensor blank = at::full({1, 3, context.image_size, context.image_size}, 0.5,
                                      at::TensorOptions(at::kFloat).device(context.device));
    const int64_t known = tap_of(*net_, "logits", blank, 1).size(1);
    if (known != context.classes)
      throw InputError(cat("reward confidence: the features network knows ", known,
                           " classes, the generator ", context.classes,
                           "; use a network trained on the same classes"));
  }
  std::string name() const override { return "confidence"; }
  at::Tensor score(const at::Tensor& images, const at::Tensor& conditions, DeferredChecks& checks) override {
    check_reward_batch(name(), context_, images, conditions);
    const at::NoGradGuard no_grad;
    const at::Tensor probability = at::softmax(tap_of(*net_, "logits", images, at_once_), 1);
    return checked_scores(name(), probability.gather(1, conditions.unsqueeze(1)).squeeze(1), checks);
  }

 private:
  int64_t at_once_;
  RewardContext context_;
  std::shared_ptr<FeatureNet> net_;
};

// Statistics of what `before` and `now` describe together, where `before` counts for at most `memory` rows.
GaussianStats blended(const std::optional<GaussianStats>& before, const GaussianStats& now, int64_t memory) {
  if (!before) return now;
  const double old_rows = double(std::min(before->count, memory)), new_rows = double(now.count);
  const double share = new_rows / (old_rows + new_rows);
  const at::Tensor gap = now.mean - before->mean;
  const at::Tensor between = gap.unsqueeze(1) * gap.unsqueeze(0) * (share * (1 - share));
  return {int64_t(old_rows) + now.count, before->mean + gap * share,
          before->covariance * (1 - share) + now.covariance * share + between};
}

class FrechetReward : public Reward {
 public:
  FrechetReward(const RewardConfig& config, const RewardContext& context, Networks nets)
      : taps_(config.frechet_taps),
        share_(config.frechet_share),
        wanted_(config.frechet_images),
        at_once_(config.score_batch),
        memory_(config.frechet_memory),
        context_(context),
        nets_(std::move(nets)) {
    for (const auto& net : nets_)
      for (const std::string& tap : taps_) require_tap(*net, name(), tap);
    const at::Tensor blank = at::full({1, 3, context_.image_size, context_.image_size}, 0.5,
                                      at::TensorOptions(at::kFloat).device(context_.device));
    joined_taps(nets_, taps_, blank, 1, &widths_);
  }
  std::string name() const override { return "frechet"; }

  int64_t wants_real() const override { return real_ ? 0 : wanted_ - (seen_ ? seen_->count() : 0); }

  void observe_real(const at::Tensor& images) override {
    const int64_t rows = std::min(wants_real(), images.size(0));
    if (rows < 1) return;
    const at::Tensor features = joined_taps(nets_, taps_, images.narrow(0, 0, rows), at_once_);
    if (!seen_) seen_.emplace(features.size(1));
    seen_->add(features);
    if (seen_->count() >= wanted_) compare_with(seen_->stats());
  }

  at::Tensor score(const at::Tensor& images, const at::Tensor& conditions, DeferredChecks& checks) override {
    check_reward_batch(name(), context_, images, conditions);
    const int64_t b = images.size(0), least = share_ == "batch" ? 2 : 3;
    if (b < least)
      throw InputError(cat("reward frechet: needs at least ", least, " images at once, got ", b));
    if (!real_) {
      if (!seen_ || seen_->count() < 2)
        throw RunError("reward frechet: scores before it has seen real images; give it some (observe_real)");
      compare_with(seen_->stats());  // the data held fewer images than wanted
    }
    const at::Tensor features = joined_taps(nets_, taps_, images, at_once_).cpu().to(at::kDouble) * scale_;
    at::Tensor scores;
    if (share_ == "batch" || share_ == "running") {
      GaussianAccumulator batch(features.size(1));
      batch.add(features);
      if (share_ == "batch") {
        scores = at::full({b}, -frechet_distance(batch.stats(), *real_), at::kFloat);
      } else {
        made_ = blended(made_, batch.stats(), memory_);
        scores = -frechet_influence(features, *made_, *real_).to(at::kFloat);
      }
    } else {
      scores = frechet_pseudo_values(features, *real_).to(at::kFloat);
    }
    return checked_scores(name(), scores.to(images.device()), checks);
  }

  void save(TensorMap& out, const std::string& prefix) const override {
    out[prefix + "networks"] = hashes();
    std::optional<GaussianStats> real = measured_;
    if (!real && seen_ && seen_->count() >= 2) real = seen_->stats();
    out[prefix + "real_count"] = at::scalar_tensor(real ? real->count : 0, at::kLong);
    if (!real) return;
    out[prefix + "real_mean"] = real->mean;
    out[prefix + "real_covariance"] = real->covariance;
    if (share_ != "running") return;
    out[prefix + "made_count"] = at::scalar_tensor(made_ ? made_->count : 0, at::kLong);
    if (!made_) return;
    out[prefix + "made_mean"] = made_->mean;
    out[prefix + "made_covariance"] = made_->covariance;
  }

  void load(const TensorMap& in, const std::string& prefix, const std::string& where) override {
    const auto take = [&](const std::string& key, int64_t dim, at::ScalarType type) {
      const auto found = in.find(prefix + key);
      if (found == in.end()) throw InputError(cat(where, ": lacks the tensor ", prefix, key));
      if (found->second.dim() != dim || found->second.scalar_type() != type)
        throw InputError(cat(where, ": ", prefix, key, " has type ", found->second.scalar_type(),
                             " and shape ", found->second.sizes(), ", wanted ", type, " of ", dim,
                             " dimensions"));
      return found->second.cpu().clone();
    };
    const auto take_stats = [&](const std::string& of) -> std::optional<GaussianStats> {
      const int64_t count = take(of + "_count", 0, at::kLong).item<int64_t>();
      if (count == 0) return std::nullopt;
      GaussianStats stats{count, take(of + "_mean", 1, at::kDouble),
                          take(of + "_covariance", 2, at::kDouble)};
      const int64_t d = stats.mean.size(0);
      if (count < 2 || stats.covariance.sizes() != at::IntArrayRef({d, d}))
        throw InputError(cat(where, ": ", prefix, of, "_covariance has shape ", stats.covariance.sizes(),
                             " of ", count, " images, wanted (", d, ", ", d, ") of 2 or more"));
      return stats;
    };
    if (!take("networks", 1, at::kByte).equal(hashes()))
      throw InputError(cat(where, ": reward frechet: was trained on other networks; give the same features ",
                           "network and frechet_networks as then"));
    seen_.reset();
    measured_.reset();
    if (const auto real = take_stats("real")) {
      const int64_t wanted = std::accumulate(widths_.begin(), widths_.end(), int64_t{0});
      if (real->mean.size(0) != wanted)
        throw InputError(
            cat(where, ": ", prefix, "real_mean has ", real->mean.size(0), " features, the taps ", wanted));
      compare_with(*real);
    }
    made_ = real_ && share_ == "running" ? take_stats("made") : std::nullopt;
    if (made_ && made_->mean.size(0) != real_->mean.size(0))
      throw InputError(cat(where, ": ", prefix, "made_mean has ", made_->mean.size(0),
                           " features, real_mean ", real_->mean.size(0)));
  }

 private:
  void compare_with(const GaussianStats& measured) {
    measured_ = measured;
    scale_ = at::ones({measured.mean.size(0)}, at::kDouble);
    int64_t begin = 0;
    for (const int64_t width : widths_) {
      const double variance = measured.covariance.diagonal().narrow(0, begin, width).sum().item<double>();
      if (widths_.size() > 1 && variance > 0) scale_.narrow(0, begin, width).fill_(1 / std::sqrt(variance));
      begin += width;
    }
    real_ = {measured.count, measured.mean * scale_, measured.covariance * scale_.unsqueeze(1) * scale_};
  }

  at::Tensor hashes() const {
    std::string all;
    for (const auto& net : nets_) all += net->file_hash();
    return bytes_tensor(all);
  }

  std::vector<std::string> taps_;
  std::vector<int64_t> widths_;  // of the taps of each network
  std::string share_;
  int64_t wanted_, at_once_, memory_;
  RewardContext context_;
  Networks nets_;
  std::optional<GaussianAccumulator> seen_;
  at::Tensor scale_;                          // (D) f64, of each feature
  std::optional<GaussianStats> measured_;     // of the real images, as the network gives them
  std::optional<GaussianStats> real_, made_;  // scaled; made_: of the images scored so far (running)
};

}  // namespace

at::Tensor frechet_pseudo_values(const at::Tensor& features, const GaussianStats& real) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = features.detach().cpu().to(at::kDouble);
  const int64_t count = x.size(0), d = x.size(1);
  if (count < 3) throw RunError(cat("frechet_pseudo_values: needs at least 3 rows, got ", count));
  if (real.mean.size(0) != d)
    throw RunError(
        cat("frechet_pseudo_values: ", d, " features against ", real.mean.size(0), " of the real images"));
  const double n = double(count);
  const at::Tensor mean = x.mean(0), off = x - mean;
  const at::Tensor covariance = at::matmul(off.t(), off) / (n - 1);

  const auto [real_values, real_vectors] = at::linalg_eigh(real.covariance);
  const at::Tensor real_root = at::matmul(real_vectors * real_values.clamp_min(0).sqrt(), real_vectors.t());
  const at::Tensor between = at::matmul(at::matmul(real_root, covariance), real_root);
  const auto [raw_values, vectors] = at::linalg_eigh((between + between.t()) / 2);
  const at::Tensor values = raw_values.clamp_min(0);
  const double root_trace = values.sqrt().sum().item<double>(), largest = values[d - 1].item<double>();
  const double real_trace = real.covariance.trace().item<double>(), trace = covariance.trace().item<double>();
  const at::Tensor gap = mean - real.mean;
  const double whole = gap.square().sum().item<double>() + trace + real_trace - 2 * root_trace;

  // Without row i: mean - off_i / (n-1), covariance c * (S - a off_i off_i^T).
  const double c = (n - 1) / (n - 2), a = n / ((n - 1) * (n - 1));
  const at::Tensor shares = at::matmul(at::matmul(off, real_root), vectors).square() * a;  // (n, d)
  at::Tensor change = at::full({count}, 0.0, at::kDouble);
  if (largest > 0) {
    // Trapezoids over u = log s. The integrand is analytic within |Im u| < pi/2, so steps of 0.3 leave about
    // exp(-pi^2 / 0.3) = 5e-15; below 1e-9 of the largest root nothing is left, above 1e6 of it the tail is
    // -q/s^2.
    const double step = 0.3, scale = std::sqrt(largest), first = std::log(1e-9), last = std::log(1e6);
    const int64_t nodes = int64_t(std::ceil((last - first) / step)) + 1;
    const at::Tensor s = (at::arange(nodes, at::kDouble) * step + first).exp() * scale, squared = s.square();
    const at::Tensor kernel = 1 / (values.unsqueeze(1) + squared.unsqueeze(0));  // (d, nodes)
    // The ratio of determinants is at least s^2 / (s^2 + largest) because eigenvalues interlace; rounding
    // goes below.
    const at::Tensor ratio =
        at::maximum(1 - at::matmul(shares, kernel), (squared / (squared + largest)).unsqueeze(0));
    const double end = s[nodes - 1].item<double>();
    at::Tensor weight = s * (step / std::numbers::pi);
    weight[nodes - 1] *= 0.5;
    change = at::matmul(ratio.log(), weight) - shares.sum(1) / (std::numbers::pi * end);
  }
  const at::Tensor left_gap = (gap.unsqueeze(0) - off / (n - 1)).square().sum(1);
  const at::Tensor left_trace = (trace - a * off.square().sum(1)) * c;
  const at::Tensor left = left_gap + left_trace + real_trace - 2 * std::sqrt(c) * (root_trace + change);
  return (n - 1) * left - n * whole;
}

at::Tensor frechet_influence(const at::Tensor& features, const GaussianStats& made,
                             const GaussianStats& real) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = features.detach().cpu().to(at::kDouble);
  const int64_t d = real.mean.size(0);
  if (x.size(1) != d || made.mean.size(0) != d)
    throw RunError(cat("frechet_influence: ", x.size(1), " features against ", made.mean.size(0),
                       " of the images made and ", d, " of the real ones"));
  const auto [real_values, real_vectors] = at::linalg_eigh(real.covariance);
  const at::Tensor real_root = at::matmul(real_vectors * real_values.clamp_min(0).sqrt(), real_vectors.t());
  // A millionth of R joins S, so that A stays below 1000 where the images made do not vary at all.
  // Eigenvalues that are rounding of 0 have no direction of their own.
  const at::Tensor spread = made.covariance + real.covariance * 1e-6;
  const at::Tensor between = at::matmul(at::matmul(real_root, spread), real_root);
  const auto [values, vectors] = at::linalg_eigh((between + between.t()) / 2);
  const double least = std::max(1e-15 * values[d - 1].item<double>(), 1e-300);
  const at::Tensor half = at::matmul(real_root, vectors) * values.clamp_min(least).pow(-0.25);
  const at::Tensor off = x - made.mean;
  const at::Tensor moved = at::matmul(off, half).square().sum(1);  // off^T A off
  return 2 * at::matmul(off, made.mean - real.mean) + off.square().sum(1) - moved -
         (made.covariance.trace() - at::matmul(at::matmul(half.t(), made.covariance), half).trace());
}

std::unique_ptr<Reward> make_confidence_reward(const RewardConfig& config, const RewardContext& context,
                                               std::shared_ptr<FeatureNet> net) {
  return std::make_unique<ConfidenceReward>(config, context, std::move(net));
}

std::unique_ptr<Reward> make_frechet_reward(const RewardConfig& config, const RewardContext& context,
                                            std::vector<std::shared_ptr<FeatureNet>> nets) {
  return std::make_unique<FrechetReward>(config, context, std::move(nets));
}

}  // namespace adanat
