#include "core/nn/heap.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <iterator>
#include <mutex>

namespace adanat {

RangeAllocator::RangeAllocator(size_t size) {
  if (size > 0) free_.emplace(0, size);
}

std::optional<size_t> RangeAllocator::take(size_t size) {
  for (auto part = free_.begin(); part != free_.end(); ++part) {
    const auto [offset, room] = *part;
    if (room < size) continue;
    free_.erase(part);
    if (room > size) free_.emplace(offset + size, room - size);
    taken_.emplace(offset, size);
    return offset;
  }
  return std::nullopt;
}

size_t RangeAllocator::size_of(size_t offset) const {
  return taken_.at(offset);
}

void RangeAllocator::give_back(size_t offset) {
  const auto block = taken_.find(offset);
  auto part = free_.emplace(offset, block->second).first;
  taken_.erase(block);
  if (const auto next = std::next(part); next != free_.end() && part->first + part->second == next->first) {
    part->second += next->second;
    free_.erase(next);
  }
  if (part == free_.begin()) return;
  if (const auto before = std::prev(part); before->first + before->second == part->first) {
    before->second += part->second;
    free_.erase(part);
  }
}

namespace {

// Smaller tensors come from malloc, which is quicker with them.
constexpr size_t kLarge = size_t{128} << 10;
// From here on filling fresh pages is a small part of what is done with them, and keeping them a large one of
// the memory that other work may want.
constexpr size_t kHuge = size_t{256} << 20;
constexpr size_t kLine = 64;  // LibTorch's alignment
// Between two tensors: those of whole pages would all begin at the same place of a page otherwise, where the
// processor takes a store to one for a store to the other.
constexpr size_t kGap = 5 * kLine;

// The memory is never given back, so this lives until the process ends: tensors in static objects may be the
// last to go.
class TensorHeap final : public c10::Allocator {
 public:
  TensorHeap(std::byte* begin, size_t size) : begin_(begin), end_(begin + size), range_(size) {}

  c10::DataPtr allocate(size_t size) override {
    void* p = size < kLarge ? nullptr : take(size);
    if (p == nullptr) p = c10::alloc_cpu(size);
    c10::profiledCPUMemoryReporter().New(p, size);
    return {p, p, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }

  static TensorHeap* in_use;

 private:
  void* take(size_t size) {
    if (size > size_t(end_ - begin_)) return nullptr;
    const std::lock_guard lock(mutex_);
    const auto offset = range_.take((size + kLine - 1) / kLine * kLine + kGap);
    return offset ? begin_ + *offset : nullptr;
  }

  static void release(void* p) {
    if (p == nullptr) return;
    c10::profiledCPUMemoryReporter().Delete(p);
    auto* const byte = static_cast<std::byte*>(p);
    TensorHeap& heap = *in_use;
    if (byte < heap.begin_ || byte >= heap.end_) return c10::free_cpu(p);
    const auto offset = size_t(byte - heap.begin_);
    const std::lock_guard lock(heap.mutex_);
    if (const size_t size = heap.range_.size_of(offset); size >= kHuge) return_pages(byte, size);
    heap.range_.give_back(offset);
  }

  // The whole pages within [begin, begin + size) to the system; their addresses stay taken.
  static void return_pages(std::byte* begin, size_t size) {
    static const auto page = size_t(sysconf(_SC_PAGESIZE));
    const size_t ahead = (page - reinterpret_cast<uintptr_t>(begin) % page) % page;
    madvise(begin + ahead, (size - ahead) / page * page, MADV_DONTNEED);
  }

  std::byte* const begin_;
  std::byte* const end_;
  std::mutex mutex_;
  RangeAllocator range_;
};

TensorHeap* TensorHeap::in_use = nullptr;

void use_tensor_heap() {
#if !defined(__SANITIZE_ADDRESS__)  // which watches malloc's blocks
  rlimit limit{};
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  // Addresses that somebody counts are not taken in advance.
  if (pages <= 0 || page <= 0 || getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return;
  const size_t size = size_t(pages) * size_t(page);
  void* begin =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (begin == MAP_FAILED) return;
  TensorHeap::in_use = new TensorHeap(static_cast<std::byte*>(begin), size);
  constexpr uint8_t kOverTheDefault = 1;
  c10::SetCPUAllocator(TensorHeap::in_use, kOverTheDefault);
#endif
}

}  // namespace

void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 256 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 16 << 20);
  static std::once_flag once;  // a second range would not know the first one's tensors
  std::call_once(once, use_tensor_heap);
}

}  // namespace adanat
