// The PNG container: its chunks, checked before a decoder sees them.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace adanat {

struct PngChunk {
  std::string_view type;            // four letters
  std::span<const std::byte> data;  // points into the file's bytes
};

bool is_png(std::span<const std::byte> bytes);

// All chunks from IHDR to IEND. InputError naming `where`: not a PNG, a chunk that leaves the file, a wrong
// checksum, no IEND. Bytes after IEND are ignored, as other readers do.
std::vector<PngChunk> read_png_chunks(std::span<const std::byte> bytes, const std::string& where);

}  // namespace adanat
