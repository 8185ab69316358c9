// The one translation unit that holds stb_image, narrowed to the formats in use: JPEG is libjpeg-turbo's, PNM
// our own.
#include <cstddef>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_ONLY_GIF
#define STBI_MAX_DIMENSIONS 16384
#include <stb_image.h>

#include "core/io/stb_decoder.h"

#include <climits>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "core/base/error.h"

namespace adanat {

static_assert(STBI_MAX_DIMENSIONS == kMaxImageSide);

Image decode_with_stb(std::span<const std::byte> bytes, const std::string& where, const char* format) {
  if (bytes.size() > INT_MAX)
    throw InputError(cat(where, ": a ", format, " file of ", bytes.size(), " bytes is too large"));
  const auto* data = reinterpret_cast<const stbi_uc*>(bytes.data());
  const int size = static_cast<int>(bytes.size());
  const auto broken = [&] {
    // stb sets none for some streams that inflate to nothing.
    const char* const said = stbi_failure_reason();
    const std::string reason = said != nullptr ? said : "bad data";
    if (reason == "too large")  // found before the size is told
      return InputError(cat(where, ": a ", format, " image over the limits of ", kMaxImageSide,
                            " per side and ", kMaxImagePixels, " pixels"));
    return InputError(cat(where, ": broken ", format, ": ", reason));
  };
  int width = 0, height = 0, channels = 0;
  if (!stbi_info_from_memory(data, size, &width, &height, &channels)) throw broken();
  if (width < 1 || height < 1 || width > kMaxImageSide || height > kMaxImageSide ||
      int64_t{width} * height > kMaxImagePixels)
    throw InputError(cat(where, ": an image of ", width, "x", height, " is outside the limits of ",
                         kMaxImageSide, " per side and ", kMaxImagePixels, " pixels"));
  // Compression has a limit: deflate makes 1032 bytes of one (8 pixels each at 1 bit), LZW some 2600 pixels,
  // run lengths 128. A header that promises more is not believed with memory; small pictures are let through
  // as they are.
  const int64_t pixels_per_byte = std::string_view(format) == "PNG" ? 8256 : 2600;
  if (int64_t{width} * height > pixels_per_byte * (int64_t{size} + 512))
    throw InputError(
        cat(where, ": broken ", format, ": ", size, " bytes cannot hold an image of ", width, "x", height));
  const std::unique_ptr<stbi_uc, decltype(&std::free)> pixels(
      stbi_load_from_memory(data, size, &width, &height, &channels, 3), &std::free);
  if (pixels == nullptr) throw broken();
  Image image;
  image.width = width;
  image.height = height;
  image.rgb.assign(pixels.get(), pixels.get() + static_cast<size_t>(width) * height * 3);
  return image;
}

}  // namespace adanat
