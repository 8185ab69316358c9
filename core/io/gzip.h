// Bounded inflation of gzip and zlib data in memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace adanat {

// True if the bytes start like a gzip file (1f 8b).
bool is_gzip(std::span<const std::byte> bytes);

// All members of a gzip file, one after another. InputError naming `where`: not gzip, damaged (the checksum
// is verified), cut short, or more than max_bytes of output. Zero bytes after the last member are ignored,
// others are an error.
std::string gunzip(std::span<const std::byte> bytes, const std::string& where, uint64_t max_bytes);

// The first bytes of a gzip file's first member, at most `count`; fewer where it ends before. For headers
// that say how much will follow. InputError: not gzip, or damaged up to there.
std::string gunzip_start(std::span<const std::byte> bytes, const std::string& where, size_t count);

// The most that deflate can expand by: data of n bytes never becomes more than n times this.
inline constexpr uint64_t kMaxDeflateRatio = 1032;

// One zlib stream that must fill the span exactly. Same errors.
std::string inflate_zlib(std::span<const std::byte> bytes, const std::string& where, uint64_t max_bytes);

// How many bytes the pieces of one zlib stream unpack to, at most limit + 1, in a fixed amount of memory.
// Where the stream is damaged or ends early, the bytes up to there.
uint64_t inflated_size(std::span<const std::span<const std::byte>> pieces, uint64_t limit);

}  // namespace adanat
