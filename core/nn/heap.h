// Where the memory of tensors on the CPU comes from, and what becomes of freed memory.
//
// Activations come and go hundreds of times an image. Given back to the system, each would come back as fresh
// pages that must be filled with zeros first (64 images of models/signs: 142000 page faults, 5 % of the
// processor time); kept in malloc's heap, they lie scattered between the small blocks that stay (kernels that
// oneDNN compiled while they lived, say), and the heap grows to twice what is in use. So large tensors have a
// range of their own, where the lowest place that fits is taken: 16 images of models/signs at a time take 51
// MiB above what LibTorch takes instead of 63.
#pragma once
#include <cstddef>
#include <map>
#include <optional>

namespace adanat {

// Which parts of [0, size) are taken: the lowest free part that is large enough is given out, and free
// neighbours are one part. Knows no memory. Not thread-safe.
class RangeAllocator {
 public:
  explicit RangeAllocator(size_t size);
  std::optional<size_t> take(size_t size);  // the offset; size >= 1; empty where nothing is large enough
  size_t size_of(size_t offset) const;      // of a part that take() gave
  void give_back(size_t offset);            // as well

 private:
  std::map<size_t, size_t> free_, taken_;  // offset -> size
};

// From now on most freed memory stays with the process (not blocks of 256 MiB and more, nor what is above 1
// GiB at the end of malloc's heap), and LibTorch's large tensors lie in a range of their own (of the address
// space, as large as the machine's memory; where it cannot be had, they come from malloc as before). Before
// the first tensor is made; later calls change nothing.
void keep_freed_memory();

}  // namespace adanat
