#include "core/io/tar.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "core/base/error.h"
#include "core/io/gzip.h"

namespace adanat {
namespace {

constexpr uint64_t kBlock = 512;

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& where)
      : text_(reinterpret_cast<const char*>(bytes.data()), bytes.size()), where_(where) {}

  std::vector<TarEntry> read() {
    std::vector<TarEntry> entries;
    while (text_.size() - position_ >= kBlock) {
      const std::string_view header = text_.substr(position_, kBlock);
      if (header.find_first_not_of('\0') == std::string_view::npos) return entries;  // end-of-archive mark
      check_sum(header);
      // A pax size replaces the one in the header, which has only 33 bits.
      const char type = header[156];
      const bool extension = type == 'x' || type == 'g' || type == 'L' || type == 'K';
      uint64_t size = number(header.substr(124, 12), "size");
      if (!extension && pax_size_) size = *pax_size_;
      if (type >= '1' && type <= '6')
        size = 0;  // links, devices, folders: whatever the field says, nothing follows
      const uint64_t begin = position_ + kBlock;
      if (size > text_.size() - begin)
        fail(cat("an entry of ", size, " bytes, but only ", text_.size() - begin,
                 " follow; the archive is cut short"));
      const std::string_view body = text_.substr(begin, size);
      if (type == 'L') {
        long_name_ = std::string(body.substr(0, body.find('\0')));
      } else if (type == 'x') {
        read_pax(body);
      } else if (!extension) {
        std::string name = take_name(header);
        if (sparse_) fail(cat("\"", name, "\" is stored as a sparse file, which is not supported"));
        if ((type == '0' || type == '\0' || type == '7') && !name.empty() && name.back() != '/')
          entries.push_back({std::move(name), begin, size});
        else if (type == 'S')
          fail(cat("\"", name, "\" is stored as a sparse file, which is not supported"));
        long_name_.reset();
        pax_name_.reset();
        pax_size_.reset();
        sparse_ = false;
      }
      // The padding of the last entry may be missing.
      position_ = std::min<uint64_t>(text_.size(), begin + (size + kBlock - 1) / kBlock * kBlock);
    }
    if (position_ != text_.size()) fail("half a header; the archive is cut short");
    if (long_name_ || pax_name_ || pax_size_)
      fail("an extension header without its file; the archive is cut short");
    return entries;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(cat(where_, ": tar archive, byte ", position_, ": ", what));
  }

  // Octal text, or big-endian binary where the top bit of the first byte is set (GNU).
  uint64_t number(std::string_view field, const char* what) const {
    uint64_t value = 0;
    if (static_cast<unsigned char>(field[0]) & 0x80) {
      for (size_t i = 0; i < field.size(); ++i) {
        const auto byte = static_cast<unsigned char>(i == 0 ? field[i] & 0x7f : field[i]);
        if (value >> 55) fail(cat("the ", what, " is out of range"));
        value = value << 8 | byte;
      }
      return value;
    }
    size_t i = field.find_first_not_of(' ');
    if (i == std::string_view::npos) return 0;
    for (; i < field.size() && field[i] >= '0' && field[i] <= '7'; ++i)
      value = value << 3 | static_cast<uint64_t>(field[i] - '0');
    if (i < field.size() && field[i] != '\0' && field[i] != ' ') fail(cat("the ", what, " is not a number"));
    return value;
  }

  void check_sum(std::string_view header) const {
    uint64_t sum = 0;
    for (size_t i = 0; i < header.size(); ++i)
      sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(header[i]);
    if (number(header.substr(148, 8), "checksum") != sum)
      fail("the header's checksum is wrong; the archive is damaged or no tar");
  }

  // Records "LENGTH KEY=VALUE\n", LENGTH counting the whole record.
  void read_pax(std::string_view body) {
    while (!body.empty()) {
      if (body.find_first_not_of('\0') == std::string_view::npos) return;
      uint64_t length = 0;
      const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), length);
      const auto digits = static_cast<size_t>(end - body.data());
      if (error != std::errc() || digits >= body.size() || *end != ' ' || length > body.size() ||
          length < digits + 3 || body[length - 1] != '\n')
        fail("a broken pax header");
      const std::string_view record = body.substr(digits + 1, length - digits - 2);
      const size_t equals = record.find('=');
      if (equals == std::string_view::npos) fail("a broken pax header");
      const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key == "path") {
        pax_name_ = std::string(value);
      } else if (key == "size") {
        uint64_t size = 0;
        const auto parsed = std::from_chars(value.data(), value.data() + value.size(), size);
        if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size())
          fail("a broken size in a pax header");
        pax_size_ = size;
      } else if (key.starts_with("GNU.sparse.")) {
        sparse_ = true;
      }
      body.remove_prefix(length);
    }
  }

  std::string take_name(std::string_view header) const {
    const auto text = [&](size_t at, size_t size) {
      const std::string_view field = header.substr(at, size);
      return std::string(field.substr(0, field.find('\0')));
    };
    std::string name;
    if (pax_name_) {
      name = *pax_name_;
    } else if (long_name_) {
      name = *long_name_;
    } else {
      name = text(0, 100);
      // Old GNU archives ("ustar  ") keep times where POSIX ("ustar\0") keeps the prefix.
      if (header.substr(257, 6) == std::string_view("ustar\0", 6) && header[345] != '\0')
        name = text(345, 155) + "/" + name;
    }
    while (name.starts_with("./")) name.erase(0, name.find_first_not_of('/', 1));
    return name;
  }

  std::string_view text_;
  const std::string& where_;
  uint64_t position_ = 0;
  std::optional<std::string> long_name_, pax_name_;
  std::optional<uint64_t> pax_size_;
  bool sparse_ = false;
};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

std::vector<TarEntry> list_tar(std::span<const std::byte> bytes, const std::string& where) {
  if (bytes.size() < kBlock)
    throw InputError(cat(where, ": ", bytes.size(), " bytes are too few for a tar archive"));
  return Reader(bytes, where).read();
}

bool TarArchive::has_tar_name(const std::filesystem::path& path) {
  const std::string name = lower(path.filename().string());
  return name.ends_with(".tar") || name.ends_with(".tar.gz") || name.ends_with(".tgz");
}

std::shared_ptr<const TarArchive> TarArchive::open(const std::filesystem::path& path) {
  std::shared_ptr<TarArchive> archive(new TarArchive());
  std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  if (is_gzip(file->bytes())) {
    const uint64_t memory =
        static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    const uint64_t plausible = std::max(uint64_t{64} << 20, file->size() * kMaxRatio);
    archive->inflated_ =
        gunzip(file->bytes(), path.string(), std::min({kMaxInflated, memory / 2, plausible}));
    archive->bytes_ = std::as_bytes(std::span(archive->inflated_));
  } else {
    archive->file_ = file;
    archive->bytes_ = file->bytes();
  }
  archive->entries_ = list_tar(archive->bytes_, path.string());
  return archive;
}

}  // namespace adanat
