// PNG, BMP and GIF through stb_image; use decode_image.
#pragma once
#include <cstddef>
#include <span>
#include <string>

#include "core/io/image.h"

namespace adanat {

// format only names the kind of file in messages. stb does not verify PNG checksums: do that first (png.cpp).
Image decode_with_stb(std::span<const std::byte> bytes, const std::string& where, const char* format);

}  // namespace adanat
