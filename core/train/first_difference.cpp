#include "core/train/first_difference.h"

namespace adanat {
namespace {

std::optional<Difference> difference_below(const Json& first, const Json& second, const std::string& path,
                                           const std::set<std::string>& ignored) {
  if (!first.is_object() || !second.is_object()) {
    if (first == second) return std::nullopt;
    return Difference{path, first, second};
  }
  const auto name = [&](const std::string& key) { return path.empty() ? key : path + "." + key; };
  for (const auto& item : first.items()) {
    if (ignored.contains(name(item.key()))) continue;
    if (!second.contains(item.key())) return Difference{name(item.key()), item.value(), nullptr};
    if (auto below = difference_below(item.value(), second.at(item.key()), name(item.key()), ignored))
      return below;
  }
  for (const auto& item : second.items())
    if (!first.contains(item.key()) && !ignored.contains(name(item.key())))
      return Difference{name(item.key()), nullptr, item.value()};
  return std::nullopt;
}

}  // namespace

std::optional<Difference> first_difference(const Json& first, const Json& second,
                                           const std::set<std::string>& ignored) {
  return difference_below(first, second, "", ignored);
}

}  // namespace adanat
