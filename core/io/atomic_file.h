// Whole-file reading and writing that never leaves half a file behind.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace adanat {

// Writes to a temporary name beside `path`; commit() makes it durable (fsync) and renames it over `path`.
// Destroyed without commit(), it removes the temporary file and leaves `path` as it was. A path that exists
// and is neither a file nor a folder (/dev/null, a pipe), or is a file that is open already (/dev/stdout), is
// written directly. A link stays: the file that it leads to is replaced. Not thread-safe.
// InputError: the path cannot be written (no such folder, no permission, is a folder). RunError: disk full or
// an I/O error.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);
  void write(std::string_view bytes) { write(bytes.data(), bytes.size()); }
  // Once, at the end. After it, only destruction is allowed.
  void commit();

 private:
  std::filesystem::path path_;       // as it was asked for
  std::filesystem::path target_;     // where its links lead
  std::filesystem::path temporary_;  // empty: `target_` is written directly
  int fd_ = -1;
  bool committed_ = false;
};

// The three steps above for bytes that are already in memory.
void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

// The whole file. InputError: missing, unreadable, a folder, or longer than max_bytes (also for pipes, which
// have no size).
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{1} << 32);

}  // namespace adanat
