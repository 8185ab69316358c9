#include "core/io/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <vector>

#include "core/base/error.h"

namespace adanat {
namespace {

// RAII for zlib's state; window_bits selects zlib (15) or gzip (15 + 16) framing.
class Inflater {
 public:
  explicit Inflater(int window_bits) {
    if (inflateInit2(&stream_, window_bits) != Z_OK) throw RunError("out of memory while inflating");
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream* operator->() { return &stream_; }
  z_stream* get() { return &stream_; }

 private:
  z_stream stream_{};
};

// Inflates one stream from `bytes` and appends it to `out`; returns the number of bytes that it took.
size_t inflate_one(std::span<const std::byte> bytes, int window_bits, const std::string& where,
                   uint64_t max_bytes, std::string& out) {
  constexpr size_t kChunk = size_t{1} << 30;  // zlib counts in 32 bits
  Inflater inflater(window_bits);
  size_t taken = 0, used = out.size();
  while (true) {
    if (out.size() == used) {
      if (used >= max_bytes) {
        // Full: the only thing still allowed is the end of the stream, which needs room to be looked for.
        out.resize(used + 1);
      } else {
        const uint64_t wanted = std::max<uint64_t>(65536, static_cast<uint64_t>(used) * 2);
        out.resize(static_cast<size_t>(std::min<uint64_t>(wanted, max_bytes)));
      }
    }
    const size_t in_now = std::min(bytes.size() - taken, kChunk),
                 out_now = std::min(out.size() - used, kChunk);
    inflater->next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data() + taken));
    inflater->avail_in = static_cast<uInt>(in_now);
    inflater->next_out = reinterpret_cast<Bytef*>(out.data() + used);
    inflater->avail_out = static_cast<uInt>(out_now);
    const int status = inflate(inflater.get(), Z_NO_FLUSH);
    taken += in_now - inflater->avail_in;
    used += out_now - inflater->avail_out;
    if (used > max_bytes)
      throw InputError(cat(where, ": inflates to more than the ", max_bytes, " bytes allowed"));
    if (status == Z_STREAM_END) break;
    if (status == Z_BUF_ERROR || (status == Z_OK && taken == bytes.size() && inflater->avail_out > 0))
      throw InputError(
          cat(where, ": the compressed data ends early (after ", bytes.size(), " bytes); it is cut short"));
    if (status == Z_MEM_ERROR) throw RunError(cat(where, ": out of memory while inflating"));
    if (status != Z_OK)
      throw InputError(cat(where, ": the compressed data is damaged near byte ", taken,
                           inflater->msg != nullptr ? cat(" (", inflater->msg, ")") : std::string()));
  }
  out.resize(used);
  return taken;
}

}  // namespace

bool is_gzip(std::span<const std::byte> bytes) {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
}

std::string gunzip(std::span<const std::byte> bytes, const std::string& where, uint64_t max_bytes) {
  if (!is_gzip(bytes)) throw InputError(cat(where, ": is not a gzip file"));
  std::string out;
  if (bytes.size() >= 18) {
    // The last four bytes hold the size of the last member: a hint that saves growing, not to be trusted.
    uint64_t hint = 0;
    for (size_t i = 1; i <= 4; ++i) hint = hint << 8 | std::to_integer<uint64_t>(bytes[bytes.size() - i]);
    out.reserve(static_cast<size_t>(
        std::min({hint + 1, static_cast<uint64_t>(bytes.size()) * kMaxDeflateRatio, max_bytes})));
  }
  size_t position = 0;
  while (position < bytes.size()) {
    const auto rest = bytes.subspan(position);
    if (position > 0 && std::all_of(rest.begin(), rest.end(), [](std::byte b) { return b == std::byte{0}; }))
      break;
    if (!is_gzip(rest))
      throw InputError(cat(where, ": ", rest.size(), " bytes follow the end of the gzip data"));
    position += inflate_one(rest, 15 + 16, where, max_bytes, out);
  }
  return out;
}

std::string gunzip_start(std::span<const std::byte> bytes, const std::string& where, size_t count) {
  if (!is_gzip(bytes)) throw InputError(cat(where, ": is not a gzip file"));
  Inflater inflater(15 + 16);
  std::string out(count, '\0');
  inflater->next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
  inflater->avail_in = static_cast<uInt>(std::min<size_t>(bytes.size(), size_t{1} << 30));
  inflater->next_out = reinterpret_cast<Bytef*>(out.data());
  inflater->avail_out = static_cast<uInt>(count);
  const int status = inflate(inflater.get(), Z_NO_FLUSH);
  if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
    throw InputError(cat(where, ": the compressed data is damaged at its start"));
  out.resize(count - inflater->avail_out);
  return out;
}

std::string inflate_zlib(std::span<const std::byte> bytes, const std::string& where, uint64_t max_bytes) {
  std::string out;
  const size_t taken = inflate_one(bytes, 15, where, max_bytes, out);
  if (taken != bytes.size())
    throw InputError(cat(where, ": ", bytes.size() - taken, " bytes follow the compressed data"));
  return out;
}

uint64_t inflated_size(std::span<const std::span<const std::byte>> pieces, uint64_t limit) {
  Inflater stream(15);
  std::vector<Bytef> out(size_t{1} << 16);
  uint64_t total = 0;
  for (const auto& piece : pieces) {
    for (size_t begin = 0; begin < piece.size();) {
      const size_t size = std::min(piece.size() - begin, size_t{1} << 30);
      stream->next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(piece.data() + begin));
      stream->avail_in = static_cast<uInt>(size);
      begin += size;
      do {
        stream->next_out = out.data();
        stream->avail_out = static_cast<uInt>(out.size());
        const int status = inflate(stream.get(), Z_NO_FLUSH);
        total += out.size() - stream->avail_out;
        if (total > limit) return limit + 1;
        if (status != Z_OK && status != Z_BUF_ERROR) return total;  // the end, or damage
      } while (stream->avail_in > 0 || stream->avail_out == 0);
    }
  }
  return total;
}

}  // namespace adanat
