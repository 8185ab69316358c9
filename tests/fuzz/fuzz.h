// What the fuzz targets share. A target hands its bytes to a reader; the reader may read them or refuse them
// with an InputError of one line. Anything else (another exception, a sanitizer's finding, too much memory or
// time) is a finding.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
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

}  // namespace adanat::fuzz
