// Base64 of either alphabet: "+/" or the one safe in addresses, "-_".
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace adanat {

// Padding may be left out. Empty for anything that is no base64.
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace adanat
