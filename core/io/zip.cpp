#include "core/io/zip.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "core/base/error.h"
#include "core/base/text.h"

namespace adanat {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50, kEnd = 0x06054b50;
constexpr uint32_t kZip64End = 0x06064b50, kZip64Locator = 0x07064b50;
constexpr size_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kZip64EndSize = 56, kLocatorSize = 20;
constexpr uint64_t kMaxDeflateRatio = 1032;  // deflate cannot expand by more
constexpr size_t kChunk = size_t{1} << 30;   // zlib counts in 32 bits

template <class T>
T load_le(const std::byte* bytes) {
  T value = 0;
  for (size_t i = sizeof(T); i > 0; --i)
    value = static_cast<T>(value << 8 | std::to_integer<T>(bytes[i - 1]));
  return value;
}
uint16_t load16(const std::byte* bytes) {
  return load_le<uint16_t>(bytes);
}
uint32_t load32(const std::byte* bytes) {
  return load_le<uint32_t>(bytes);
}
uint64_t load64(const std::byte* bytes) {
  return load_le<uint64_t>(bytes);
}

std::string_view text_at(const std::byte* bytes, size_t size) {
  return {reinterpret_cast<const char*>(bytes), size};
}

uint32_t crc_of(uint32_t crc, const void* data, size_t size) {
  const auto* bytes = static_cast<const Bytef*>(data);
  for (; size > 0;) {
    const size_t now = std::min(size, kChunk);
    crc = static_cast<uint32_t>(crc32(crc, bytes, static_cast<uInt>(now)));
    bytes += now, size -= now;
  }
  return crc;
}

// What the record(s) at the end of the archive say about the central directory.
struct Directory {
  uint64_t entries, size, offset, end;  // end: where the records at the end of the archive begin
};

Directory find_directory(std::span<const std::byte> bytes, const std::string& where) {
  // The end record is the last thing in the file but for a comment of at most 65535 bytes.
  const size_t lowest = bytes.size() > kEndSize + 65535 ? bytes.size() - kEndSize - 65535 : 0;
  if (bytes.size() < kEndSize)
    throw InputError(cat(where, ": ", bytes.size(), " bytes are too few for a zip archive"));
  for (size_t at = bytes.size() - kEndSize + 1; at-- > lowest;) {
    const std::byte* end = bytes.data() + at;
    if (load32(end) != kEnd || at + kEndSize + load16(end + 20) != bytes.size()) continue;
    Directory found{load16(end + 10), load32(end + 12), load32(end + 16), at};
    uint64_t disks = uint64_t{load16(end + 4)} | load16(end + 6);
    uint64_t on_disk = load16(end + 8);
    if (at >= kLocatorSize && load32(end - kLocatorSize) == kZip64Locator) {
      const uint64_t record = load64(end - kLocatorSize + 8);
      if (record > at - kLocatorSize || at - kLocatorSize - record < kZip64EndSize ||
          load32(bytes.data() + record) != kZip64End)
        throw InputError(
            cat(where, ": the zip64 end record is not where it should be; the archive is damaged"));
      const std::byte* end64 = bytes.data() + record;
      disks = uint64_t{load32(end64 + 16)} | load32(end64 + 20);
      on_disk = load64(end64 + 24);
      found = {load64(end64 + 32), load64(end64 + 40), load64(end64 + 48), record};
    }
    if (disks != 0 || on_disk != found.entries)
      throw InputError(cat(where, ": is one part of a zip archive on several disks; join the parts first"));
    if (found.offset > found.end || found.size > found.end - found.offset)
      throw InputError(cat(
          where, ": the central directory lies outside the file; the zip archive is cut short or damaged"));
    if (found.entries > found.size / kCentralSize)
      throw InputError(cat(where, ": the central directory of ", found.size, " bytes cannot hold ",
                           found.entries, " members; the archive is damaged"));
    return found;
  }
  throw InputError(cat(
      where, ": the end of the zip archive is missing; it is cut short (fetch it again) or no zip archive"));
}

// The sizes and the offset of a member that do not fit 32 bits, from its zip64 field.
void read_zip64(const std::byte* extra, size_t extra_size, ZipEntry& entry, uint64_t& offset,
                const std::string& where) {
  for (size_t at = 0; at + 4 <= extra_size;) {
    const uint16_t id = load16(extra + at);
    size_t size = load16(extra + at + 2);
    at += 4;
    if (size > extra_size - at) break;
    if (id == 1) {
      const std::byte* field = extra + at;
      for (uint64_t* value : {&entry.size, &entry.data_size, &offset}) {
        if (*value != UINT32_MAX) continue;
        if (size < 8) throw InputError(cat(where, ": the zip64 field is too short; the archive is damaged"));
        *value = load64(field);
        field += 8, size -= 8;
      }
      return;
    }
    at += size;
  }
}

// Sets entry.begin from the local header, which must agree with the directory: archives in which the two
// differ show different content to different readers.
void read_local(std::span<const std::byte> bytes, uint64_t offset, uint64_t limit, ZipEntry& entry,
                uint16_t flags, uint16_t method, const std::string& where) {
  if (offset > limit || limit - offset < kLocalSize || load32(bytes.data() + offset) != kLocalHeader)
    throw InputError(cat(where, ": its local header is not at byte ", offset, "; the archive is damaged"));
  const std::byte* local = bytes.data() + offset;
  const uint64_t name_size = load16(local + 26), extra_size = load16(local + 28);
  if (limit - offset - kLocalSize < name_size + extra_size)
    throw InputError(cat(where, ": its local header runs out of the file; the archive is damaged"));
  entry.begin = offset + kLocalSize + name_size + extra_size;
  if (entry.data_size > limit - entry.begin)
    throw InputError(cat(where, ": its ", entry.data_size,
                         " bytes run out of the file; the archive is cut short or damaged"));
  if (text_at(local + kLocalSize, static_cast<size_t>(name_size)) != entry.name ||
      load16(local + 8) != method || load16(local + 6) != flags)
    throw InputError(
        cat(where, ": its local header contradicts the central directory; the archive is damaged"));
  // Bit 3: the writer knew CRC and sizes only afterwards, and wrote zeros here.
  if ((flags & 8) == 0 && load32(local + 14) != entry.crc)
    throw InputError(
        cat(where, ": its local header contradicts the central directory; the archive is damaged"));
}

}  // namespace

bool is_zip(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && (load32(bytes.data()) == kLocalHeader || load32(bytes.data()) == kEnd);
}

ZipFile ZipFile::open(const std::filesystem::path& path) {
  return open(MappedFile::open(path));
}

ZipFile ZipFile::open(std::shared_ptr<const MappedFile> file) {
  const std::span<const std::byte> bytes = file->bytes();
  const std::string path = file->path().string();
  const Directory directory = find_directory(bytes, path);
  auto entries = std::make_shared<std::vector<ZipEntry>>();
  struct Extent {
    uint64_t begin, end;
    size_t index;
  };
  std::vector<Extent> extents;
  uint64_t at = directory.offset;
  const uint64_t end = directory.offset + directory.size;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    const std::byte* record = bytes.data() + at;
    if (end - at < kCentralSize || load32(record) != kCentralHeader)
      throw InputError(cat(path, ": member ", i, " of the central directory is damaged"));
    const uint16_t flags = load16(record + 8), method = load16(record + 10);
    const uint64_t name_size = load16(record + 28), extra_size = load16(record + 30),
                   comment_size = load16(record + 32);
    if (end - at - kCentralSize < name_size + extra_size + comment_size)
      throw InputError(cat(path, ": member ", i, " of the central directory is damaged"));
    ZipEntry entry{std::string(text_at(record + kCentralSize, static_cast<size_t>(name_size))),
                   0,
                   load32(record + 20),
                   load32(record + 24),
                   load32(record + 16),
                   method == 8};
    uint64_t offset = load32(record + 42);
    const std::string where = cat(path, ": member \"", printable(entry.name), "\"");
    read_zip64(record + kCentralSize + name_size, static_cast<size_t>(extra_size), entry, offset, where);
    at += kCentralSize + name_size + extra_size + comment_size;
    if (!entry.name.empty() && entry.name.back() == '/' && entry.size == 0) continue;
    if (flags & 1)
      throw InputError(cat(where, ": is encrypted; unpack and pack it again without a password"));
    if (method != 0 && method != 8)
      throw InputError(cat(where, ": uses the compression method ", method,
                           "; only stored (0) and deflated (8) are read"));
    read_local(bytes, offset, directory.offset, entry, flags, method, where);
    if (!entry.deflated && entry.data_size != entry.size)
      throw InputError(
          cat(where, ": is stored, but its two sizes differ (", entry.data_size, " and ", entry.size, ")"));
    if (entry.deflated && entry.size / kMaxDeflateRatio > entry.data_size)
      throw InputError(cat(where, ": ", entry.data_size, " compressed bytes cannot become ", entry.size));
    extents.push_back({offset, entry.begin + entry.data_size, entries->size()});
    entries->push_back(std::move(entry));
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < extents.size(); ++i)
    if (extents[i].begin < extents[i - 1].end)
      throw InputError(cat(path, ": the members \"", printable((*entries)[extents[i - 1].index].name),
                           "\" and \"", printable((*entries)[extents[i].index].name),
                           "\" overlap; the archive is damaged"));
  auto index = std::make_shared<std::map<std::string_view, size_t>>();
  for (size_t i = 0; i < entries->size(); ++i)
    if (!index->emplace((*entries)[i].name, i).second)
      throw InputError(cat(path, ": the member \"", printable((*entries)[i].name), "\" is there twice"));

  ZipFile result;
  result.file_ = std::move(file);
  result.entries_ = std::move(entries);
  result.index_ = std::move(index);
  return result;
}

const ZipEntry* ZipFile::find(std::string_view name) const {
  const auto found = index_->find(name);
  return found == index_->end() ? nullptr : &(*entries_)[found->second];
}

std::span<const std::byte> ZipFile::data(const ZipEntry& entry) const {
  return file_->bytes().subspan(static_cast<size_t>(entry.begin), static_cast<size_t>(entry.data_size));
}

std::string ZipFile::read(const ZipEntry& entry, uint64_t max_bytes) const {
  if (entry.size > max_bytes)
    throw InputError(cat(path().string(), ": member \"", printable(entry.name), "\": its ", entry.size,
                         " bytes are more than the ", max_bytes, " allowed"));
  std::string out(static_cast<size_t>(entry.size), '\0');
  ZipStream(*this, entry).read(out.data(), out.size());
  return out;
}

void ZipFile::check_crc(const ZipEntry& entry) const {
  if (entry.deflated) {
    ZipStream stream(*this, entry);
    std::vector<std::byte> piece(static_cast<size_t>(std::min<uint64_t>(entry.size, 1 << 18)));
    while (stream.left() > 0)
      stream.read(piece.data(), static_cast<size_t>(std::min<uint64_t>(stream.left(), piece.size())));
    return;
  }
  const auto bytes = data(entry);
  if (crc_of(0, bytes.data(), bytes.size()) != entry.crc)
    throw InputError(cat(path().string(), ": member \"", printable(entry.name),
                         "\": its CRC-32 is wrong; the file is damaged"));
}

struct ZipStream::State {
  std::shared_ptr<const MappedFile> file;
  std::string where;
  std::span<const std::byte> rest;  // of the data in the file
  uint64_t left;                    // of the content
  uint32_t crc = 0, expected_crc;
  bool deflated;
  z_stream stream{};

  ~State() {
    if (deflated) inflateEnd(&stream);
  }

  // Fills out[0, size) from the compressed data.
  void inflate_into(std::byte* out, size_t size) {
    while (size > 0) {
      const size_t in_now = std::min(rest.size(), kChunk), out_now = std::min(size, kChunk);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(rest.data()));
      stream.avail_in = static_cast<uInt>(in_now);
      stream.next_out = reinterpret_cast<Bytef*>(out);
      stream.avail_out = static_cast<uInt>(out_now);
      const int status = inflate(&stream, Z_NO_FLUSH);
      const size_t taken = in_now - stream.avail_in, made = out_now - stream.avail_out;
      rest = rest.subspan(taken);
      out += made, size -= made;
      if (status == Z_MEM_ERROR) throw RunError(cat(where, ": out of memory while inflating"));
      if ((status != Z_OK && status != Z_STREAM_END) ||
          (size > 0 && (status == Z_STREAM_END || taken + made == 0)))
        throw InputError(cat(where, ": the compressed data is damaged",
                             stream.msg != nullptr ? cat(" (", stream.msg, ")") : ""));
    }
  }
};

ZipStream::ZipStream(const ZipFile& file, const ZipEntry& entry) : state_(std::make_unique<State>()) {
  state_->file = file.mapping();
  state_->where = cat(file.path().string(), ": member \"", printable(entry.name), "\"");
  state_->rest = file.data(entry);
  state_->left = entry.size;
  state_->expected_crc = entry.crc;
  state_->deflated = false;
  // Negative window bits: deflate without a header.
  if (entry.deflated && inflateInit2(&state_->stream, -15) != Z_OK)
    throw RunError("out of memory while inflating");
  state_->deflated = entry.deflated;
}

ZipStream::~ZipStream() = default;
ZipStream::ZipStream(ZipStream&&) noexcept = default;
ZipStream& ZipStream::operator=(ZipStream&&) noexcept = default;

uint64_t ZipStream::left() const {
  return state_->left;
}

void ZipStream::read(void* out, size_t size) {
  State& s = *state_;
  if (size > s.left) throw InputError(cat(s.where, ": ", size, " bytes wanted, ", s.left, " are left"));
  if (s.deflated) {
    s.inflate_into(static_cast<std::byte*>(out), size);
  } else if (size > 0) {
    std::memcpy(out, s.rest.data(), size);
    s.rest = s.rest.subspan(size);
  }
  s.crc = crc_of(s.crc, out, size);
  s.left -= size;
  if (s.left == 0 && s.crc != s.expected_crc)
    throw InputError(cat(s.where, ": its CRC-32 is wrong; the file is damaged"));
}

namespace {

// Little-endian fields, one after another.
class Record {
 public:
  Record& u16(uint64_t value) { return put(value, 2); }
  Record& u32(uint64_t value) { return put(value, 4); }
  Record& u64(uint64_t value) { return put(value, 8); }
  Record& text(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  Record& put(uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes_ += static_cast<char>(value >> (8 * i) & 0xFF);
    return *this;
  }
  std::string bytes_;
};

uint64_t clip32(uint64_t value) {
  return std::min<uint64_t>(value, UINT32_MAX);
}

constexpr uint16_t kVersion = 20, kVersionZip64 = 45, kDosDate = 0x21;  // 1980-01-01, the format's first day

std::string deflate_all(std::span<const std::span<const std::byte>> pieces) {
  z_stream stream{};
  if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    throw RunError("out of memory while compressing");
  std::string out;
  std::vector<Bytef> buffer(size_t{1} << 18);
  const auto run = [&](std::span<const std::byte> piece, int flush) {
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(piece.data()));
    stream.avail_in = static_cast<uInt>(piece.size());
    do {
      stream.next_out = buffer.data();
      stream.avail_out = static_cast<uInt>(buffer.size());
      deflate(&stream, flush);  // cannot fail with a sound state and room for output
      out.append(reinterpret_cast<const char*>(buffer.data()), buffer.size() - stream.avail_out);
    } while (stream.avail_out == 0);
  };
  for (auto piece : pieces)
    for (; !piece.empty(); piece = piece.subspan(std::min(piece.size(), kChunk)))
      run(piece.first(std::min(piece.size(), kChunk)), Z_NO_FLUSH);
  run({}, Z_FINISH);
  deflateEnd(&stream);
  return out;
}

}  // namespace

ZipWriter::ZipWriter(const std::filesystem::path& path) : file_(path) {}

void ZipWriter::add(const std::string& name, std::span<const std::span<const std::byte>> pieces,
                    bool deflate) {
  for (const Written& member : members_)
    if (member.name == name) throw RunError(cat("the member \"", name, "\" of a zip archive is there twice"));
  if (name.size() > UINT16_MAX) throw RunError("the name of a zip member is too long");
  Written member{name, position_, 0, 0, 0, deflate};
  for (const auto piece : pieces) {
    member.crc = crc_of(member.crc, piece.data(), piece.size());
    member.size += piece.size();
  }
  const std::string packed = deflate ? deflate_all(pieces) : std::string();
  member.data_size = deflate ? packed.size() : member.size;
  const bool large = member.size >= UINT32_MAX || member.data_size >= UINT32_MAX;
  Record header;
  header.u32(kLocalHeader)
      .u16(large ? kVersionZip64 : kVersion)
      .u16(0)
      .u16(deflate ? 8 : 0)
      .u16(0)
      .u16(kDosDate);
  header.u32(member.crc).u32(large ? UINT32_MAX : member.data_size).u32(large ? UINT32_MAX : member.size);
  header.u16(name.size()).u16(large ? 20 : 0).text(name);
  if (large) header.u16(1).u16(16).u64(member.size).u64(member.data_size);
  file_.write(header.bytes());
  if (deflate)
    file_.write(packed);
  else
    for (const auto piece : pieces) file_.write(piece.data(), piece.size());
  position_ += header.bytes().size() + member.data_size;
  members_.push_back(std::move(member));
}

void ZipWriter::commit() {
  const uint64_t begin = position_;
  for (const Written& member : members_) {
    Record extra;
    for (const uint64_t value : {member.size, member.data_size, member.offset})
      if (value >= UINT32_MAX) extra.u64(value);
    const bool large = !extra.bytes().empty();
    Record record;
    record.u32(kCentralHeader)
        .u16(kVersionZip64)
        .u16(large ? kVersionZip64 : kVersion)
        .u16(0)
        .u16(member.deflated ? 8 : 0);
    record.u16(0).u16(kDosDate).u32(member.crc).u32(clip32(member.data_size)).u32(clip32(member.size));
    record.u16(member.name.size()).u16(large ? 4 + extra.bytes().size() : 0).u16(0).u16(0).u16(0).u32(0);
    record.u32(clip32(member.offset)).text(member.name);
    if (large) record.u16(1).u16(extra.bytes().size()).text(extra.bytes());
    file_.write(record.bytes());
    position_ += record.bytes().size();
  }
  const uint64_t size = position_ - begin, count = members_.size();
  Record end;
  if (begin >= UINT32_MAX || size >= UINT32_MAX || count >= UINT16_MAX) {
    end.u32(kZip64End).u64(kZip64EndSize - 12).u16(kVersionZip64).u16(kVersionZip64).u32(0).u32(0);
    end.u64(count).u64(count).u64(size).u64(begin);
    end.u32(kZip64Locator).u32(0).u64(position_).u32(1);
  }
  const uint64_t count16 = std::min<uint64_t>(count, UINT16_MAX);
  end.u32(kEnd).u16(0).u16(0).u16(count16).u16(count16).u32(clip32(size)).u32(clip32(begin)).u16(0);
  file_.write(end.bytes());
  file_.commit();
}

}  // namespace adanat
