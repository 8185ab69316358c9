// The order of the items in an epoch and which of them are mirrored: Note [Data order] in loader.h.
#pragma once
#include <cstdint>
#include <vector>

namespace adanat {

// A permutation of 0..size-1, the same for equal arguments everywhere.
std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t size);

// Whether an item is mirrored in an epoch: a fair coin.
bool is_flipped(uint64_t seed, int64_t epoch, int64_t item);

}  // namespace adanat
