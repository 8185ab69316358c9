#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "core/base/error.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

constexpr int kMostLinks = 40;  // as the system's own

[[noreturn]] void throw_write_error(const fs::path& path, int code) {
  if (code == ENOSPC || code == EDQUOT)
    throw RunError(cat(path.string(), ": no space left on device; free some space and run again"));
  throw RunError(cat(path.string(), ": cannot write: ", std::strerror(code)));
}

[[noreturn]] void throw_open_error(const fs::path& path, int code) {
  if (code == ENOSPC || code == EDQUOT) throw_write_error(path, code);
  const fs::path folder = path.parent_path().empty() ? fs::path(".") : path.parent_path();
  std::error_code ignored;
  if (code == ENOENT && !fs::exists(folder, ignored))
    throw InputError(cat(path.string(), ": cannot write: the folder ", folder.string(), " does not exist"));
  throw InputError(cat(path.string(), ": cannot write: ", std::strerror(code)));
}

fs::path temporary_name(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  // A long name must stay below the usual limit of 255 bytes with its additions.
  const std::string name = path.filename().string().substr(0, 200);
  return path.parent_path() / cat(".", name, ".tmp-", ::getpid(), "-", counter++);
}

// The number N of /proc/self/fd/N and its like, else -1.
int open_file_of(const fs::path& path) {
  const fs::path folder = path.parent_path();
  if (folder != "/proc/self/fd" && folder != "/dev/fd" && folder != cat("/proc/", ::getpid(), "/fd"))
    return -1;
  int number = -1;
  const std::string name = path.filename().string();
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  return error == std::errc() && end == name.data() + name.size() ? number : -1;
}

}  // namespace

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), target_(path_) {
  // A link stays, what it leads to is written. Those of open files (/dev/stdout is one) lead to more than a
  // name: a place in the file, or a file without a name.
  std::error_code no_link;
  for (int links = 0; fs::is_symlink(target_, no_link); ++links) {
    if (const int open_file = open_file_of(target_); open_file >= 0) {
      fd_ = ::fcntl(open_file, F_DUPFD_CLOEXEC, 0);
      if (fd_ < 0) throw_open_error(path_, errno);
      return;
    }
    if (links == kMostLinks) throw_open_error(path_, ELOOP);
    target_ = target_.parent_path() / fs::read_symlink(target_, no_link);
  }
  struct stat info {};
  const bool exists = ::stat(target_.c_str(), &info) == 0;
  if (!exists && errno != ENOENT) throw_open_error(path_, errno);
  if (target_.filename().empty() || (exists && S_ISDIR(info.st_mode)))
    throw InputError(cat(path_.string(), ": cannot write: is a folder, not a file name"));
  if (exists && !S_ISREG(info.st_mode)) {
    // Renaming over /dev/null would replace the device itself.
    fd_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) throw_open_error(path_, errno);
    return;
  }
  if (exists && ::access(target_.c_str(), W_OK) != 0) throw_open_error(path_, errno);  // rename would not ask
  for (int attempt = 0; fd_ < 0; ++attempt) {
    temporary_ = temporary_name(target_);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && (errno != EEXIST || attempt == 100)) throw_open_error(path_, errno);
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_ && !temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd_, next, std::min<size_t>(size, size_t{1} << 30));
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_write_error(path_, errno);
    }
    next += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  if (!temporary_.empty() && ::fsync(fd_) != 0) throw_write_error(path_, errno);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) throw_write_error(path_, errno);
  if (!temporary_.empty()) {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) throw_write_error(path_, errno);
    // The rename itself is durable only once the folder is; some file systems refuse this, which is no
    // failure of ours.
    const fs::path folder = target_.parent_path().empty() ? fs::path(".") : target_.parent_path();
    const int folder_fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_fd >= 0) {
      (void)::fsync(folder_fd);
      ::close(folder_fd);
    }
  }
  committed_ = true;
}

void write_file_atomic(const fs::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw InputError(cat(path.string(), ": cannot open: ", std::strerror(errno)));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info {};
  if (::fstat(fd, &info) != 0) throw InputError(cat(path.string(), ": ", std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) throw InputError(cat(path.string(), ": is a folder, not a file"));
  const auto too_long = [&] {
    return InputError(cat(path.string(), ": longer than the ", max_bytes, " bytes allowed"));
  };
  const uint64_t known = S_ISREG(info.st_mode) ? static_cast<uint64_t>(info.st_size) : 0;
  if (known > max_bytes) throw too_long();
  std::string bytes;
  size_t used = 0;
  // One byte more than the known size, so that the end is seen without growing.
  bytes.resize(static_cast<size_t>(std::max<uint64_t>(known + 1, S_ISREG(info.st_mode) ? 1 : 65536)));
  while (true) {
    if (used == bytes.size()) bytes.resize(bytes.size() * 2);
    const ssize_t got = ::read(fd, bytes.data() + used, bytes.size() - used);
    if (got < 0) {
      if (errno == EINTR) continue;
      throw InputError(cat(path.string(), ": cannot read: ", std::strerror(errno)));
    }
    if (got == 0) break;
    used += static_cast<size_t>(got);
    if (used > max_bytes) throw too_long();
  }
  bytes.resize(used);
  return bytes;
}

}  // namespace adanat
