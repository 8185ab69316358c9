// How far two words are from each other, for "did you mean".
#pragma once
#include <cstddef>
#include <string>

namespace adanat {

// The least number of characters to insert, take out or replace that turns `a` into `b` (bytes, not code
// points).
size_t edit_distance(const std::string& a, const std::string& b);

}  // namespace adanat
