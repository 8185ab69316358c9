// Reading .zip archives in place: members as byte ranges of a mapping, nothing is ever extracted to disk. And
// writing them.
//
// Read: stored and deflated members, zip64. Refused: encryption, other methods, several disks, members that
// overlap, whose local header contradicts the central directory, or that are there twice. Source: PKWARE
// APPNOTE.TXT 6.3.10, sections 4.3 to 4.5.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/mapped_file.h"

namespace adanat {

struct ZipEntry {
  std::string name;    // as stored; only a string here, never a path
  uint64_t begin;      // first byte of the (compressed) data in the file
  uint64_t data_size;  // bytes in the file
  uint64_t size;       // bytes of the content; data_size for stored members
  uint32_t crc;        // CRC-32 of the content
  bool deflated;
};

// True if the bytes start like a zip archive with at least one member (PK 3 4), or an empty one (PK 5 6).
bool is_zip(std::span<const std::byte> bytes);

// An open archive. Cheap to copy (one shared mapping); const methods are safe from several threads.
class ZipFile {
 public:
  // Reads and checks the central directory and every local header: all sizes lie inside the file before
  // anything of that size is allocated. InputError naming the file, and the member where it is one member's
  // fault.
  static ZipFile open(const std::filesystem::path& path);
  static ZipFile open(std::shared_ptr<const MappedFile> file);

  // In the order of the central directory; folders (names that end in "/") are left out.
  const std::vector<ZipEntry>& entries() const { return *entries_; }
  const ZipEntry* find(std::string_view name) const;  // null if there is no such member
  // The bytes as they are in the file; the content of a stored member. Not checked against the CRC.
  std::span<const std::byte> data(const ZipEntry& entry) const;
  // The content, inflated if need be, its CRC checked. InputError: more than max_bytes, damaged.
  std::string read(const ZipEntry& entry, uint64_t max_bytes) const;
  // InputError if the content of a stored member does not have the CRC of the directory. Reads it once from
  // end to end.
  void check_crc(const ZipEntry& entry) const;
  std::shared_ptr<const MappedFile> mapping() const { return file_; }
  const std::filesystem::path& path() const { return file_->path(); }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::shared_ptr<const std::vector<ZipEntry>> entries_;
  std::shared_ptr<const std::map<std::string_view, size_t>> index_;
};

// The content of one member from its first byte to its last, in pieces of any size, so that members larger
// than memory can be read. Not thread-safe, cannot be copied.
class ZipStream {
 public:
  ZipStream(const ZipFile& file, const ZipEntry& entry);
  ~ZipStream();
  ZipStream(ZipStream&&) noexcept;
  ZipStream& operator=(ZipStream&&) noexcept;

  uint64_t left() const;  // bytes of content not read yet
  // The next `size` bytes. InputError naming the member: fewer are left, the compressed data is damaged, or,
  // with the last byte of the content, the CRC is wrong.
  void read(void* out, size_t size);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Writes an archive under a temporary name, renamed by commit(). Equal content gives equal bytes: no times
// are stored. Members above 4 GiB get zip64 fields. Not thread-safe. Errors: those of AtomicFile; RunError
// for a name twice.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path);
  // One whole member from pieces that follow one another; their bytes must live until the call returns.
  void add(const std::string& name, std::span<const std::span<const std::byte>> pieces, bool deflate);
  void commit();

 private:
  struct Written {
    std::string name;
    uint64_t offset, data_size, size;
    uint32_t crc;
    bool deflated;
  };
  AtomicFile file_;
  uint64_t position_ = 0;
  std::vector<Written> members_;
};

}  // namespace adanat
