#include "policy/collapse_watch.h"

#include <algorithm>
#include <cmath>

#include "core/base/error.h"

namespace adanat {
namespace {

constexpr int64_t kWarningEvery = 100, kSameAfter = 50;
constexpr double kSameSpread = 1e-4;
constexpr const char* kSaturated =
    " tells every generated image from a real one, so its reward says little; lower "
    "reward.discriminator.learning_rate or discriminator_steps, or switch its augmentation on";

}  // namespace

std::vector<std::string> CollapseWatch::look(int64_t update, int64_t learned, double std,
                                             const std::map<std::string, double>& figures) {
  std::vector<std::string> out;
  const auto get = [&](const std::string& name) {
    const auto it = figures.find(name);
    return it == figures.end() ? std::nan("") : it->second;
  };
  const auto say = [&](const std::string& kind, const std::string& text) {
    const auto it = warned_.find(kind);
    if (it != warned_.end() && update - it->second < kWarningEvery) return;
    warned_[kind] = update;
    out.push_back(text);
  };
  if (get("clip_share") > 0.5)
    say("clip",
        "more than half of the decisions changed so much that they were clipped; lower ppo.learning_rate");
  // A sum's parts one by one: where one is saturated and another not, their mean hides it.
  bool in_parts = false;
  const std::string head = "discriminator/", real = ".accuracy_real";
  for (const auto& [key, accuracy] : figures) {
    if (!key.starts_with(head) || !key.ends_with(real)) continue;
    in_parts = true;
    const std::string part = key.substr(head.size(), key.size() - head.size() - real.size());
    if (accuracy > 0.99 && get(head + part + ".accuracy_fake") > 0.99)
      say("saturated " + part, cat("the discriminator ", part, kSaturated));
  }
  if (!in_parts && get("accuracy_real") > 0.99 && get("accuracy_fake") > 0.99)
    say("saturated", cat("the discriminator", kSaturated));
  if (std < 0.02)
    say("entropy", cat("the exploration is down to ", std,
                       ": the policy hardly tries anything new; raise exploration.floor"));
  const double spread = get("actions/spread");
  if (!shared_ && !std::isnan(spread)) {
    // A new policy's actions do not differ yet.
    const bool never = spread < kSameSpread && learned >= kSameAfter;
    if (never || (state_.widest_spread > 1e-3 && spread < 0.05 * state_.widest_spread))
      say("same", "the actions no longer differ between samples: the policy has become one shared schedule");
    state_.widest_spread = std::max(state_.widest_spread, spread);
  }
  const double perplexity = get("code_perplexity"), classes = get("classes_seen");
  if (state_.first_perplexity == 0 && perplexity > 0) state_.first_perplexity = perplexity;
  if (perplexity < 0.5 * state_.first_perplexity)
    say("codes", cat("the samples use far fewer codes than at the start (perplexity ", perplexity, ", was ",
                     state_.first_perplexity, "): they are losing variety"));
  if (state_.first_classes == 0 && classes > 0) state_.first_classes = classes;
  if (classes < 0.7 * state_.first_classes)
    say("classes", cat("classes are vanishing from the samples: ", classes, " recognised, ",
                       state_.first_classes, " at the start"));
  return out;
}

}  // namespace adanat
