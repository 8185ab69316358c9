// 8-bit RGB images: decoding of hostile bytes, PNG writing with text chunks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace adanat {

// Pixel (x, y), channel c is rgb[(y*width + x)*3 + c]. rgb.size() == height*width*3.
struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

// Limits checked against the header before pixels are allocated: longest side, and number of pixels.
inline constexpr int kMaxImageSide = 16384;
inline constexpr int64_t kMaxImagePixels = int64_t{1} << 28;

// JPEG (libjpeg-turbo; equal to Pillow's pixels: accurate integer DCT, smooth chroma), PNG, BMP, GIF (first
// frame), PNM. As Pillow's convert("RGB"): grey is replicated, alpha is dropped (not blended), CMYK is
// converted, EXIF rotation ignored. `where` names the source in messages. InputError for anything that is not
// a whole image of these formats or is over the limits; a PNG chunk with a wrong checksum and a JPEG that
// ends early count as broken. Thread-safe.
Image decode_image(std::span<const std::byte> bytes, const std::string& where);
Image read_image(const std::filesystem::path& path);

// Keyword and value, both UTF-8. PNG keywords are 1..79 characters.
using TextChunks = std::vector<std::pair<std::string, std::string>>;

// RGB PNG. Deterministic for a zlib version: each row takes the filter with the least sum of absolute
// differences. Text goes before the pixels: tEXt where it fits Latin-1, else iTXt. level 0..9. RunError if
// the image is empty or inconsistent, or a keyword is not allowed.
std::string encode_png(const Image& image, const TextChunks& text = {}, int level = 6);
// encode_png through write_file_atomic.
void write_png(const std::filesystem::path& path, const Image& image, const TextChunks& text = {});
// All tEXt, zTXt and iTXt chunks in order, as UTF-8; compressed ones up to 16 MiB each. InputError if the
// file is not a PNG or a chunk is broken.
TextChunks read_png_text(const std::filesystem::path& path);
TextChunks decode_png_text(std::span<const std::byte> bytes, const std::string& where);

}  // namespace adanat
