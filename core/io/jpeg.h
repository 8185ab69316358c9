// JPEG decoding through libjpeg-turbo; use decode_image unless the bytes are known to be JPEG.
#pragma once
#include <cstddef>
#include <span>
#include <string>

#include "core/io/image.h"

namespace adanat {

bool is_jpeg(std::span<const std::byte> bytes);

// See decode_image. Four-channel files are taken as inverted CMYK (what Adobe writes), as Pillow does.
Image decode_jpeg(std::span<const std::byte> bytes, const std::string& where);

}  // namespace adanat
