#include "core/io/png.h"

#include <zlib.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "core/base/error.h"
#include "core/io/atomic_file.h"
#include "core/io/gzip.h"
#include "core/io/image.h"
#include "core/io/mapped_file.h"

namespace adanat {
namespace {

constexpr std::string_view kSignature("\x89PNG\r\n\x1a\n", 8);
constexpr uint64_t kMaxText = uint64_t{16} << 20;

uint32_t load_u32_be(const std::byte* bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | std::to_integer<uint32_t>(bytes[i]);
  return value;
}

void append_u32_be(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
}

uint32_t checksum(const void* data, size_t size) {
  return static_cast<uint32_t>(crc32_z(0, static_cast<const Bytef*>(data), size));
}

void append_chunk(std::string& out, std::string_view type, std::string_view data) {
  append_u32_be(out, static_cast<uint32_t>(data.size()));
  const size_t begin = out.size();
  out += type;
  out += data;
  append_u32_be(out, checksum(out.data() + begin, out.size() - begin));
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The Latin-1 form of a UTF-8 text, or nothing where it holds a character beyond or a control character other
// than a line break (which tEXt forbids).
std::optional<std::string> to_latin1(std::string_view utf8) {
  std::string out;
  for (size_t i = 0; i < utf8.size(); ++i) {
    const auto byte = static_cast<unsigned char>(utf8[i]);
    if (byte == '\n' || (byte >= 0x20 && byte < 0x7f)) {
      out += utf8[i];
    } else if ((byte == 0xc2 || byte == 0xc3) && i + 1 < utf8.size()) {
      const auto next = static_cast<unsigned char>(utf8[++i]);
      if ((next & 0xc0) != 0x80 || (byte == 0xc2 && next < 0xa0)) return std::nullopt;
      out += static_cast<char>((byte & 3) << 6 | (next & 0x3f));
    } else {
      return std::nullopt;
    }
  }
  return out;
}

std::string from_latin1(std::string_view latin1) {
  std::string out;
  for (const char c : latin1) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xc0 | byte >> 6);
      out += static_cast<char>(0x80 | (byte & 0x3f));
    }
  }
  return out;
}

void append_text(std::string& out, const std::string& key, const std::string& value) {
  const auto latin_key = to_latin1(key);
  if (!latin_key || latin_key->empty() || latin_key->size() > 79 ||
      latin_key->find('\n') != std::string::npos || latin_key->front() == ' ' || latin_key->back() == ' ')
    throw RunError(cat("\"", key, "\" cannot be a PNG text keyword (1 to 79 Latin-1 characters)"));
  if (value.find('\0') != std::string::npos)
    throw RunError(cat("the PNG text \"", key, "\" holds a NUL character"));
  if (value.size() > kMaxText)
    throw RunError(cat("the PNG text \"", key, "\" is longer than ", kMaxText, " bytes"));
  if (const auto latin_value = to_latin1(value)) {
    append_chunk(out, "tEXt", *latin_key + '\0' + *latin_value);
  } else {
    // Keyword NUL, not compressed, method 0, no language NUL, no translated keyword NUL, text.
    append_chunk(out, "iTXt", *latin_key + std::string(5, '\0') + value);
  }
}

uint8_t paeth(int left, int up, int corner) {
  const int estimate = left + up - corner;
  const int to_left = std::abs(estimate - left), to_up = std::abs(estimate - up),
            to_corner = std::abs(estimate - corner);
  if (to_left <= to_up && to_left <= to_corner) return static_cast<uint8_t>(left);
  return static_cast<uint8_t>(to_up <= to_corner ? up : corner);
}

// One filter byte and the filtered row, for every row: the lowest filter number wins a tie.
std::string filter_rows(const Image& image) {
  const size_t row_size = static_cast<size_t>(image.width) * 3;
  std::string out((row_size + 1) * image.height, '\0');
  const std::vector<uint8_t> zeros(row_size, 0);
  std::vector<uint8_t> candidate(row_size), best(row_size);
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = image.rgb.data() + static_cast<size_t>(y) * row_size;
    const uint8_t* above = y > 0 ? row - row_size : zeros.data();
    uint64_t best_sum = UINT64_MAX;
    char best_filter = 0;
    for (int filter = 0; filter < 5; ++filter) {
      uint64_t sum = 0;
      for (size_t i = 0; i < row_size; ++i) {
        const int left = i >= 3 ? row[i - 3] : 0, up = above[i], corner = i >= 3 ? above[i - 3] : 0;
        int predicted = 0;
        switch (filter) {
          case 1:
            predicted = left;
            break;
          case 2:
            predicted = up;
            break;
          case 3:
            predicted = (left + up) / 2;
            break;
          case 4:
            predicted = paeth(left, up, corner);
            break;
          default:
            break;
        }
        candidate[i] = static_cast<uint8_t>(row[i] - predicted);
        sum += static_cast<uint64_t>(std::abs(static_cast<int8_t>(candidate[i])));
      }
      if (sum < best_sum) {
        best_sum = sum;
        best_filter = static_cast<char>(filter);
        best.swap(candidate);
      }
    }
    char* target = out.data() + static_cast<size_t>(y) * (row_size + 1);
    *target = best_filter;
    std::memcpy(target + 1, best.data(), row_size);
  }
  return out;
}

std::string compress(const std::string& bytes, int level) {
  uLongf size = compressBound(static_cast<uLong>(bytes.size()));
  std::string out(size, '\0');
  if (compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(bytes.data()),
                static_cast<uLong>(bytes.size()), level) != Z_OK)
    throw RunError("out of memory while compressing a PNG");
  out.resize(size);
  return out;
}

// Splits at the first NUL; false if there is none.
bool split_at_nul(std::string_view& rest, std::string_view& first) {
  const size_t nul = rest.find('\0');
  if (nul == std::string_view::npos) return false;
  first = rest.substr(0, nul);
  rest.remove_prefix(nul + 1);
  return true;
}

}  // namespace

bool is_png(std::span<const std::byte> bytes) {
  return text_of(bytes).starts_with(kSignature);
}

std::vector<PngChunk> read_png_chunks(std::span<const std::byte> bytes, const std::string& where) {
  if (!is_png(bytes)) throw InputError(cat(where, ": is not a PNG file"));
  std::vector<PngChunk> chunks;
  size_t position = kSignature.size();
  while (true) {
    if (bytes.size() - position < 12)
      throw InputError(cat(where, ": broken PNG: it ends early, at byte ", bytes.size()));
    const uint32_t length = load_u32_be(bytes.data() + position);
    if (length > bytes.size() - position - 12)
      throw InputError(cat(where, ": broken PNG: the chunk at byte ", position, " has ", length,
                           " bytes, but only ", bytes.size() - position - 12, " follow"));
    const auto checked = bytes.subspan(position + 4, size_t{length} + 4);
    const PngChunk chunk{text_of(checked.first(4)), checked.subspan(4)};
    if (checksum(checked.data(), checked.size()) != load_u32_be(checked.data() + checked.size()))
      throw InputError(cat(where, ": broken PNG: the chunk at byte ", position, " has a wrong checksum"));
    if (chunks.empty() != (chunk.type == "IHDR"))
      throw InputError(cat(where, ": broken PNG: IHDR must be the first chunk and only that"));
    chunks.push_back(chunk);
    if (chunk.type == "IEND") return chunks;
    position += size_t{length} + 12;
  }
}

std::string encode_png(const Image& image, const TextChunks& text, int level) {
  if (image.width < 1 || image.height < 1 || image.width > kMaxImageSide || image.height > kMaxImageSide ||
      image.rgb.size() != static_cast<size_t>(image.width) * image.height * 3)
    throw RunError(cat("cannot write an image of ", image.width, "x", image.height, " with ",
                       image.rgb.size(), " bytes as PNG"));
  if (level < 0 || level > 9) throw RunError(cat("PNG compression level ", level, " is outside 0..9"));
  std::string out(kSignature);
  std::string header;
  append_u32_be(header, static_cast<uint32_t>(image.width));
  append_u32_be(header, static_cast<uint32_t>(image.height));
  header += std::string("\x08\x02\x00\x00\x00", 5);  // 8 bits, RGB, deflate, adaptive filters, not interlaced
  append_chunk(out, "IHDR", header);
  for (const auto& [key, value] : text) append_text(out, key, value);
  append_chunk(out, "IDAT", compress(filter_rows(image), level));
  append_chunk(out, "IEND", "");
  return out;
}

void write_png(const std::filesystem::path& path, const Image& image, const TextChunks& text) {
  write_file_atomic(path, encode_png(image, text));
}

TextChunks decode_png_text(std::span<const std::byte> bytes, const std::string& where) {
  TextChunks result;
  for (const PngChunk& chunk : read_png_chunks(bytes, where)) {
    if (chunk.type != "tEXt" && chunk.type != "zTXt" && chunk.type != "iTXt") continue;
    const auto broken = [&] {
      return InputError(cat(where, ": broken PNG: a damaged ", chunk.type, " chunk"));
    };
    std::string_view rest = text_of(chunk.data), key, ignored;
    if (!split_at_nul(rest, key)) throw broken();
    const auto inflate = [&](std::string_view data) {
      return inflate_zlib(std::as_bytes(std::span(data)), cat(where, ": text \"", from_latin1(key), "\""),
                          kMaxText);
    };
    if (chunk.type == "tEXt") {
      result.emplace_back(from_latin1(key), from_latin1(rest));
    } else if (chunk.type == "zTXt") {
      if (rest.empty() || rest[0] != 0) throw broken();
      result.emplace_back(from_latin1(key), from_latin1(inflate(rest.substr(1))));
    } else {
      if (rest.size() < 2 || rest[0] < 0 || rest[0] > 1 || (rest[0] == 1 && rest[1] != 0)) throw broken();
      const bool compressed = rest[0] == 1;
      rest.remove_prefix(2);
      if (!split_at_nul(rest, ignored) || !split_at_nul(rest, ignored)) throw broken();
      result.emplace_back(from_latin1(key), compressed ? inflate(rest) : std::string(rest));
    }
  }
  return result;
}

TextChunks read_png_text(const std::filesystem::path& path) {
  return decode_png_text(MappedFile::open(path)->bytes(), path.string());
}

}  // namespace adanat
