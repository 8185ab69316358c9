#include "core/base/list_names.h"

#include "core/base/error.h"

namespace adanat {

std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t kListed = 8;
  std::string text;
  for (size_t i = 0; i < names.size() && i < kListed; ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > kListed) text += cat(" and ", names.size() - kListed, " more");
  return text;
}

}  // namespace adanat
