// Reading .tar and .tar.gz in place: regular files as byte ranges, nothing is ever extracted to disk.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/io/mapped_file.h"

namespace adanat {

struct TarEntry {
  std::string name;      // as stored ("../x" and "/x" are only strings here), without a leading "./"
  uint64_t begin, size;  // byte range in the (inflated) archive
};

// The regular files of a tar archive in their order in it: ustar, pax (path, size) and GNU long names.
// Folders, links and devices are left out. Stops at the end-of-archive mark or the end of the bytes.
// InputError naming `where` and the offset: a wrong header checksum, sizes outside the archive, an
// unterminated extension header, a sparse file.
std::vector<TarEntry> list_tar(std::span<const std::byte> bytes, const std::string& where);

// An opened archive: mapped if plain, inflated into memory once if gzip. Nothing says beforehand how large
// that is: more than kMaxInflated bytes, than half of the machine's memory, or than kMaxRatio times the file
// (where that is over 64 MiB) is an InputError: pictures shrink little, such a file is made to fill memory.
// Immutable after open, safe to share between threads.
class TarArchive {
 public:
  static constexpr uint64_t kMaxInflated = uint64_t{32} << 30;
  static constexpr uint64_t kMaxRatio = 200;

  // True for names that end in .tar, .tar.gz or .tgz (any case).
  static bool has_tar_name(const std::filesystem::path& path);
  static std::shared_ptr<const TarArchive> open(const std::filesystem::path& path);

  const std::vector<TarEntry>& entries() const { return entries_; }
  // Valid as long as the archive lives.
  std::span<const std::byte> bytes(const TarEntry& entry) const {
    return bytes_.subspan(static_cast<size_t>(entry.begin), static_cast<size_t>(entry.size));
  }

 private:
  TarArchive() = default;
  std::shared_ptr<const MappedFile> file_;  // plain archives
  std::string inflated_;                    // gzip archives
  std::span<const std::byte> bytes_;
  std::vector<TarEntry> entries_;
};

}  // namespace adanat
