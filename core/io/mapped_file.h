// A file's bytes in memory without reading them: one mapping, shared by everything that points into it.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace adanat {

// Immutable after open and safe to share between threads. The mapping lives as long as the last shared_ptr to
// it. Its pages are private and copied on write: a tensor made on top of them may be changed in place without
// touching the file. A file that another process shortens while it is mapped is fatal (SIGBUS), as with every
// mapping: our own writers never shorten a file, they rename a new one over it.
class MappedFile {
 public:
  // Throws InputError (missing, no permission, a folder). An empty file is fine: size() is 0 and data() is
  // null.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  MappedFile(std::filesystem::path path, std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::filesystem::path path_;
  std::byte* data_;
  size_t size_;
};

}  // namespace adanat
