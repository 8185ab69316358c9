// SHA-256 (FIPS 180-4), for the hashes in model folders and reports.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace adanat {

class Sha256 {
 public:
  Sha256();
  void update(const void* data, size_t size);
  // 64 lower-case hex digits. Call once, last.
  std::string finish();

 private:
  void block(const uint8_t* p);
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> pending_;
  size_t pending_size_ = 0;
  uint64_t total_ = 0;
};

std::string sha256_hex(const void* data, size_t size);

// Throws InputError if the file cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace adanat
