#include "core/io/image.h"

#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/io/gzip.h"
#include "core/io/jpeg.h"
#include "core/io/mapped_file.h"
#include "core/io/png.h"
#include "core/io/stb_decoder.h"

namespace adanat {
namespace {

[[noreturn]] void throw_size(const std::string& where, uint64_t width, uint64_t height) {
  throw InputError(cat(where, ": an image of ", width, "x", height, " is outside the limits of ",
                       kMaxImageSide, " per side and ", kMaxImagePixels, " pixels"));
}

// Portable any-map: P2, P3 (text), P5, P6 (binary), with 8 or 16 bits per value, scaled to 0..255.
class PnmReader {
 public:
  PnmReader(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  Image read() {
    const char kind = text_[1];
    position_ = 2;
    const bool colour = kind == '3' || kind == '6', binary = kind >= '5';
    const uint32_t width = number(), height = number(), maximum = number();
    if (width < 1 || height < 1 || width > kMaxImageSide || height > kMaxImageSide ||
        uint64_t{width} * height > static_cast<uint64_t>(kMaxImagePixels))
      throw_size(where_, width, height);
    if (maximum < 1 || maximum > 65535) fail("the largest value must be in 1..65535");
    if (binary) ++position_;  // exactly one white space before the values
    const size_t value_size = !binary ? 2 : maximum > 255 ? 2 : 1;  // text: a digit and a separator at least
    const size_t count = size_t{width} * height * (colour ? 3 : 1);
    if (position_ > text_.size() || (text_.size() - position_ + (binary ? 0 : 1)) / value_size < count)
      fail("it ends early");
    Image image;
    image.width = static_cast<int>(width);
    image.height = static_cast<int>(height);
    image.rgb.resize(size_t{width} * height * 3);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t value = binary ? binary_value(value_size) : number();
      if (value > maximum) fail(cat("a value of ", value, " is over its maximum of ", maximum));
      const auto scaled =
          static_cast<uint8_t>(maximum == 255 ? value : (value * 510 + maximum) / (2 * maximum));
      if (colour) {
        image.rgb[i] = scaled;
      } else {
        std::memset(image.rgb.data() + i * 3, scaled, 3);
      }
    }
    return image;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(cat(where_, ": broken PNM: ", what));
  }

  static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

  uint32_t binary_value(size_t size) {
    uint32_t value = static_cast<unsigned char>(text_[position_++]);
    if (size == 2) value = value << 8 | static_cast<unsigned char>(text_[position_++]);
    return value;
  }

  // White space and comments, then a decimal number of at most 6 digits.
  uint32_t number() {
    while (position_ < text_.size() && (is_space(text_[position_]) || text_[position_] == '#')) {
      if (text_[position_] == '#') {
        while (position_ < text_.size() && text_[position_] != '\n') ++position_;
      } else {
        ++position_;
      }
    }
    uint32_t value = 0;
    const size_t begin = position_;
    for (; position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9'; ++position_) {
      if (position_ - begin == 6) fail("a number is too long");
      value = value * 10 + static_cast<uint32_t>(text_[position_] - '0');
    }
    if (position_ == begin) fail(cat("a number is missing at byte ", position_));
    return value;
  }

  std::string_view text_;
  const std::string& where_;
  size_t position_ = 0;
};

void check_png_size(const PngChunk& header, const std::string& where) {
  if (header.data.size() != 13)
    throw InputError(cat(where, ": broken PNG: IHDR has ", header.data.size(), " bytes, not 13"));
  const auto number = [&](size_t at) {
    uint64_t value = 0;
    for (size_t i = at; i < at + 4; ++i) value = value << 8 | std::to_integer<uint64_t>(header.data[i]);
    return value;
  };
  const uint64_t width = number(0), height = number(4), side = static_cast<uint64_t>(kMaxImageSide);
  if (width < 1 || height < 1 || width > side || height > side ||
      width * height > static_cast<uint64_t>(kMaxImagePixels))
    throw_size(where, width, height);
}

// The decoder unpacks all image data there are before it asks how many the picture needs. chunks: with a
// header that check_png_size has passed.
void check_png_data(const std::vector<PngChunk>& chunks, const std::string& where) {
  const auto header = [&](size_t at) { return std::to_integer<uint64_t>(chunks.front().data[at]); };
  const auto number = [&](size_t at) {
    return header(at) << 24 | header(at + 1) << 16 | header(at + 2) << 8 | header(at + 3);
  };
  const uint64_t width = number(0), height = number(4), depth = header(8);
  static constexpr std::array<uint64_t, 7> kChannels{1, 0, 3, 1, 2, 0, 4};
  const uint64_t channels = header(9) < kChannels.size() ? kChannels[header(9)] : 0;
  if (channels == 0 || depth > 16) return;  // the decoder names what is wrong
  // Interlacing makes up to twice as many rows; each has a filter byte and is rounded up to whole bytes.
  const uint64_t needed = height * ((width * channels * depth + 7) / 8) + 4 * height + 64;
  std::vector<std::span<const std::byte>> pieces;
  uint64_t packed = 0;
  for (const PngChunk& chunk : chunks)
    if (chunk.type == "IDAT") pieces.push_back(chunk.data), packed += chunk.data.size();
  // Most files cannot unpack to much, and are not read twice.
  if (packed * kMaxDeflateRatio <= needed + (uint64_t{64} << 20)) return;
  if (inflated_size(pieces, needed) > needed)
    throw InputError(cat(where, ": broken PNG: its data unpack to more than the ", needed,
                         " bytes that an image of ", width, "x", height, " can have"));
}

// The decoder says of a GIF that is too large only that it is of no known type.
void check_gif_size(std::span<const std::byte> bytes, const std::string& where) {
  if (bytes.size() < 10) return;
  const auto number = [&](size_t at) {
    return std::to_integer<uint64_t>(bytes[at]) | std::to_integer<uint64_t>(bytes[at + 1]) << 8;
  };
  const uint64_t width = number(6), height = number(8), side = static_cast<uint64_t>(kMaxImageSide);
  if (width > side || height > side) throw_size(where, width, height);
}

}  // namespace

Image decode_image(std::span<const std::byte> bytes, const std::string& where) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (is_jpeg(bytes)) return decode_jpeg(bytes, where);
  if (is_png(bytes)) {
    const std::vector<PngChunk> chunks = read_png_chunks(bytes, where);
    check_png_size(chunks.front(), where);
    check_png_data(chunks, where);
    return decode_with_stb(bytes, where, "PNG");
  }
  if (text.starts_with("GIF8")) {
    check_gif_size(bytes, where);
    return decode_with_stb(bytes, where, "GIF");
  }
  if (text.starts_with("BM")) return decode_with_stb(bytes, where, "BMP");
  if (text.size() > 2 && text[0] == 'P' &&
      (text[1] == '2' || text[1] == '3' || text[1] == '5' || text[1] == '6'))
    return PnmReader(text, where).read();
  if (bytes.empty()) throw InputError(cat(where, ": is an empty file, not an image"));
  throw InputError(cat(where, ": is no image that this program reads (JPEG, PNG, BMP, GIF, PNM)"));
}

Image read_image(const std::filesystem::path& path) {
  return decode_image(MappedFile::open(path)->bytes(), path.string());
}

}  // namespace adanat
