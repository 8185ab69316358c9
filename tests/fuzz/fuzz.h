// What the fuzz targets share. A target hands its bytes to a reader; the reader may read them or refuse them
// with an InputError of one line. Anything else (another exception, a sanitizer's finding, too much memory or
// time) is a finding.
#pragma once
#include <fcntl.h>
#include <sanitizer/allocator_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace adanat::fuzz {

// The bytes as a file in memory, for readers that map files.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (fd_ < 0) std::abort();
    for (size_t done = 0; done < size;) {
      const ssize_t now = ::write(fd_, data + done, size - done);
      if (now <= 0) std::abort();
      done += static_cast<size_t>(now);
    }
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

// Runs `read`; an InputError is fine if it is one line.
template <class Read>
int run(Read read) {
  try {
    read();
  } catch (const InputError& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}

// Bytes that the program has allocated now, and the most since the last start().
class Memory {
 public:
  static void start() {
    static const int installed = __sanitizer_install_malloc_and_free_hooks(allocated, freed);
    if (installed == 0) std::abort();
    most_ = now_.load();
  }
  static size_t now() { return now_; }
  static size_t most() { return most_; }

 private:
  static void allocated(const volatile void*, size_t size) {
    const size_t now = now_ += size;
    if (now > most_) most_ = now;
  }
  static void freed(const volatile void* block) {
    // What was allocated before the hooks were there is not counted, and not taken off.
    const size_t size = block == nullptr ? 0 : __sanitizer_get_allocated_size(const_cast<const void*>(block));
    now_ -= std::min<size_t>(size, now_);
  }
  static inline std::atomic<size_t> now_{0}, most_{0};
};

// The same, and no more than `bytes` of memory at any time: what a reader takes is bounded by a multiple of
// the file's size, and what it says it bounds otherwise.
template <class Read>
int run_within(size_t bytes, Read read) {
  Memory::start();
  const size_t before = Memory::now();
  run(read);
  if (Memory::most() - before > bytes) {
    std::fprintf(stderr, "took %zu bytes of memory, bounded by %zu\n", Memory::most() - before, bytes);
    std::abort();
  }
  return 0;
}

// A few hundred bytes for each of the file's: a value of one byte becomes a node of a tree.
constexpr size_t memory_for(size_t file_size) {
  return 256 * file_size + (size_t{4} << 20);
}

}  // namespace adanat::fuzz
