// The framing of TensorBoard's event files.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace adanat {

// CRC-32C (Castagnoli): crc32c("123456789") = 0xE3069283.
uint32_t crc32c(const void* data, size_t size);

// One record around `bytes`: u64 length, u32 masked CRC of the length, bytes, u32 masked CRC of the bytes;
// little-endian.
std::string tfrecord(const std::string& bytes);

}  // namespace adanat
