#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/base/error.h"

namespace adanat {
namespace {

// Closes the descriptor on every way out: the mapping does not need it.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // A named pipe is refused below, and not waited for here.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) throw InputError(cat(path.string(), ": cannot open: ", std::strerror(errno)));
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) throw InputError(cat(path.string(), ": ", std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) throw InputError(cat(path.string(), ": is a folder, not a file"));
  if (!S_ISREG(info.st_mode)) throw InputError(cat(path.string(), ": is not a regular file"));
  const auto size = static_cast<size_t>(info.st_size);
  std::byte* data = nullptr;
  if (size > 0) {
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.fd, 0);
    if (mapped == MAP_FAILED) throw InputError(cat(path.string(), ": cannot map: ", std::strerror(errno)));
    data = static_cast<std::byte*>(mapped);
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, data, size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace adanat
