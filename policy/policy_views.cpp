#include "policy/policy_views.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <set>

#include "policy/rollout.h"
#include "policy/schedule_plot.h"

namespace adanat {
namespace {

constexpr const char* kActionFiles[] = {"mask-ratio", "remask-temperature", "sampling-temperature",
                                        "guidance"};
constexpr int64_t kSampleSeed = 42;
constexpr int64_t kPlotSamples = 256;

}  // namespace

PolicyViews::PolicyViews(PolicyEnvironment& environment, PolicySettings settings, PolicyNetwork before,
                         ViewOptions options)
    : env_(environment), settings_(std::move(settings)), before_(std::move(before)), options_(options) {}

Scalars PolicyViews::evaluate(const PolicyNetwork& now) {
  const at::NoGradGuard no_grad;
  Scalars out;
  for (const int64_t steps : shown_steps()) {
    const std::string tail = settings_.any_steps() ? cat("_T", steps) : std::string();
    out.emplace_back("features_fd" + tail, features_distance(now, steps));
    const auto [before, fresh] = distance_before_.try_emplace(steps, 0);
    if (fresh) before->second = features_distance(before_, steps);
    out.emplace_back("features_fd_before" + tail, before->second);
  }
  return out;
}

std::vector<NamedImage> PolicyViews::samples(const PolicyNetwork& now) {
  std::vector<NamedImage> out;
  const at::NoGradGuard no_grad;
  for (const int64_t steps : shown_steps()) {
    const std::string tail = settings_.any_steps() ? cat("-T", steps) : std::string();
    const auto [images, actions] = show(now, steps);
    const auto [images_before, actions_before] = show(before_, steps);
    if (env_.parts().grid) {
      out.push_back({"samples" + tail, env_.parts().grid(images)});
      out.push_back({"samples-before" + tail, env_.parts().grid(images_before)});
    }
    for (int64_t a = 0; a < 4; ++a)
      out.push_back({cat("schedule-", kActionFiles[a], tail), plot_action(actions, actions_before, a)});
  }
  return out;
}

// Numbers of steps that samples and evaluations show.
std::vector<int64_t> PolicyViews::shown_steps() const {
  if (!settings_.any_steps()) return {settings_.steps};
  std::set<int64_t> out = {settings_.min_steps, settings_.max_steps};
  for (const int64_t steps : {4, 8})
    if (settings_.fits(steps)) out.insert(steps);
  return {out.begin(), out.end()};
}

// Images (bytes) of the same seeds each time and the actions (T, B, 4) behind them.
std::pair<at::Tensor, at::Tensor> PolicyViews::show(const PolicyNetwork& actor, int64_t steps) {
  const int64_t classes = env_.takes_texts() ? 16 : env_.sizes().classes, count = kPlotSamples;
  const int64_t shown = std::min<int64_t>(64, std::max<int64_t>(16, classes));
  const PolicySchedule policy(settings_, actor, steps, env_.device());
  std::vector<at::Tensor> actions, images;
  for (int64_t begin = 0; begin < count; begin += options_.batch) {
    const at::Tensor index = env_.arange(begin, std::min(options_.batch, count - begin));
    const RolloutSchedule schedule(policy, {}, 0, false);
    const SamplerStart start = env_.start_of(env_.in_turn(index, count, classes), kSampleSeed, index);
    const at::Tensor tokens = sample(env_.generator(), start, schedule);
    actions.push_back(schedule.decisions().mean_actions.cpu());
    if (begin < shown)
      images.push_back(env_.decode(tokens.narrow(0, 0, std::min(shown - begin, tokens.size(0)))));
  }
  return {(at::cat(images) * 255).round().to(at::kByte).cpu(), at::cat(actions, 1)};
}

double PolicyViews::features_distance(const PolicyNetwork& actor, int64_t steps) {
  const GaussianStats& real = real_stats();
  const PolicySchedule schedule(settings_, actor, steps, env_.device());
  GaussianAccumulator made(real.mean.size(0));
  for (int64_t begin = 0; begin < options_.evaluated_images; begin += options_.batch) {
    const at::Tensor index = env_.arange(begin, std::min(options_.batch, options_.evaluated_images - begin));
    const SamplerStart start =
        env_.start_of(env_.spread(index, options_.evaluated_images), kSampleSeed, index);
    made.add(pooled(env_.decode(sample(env_.generator(), start, schedule))));
  }
  return frechet_distance(made.stats(), real);
}

const GaussianStats& PolicyViews::real_stats() {
  if (real_stats_) return *real_stats_;
  LoaderOptions options;
  options.image_size = env_.image_size();
  options.threads = options_.threads;
  options.shuffle = false, options.drop_last = false;
  options.batch_size = std::min(options_.decode_batch, env_.data().size());
  Loader loader(env_.shared_data(), options);
  std::optional<GaussianAccumulator> all;
  for (int64_t i = 0; i < loader.batches_per_epoch(); ++i) {
    const at::Tensor features = pooled(loader.batch(i).images.to(env_.device()).to(at::kFloat) / 255);
    if (!all) all.emplace(features.size(1));
    all->add(features);
  }
  return real_stats_.emplace(all->stats());
}

at::Tensor PolicyViews::pooled(const at::Tensor& images) {
  return env_.parts().features->forward(images, {"pool"})[0];
}

}  // namespace adanat
