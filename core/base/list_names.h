// Many names in one line of a message.
#pragma once
#include <string>
#include <vector>

namespace adanat {

// "a, b and 3 more": at most eight of them.
std::string list_names(const std::vector<std::string>& names);

}  // namespace adanat
