// Bounded inflation of gzip and zlib data in memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace adanat {

// True if the bytes start like a gzip file (1f 8b).
bool is_gzip(std::span<const std::byte> bytes);

// All members of a gzip file, one after another. InputError naming `where`: not gzip, damaged (the checksum is verified),
// cut short, or more than max_bytes of output. Zero bytes after the last member are ignored, others are an error.
std::string gunzip(std::span<const std::byte> bytes, const std::string& where, uint64_t max_bytes);

// One zlib stream that must fill the span exactly. Same errors.
std::string inflate_zlib(std::span<const std::byte> bytes, const std::string& where, uint64_t max_bytes);

}  // namespace adanat
