// The objects of a pickle as tensors and plain values under dotted paths (inside core/io only).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/io/pickle.h"
#include "core/io/pth.h"

namespace adanat {

struct PthTree {
  std::vector<PthTensor> tensors;  // in the order of the pickle
  std::map<std::string, size_t, std::less<>> index;
  std::map<std::string, PthScalar> scalars;
  uint64_t left_out = 0;  // plain values beyond what may be kept
};

// Walks from the root; what an object of an unknown name was made from stands in its place, and an object
// inside itself is passed over. Objects can be shared, so that a small pickle stands for a huge tree: time
// and memory are bounded by multiples of the pickle's size. InputError naming `where`: the tensors take more,
// or objects lie in one another deeper than anybody writes them.
PthTree pth_tree(const Pickle& pickle, const std::string& where);

}  // namespace adanat
