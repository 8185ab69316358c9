// The kinds of rewards one by one, for the factory in policy/reward.h.
#pragma once
#include <memory>
#include <string>

#include "core/features/feature_net.h"
#include "core/metrics/frechet.h"
#include "policy/reward.h"

namespace adanat {

// Checks what Reward::score and train_step promise to check; `name` is the reward's.
void check_reward_batch(const std::string& name, const RewardContext& context, const at::Tensor& images,
                        const at::Tensor& conditions);
// Returns `scores`; notes where one is not finite.
at::Tensor checked_scores(const std::string& name, const at::Tensor& scores, DeferredChecks& checks);
// The characters of `text` (a file's hash) as a tensor (n) u8, so that a checkpoint can hold them.
at::Tensor bytes_tensor(const std::string& text);

// Rewards with a discriminator: heads on `net` where there is one ("projected" on a ViT's taps, "features" on
// config.taps of another network), a convolutional one where it is null.
std::unique_ptr<Reward> make_adversarial_reward(const std::string& name, const RewardConfig& config,
                                                const RewardContext& context,
                                                std::shared_ptr<FeatureNet> net);
// Probability of the wanted class under the network's logits. Class conditions only.
std::unique_ptr<Reward> make_confidence_reward(const RewardConfig& config, const RewardContext& context,
                                               std::shared_ptr<FeatureNet> net);
// Minus the Frechet distance between what is scored and observed real images under config.frechet_taps of all
// `nets` (at least one) side by side, shared out by config.frechet_share.
std::unique_ptr<Reward> make_frechet_reward(const RewardConfig& config, const RewardContext& context,
                                            std::vector<std::shared_ptr<FeatureNet>> nets);

// What each row of features (B, D), B >= 3, contributes to minus the Frechet distance F between the batch and
// `real`: the jackknife pseudo-values (B - 1) * F(without row i) - B * F(all), (B) f64 on the CPU. Their mean
// is the jackknife's estimate of -F without the bias of a small batch. Exact up to rounding (about 1e-6 of
// the roots' traces), and cheap: leaving out a row is a rank-one change of M = R^1/2 S R^1/2, and the trace
// of its root changes by
//   1/pi * integral over s > 0 of log(det(s^2 + M - a v v^T) / det(s^2 + M)) ds,
// the ratio of determinants being 1 - a v^T (s^2 + M)^-1 v. One eigen-decomposition for all rows, 116 nodes.
at::Tensor frechet_pseudo_values(const at::Tensor& features, const GaussianStats& real);

// How fast the Frechet distance between `made` and `real` grows when more rows like x, each row of features
// (B, D), join `made`: its first variation in that direction,
//   2 (m - r)^T (x - m) + (x - m)^T (I - A) (x - m) - tr((I - A) S)
// with m, S the moments of `made`, r, R those of `real`, and A = R^1/2 (R^1/2 S R^1/2)^-1/2 R^1/2 the optimal
// transport from one to the other (Takatsu 2011, "Wasserstein geometry of Gaussian measures"). (B) f64 on the
// CPU; mean 0 over the rows that `made` describes. S is taken with a millionth of R, which bounds A
// where S is singular.
at::Tensor frechet_influence(const at::Tensor& features, const GaussianStats& made,
                             const GaussianStats& real);

}  // namespace adanat
