// Many names, or numbers, in one line of a message.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace adanat {

// All names with commas between them, in their order. Names that differ in one dotted number alone are
// written once, where the first of them stands: "in_blocks.{0-5}.norm1.bias",
// "up.{0-4}.block.{0,1}.conv1.weight". The first number of a name is folded first, then the next among what
// is equal besides, six in all. Of what is longer than 100 names even so the rest is counted: "..., z.bias
// and 20 more".
std::string list_names(const std::vector<std::string>& names);

// "0,2-4" of numbers in rising order: ranges from three on. After 64 of either "...".
std::string list_numbers(const std::vector<int64_t>& numbers);

}  // namespace adanat
