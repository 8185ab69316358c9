#include "core/io/npy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/io/float16.h"

namespace adanat {
namespace {

constexpr size_t kMaxRank = 64;  // numpy's own limit

struct Descr {
  DType dtype;
  const char* text;
};
constexpr std::array<Descr, 12> kDescrs = {{{DType::kBool, "|b1"},
                                            {DType::kU8, "|u1"},
                                            {DType::kI8, "|i1"},
                                            {DType::kI16, "<i2"},
                                            {DType::kU16, "<u2"},
                                            {DType::kF16, "<f2"},
                                            {DType::kI32, "<i4"},
                                            {DType::kU32, "<u4"},
                                            {DType::kF32, "<f4"},
                                            {DType::kF64, "<f8"},
                                            {DType::kI64, "<i8"},
                                            {DType::kU64, "<u8"}}};

DType dtype_from_descr(std::string_view text, const std::string& where) {
  for (const Descr& row : kDescrs)
    if (text.size() == 3 && text.substr(1) == row.text + 1 && (text[0] == row.text[0] || row.text[0] == '|'))
      return row.dtype;
  if (!text.empty() && (text[0] == '>' || text[0] == '!'))
    throw InputError(cat(where, ": its numbers are big-endian (", text, "); save it little-endian"));
  if (text.find('O') != std::string_view::npos)
    throw InputError(
        cat(where, ": holds Python objects (dtype ", text, "), which are not read; save plain numbers"));
  throw InputError(cat(where, ": its dtype ", text, " is not read; save it as float, int or bool"));
}

// Reads the dict literal of a header: exactly the three keys, in any order. Python's other ways to write them
// do not occur (numpy writes repr() of a dict).
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  NpyHeader parse() {
    NpyHeader header;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr" && !has_descr) {
        skip();
        if (at_ < text_.size() && text_[at_] != '\'' && text_[at_] != '"')
          throw InputError(
              cat(where_, ": is a structured array, which is not read; save its columns one by one"));
        header.dtype = dtype_from_descr(quoted(), where_);
        has_descr = true;
      } else if (key == "fortran_order" && !has_order) {
        header.fortran_order = boolean();
        has_order = true;
      } else if (key == "shape" && !has_shape) {
        header.shape = shape();
        has_shape = true;
      } else {
        fail();
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (at_ != text_.size() || !has_descr || !has_order || !has_shape) fail();
    return header;
  }

 private:
  [[noreturn]] void fail() const {
    throw InputError(
        cat(where_, ": the .npy header is damaged (near its byte ", at_, "), or was not written by numpy"));
  }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char c) {
    skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail();
  }
  std::string_view quoted() {
    skip();
    if (at_ == text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail();
    const char quote = text_[at_++];
    const size_t begin = at_, end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail();
    at_ = end + 1;
    const std::string_view out = text_.substr(begin, end - begin);
    // It goes into messages: nothing but what numpy writes gets through.
    if (out.size() > 64 ||
        !std::all_of(out.begin(), out.end(), [](char c) { return c > ' ' && c < 127 && c != '\\'; }))
      fail();
    return out;
  }
  bool boolean() {
    skip();
    for (const std::string_view word : {"True", "False"})
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return word == "True";
      }
    fail();
  }
  std::vector<int64_t> shape() {
    std::vector<int64_t> out;
    expect('(');
    while (!accept(')')) {
      skip();
      int64_t value = 0;
      const size_t begin = at_;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
        if (__builtin_mul_overflow(value, int64_t{10}, &value) ||
            __builtin_add_overflow(value, int64_t{text_[at_] - '0'}, &value))
          fail();
      if (at_ == begin || out.size() == kMaxRank) fail();
      accept('L');  // written by Python 2
      out.push_back(value);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return out;
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

uint64_t row_bytes_of(const NpyHeader& header) {
  uint64_t total = size_of(header.dtype);
  for (size_t i = 1; i < header.shape.size(); ++i) total *= static_cast<uint64_t>(header.shape[i]);
  return total;
}

void check_size(const NpyHeader& header, uint64_t file_size, const std::string& where) {
  if (file_size - header.header_size != header.bytes())
    throw InputError(cat(where, ": holds ", file_size - header.header_size,
                         " bytes, but its shape and its type ", name_of(header.dtype), " need ",
                         header.bytes(), "; it is cut short or damaged"));
}

// Turns elements in Fortran order into row-major order.
std::vector<std::byte> row_major(const std::vector<std::byte>& in, const std::vector<int64_t>& shape,
                                 size_t item) {
  std::vector<std::byte> out(in.size());
  std::vector<size_t> stride(shape.size());  // in the input, in elements
  size_t step = 1;
  for (size_t i = 0; i < shape.size(); ++i) stride[i] = step, step *= static_cast<size_t>(shape[i]);
  std::vector<int64_t> index(shape.size(), 0);
  size_t from = 0;
  for (size_t to = 0; to < out.size(); to += item) {
    std::memcpy(out.data() + to, in.data() + from * item, item);
    for (size_t axis = shape.size(); axis-- > 0;) {
      from += stride[axis];
      if (++index[axis] < shape[axis]) break;
      from -= stride[axis] * static_cast<size_t>(shape[axis]);
      index[axis] = 0;
    }
  }
  return out;
}

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

NpyArray make_array(const std::string& where, const NpyHeader& header, std::vector<std::byte> bytes) {
  NpyArray out{where, header.dtype, header.shape, std::move(bytes)};
  if (header.fortran_order && header.shape.size() > 1 && !out.bytes.empty())
    out.bytes = row_major(out.bytes, header.shape, size_of(header.dtype));
  return out;
}

void check_limit(const NpyHeader& header, uint64_t max_bytes, const std::string& where) {
  if (header.bytes() > max_bytes)
    throw InputError(
        cat(where, ": its ", header.bytes(), " bytes are more than the ", max_bytes, " allowed"));
}

void check_rows(const NpyHeader& header, const std::string& where) {
  if (header.fortran_order && header.shape.size() > 1)
    throw InputError(cat(where,
                         ": is in Fortran order and cannot be read row by row; save it with "
                         "numpy.ascontiguousarray"));
}

}  // namespace

uint64_t NpyHeader::bytes() const {
  return byte_count(shape, dtype).value();
}
uint64_t NpyHeader::count() const {
  return bytes() / size_of(dtype);
}

NpyHeader parse_npy_header(std::span<const std::byte> bytes, const std::string& where) {
  const auto u8 = [&](size_t i) { return std::to_integer<uint32_t>(bytes[i]); };
  if (bytes.size() < 10 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0)
    throw InputError(cat(where, ": does not start like a .npy file"));
  const uint32_t major = u8(6);
  if (major < 1 || major > 3 || u8(7) != 0)
    throw InputError(cat(where, ": has the .npy version ", major, ".", u8(7), "; 1.0, 2.0 and 3.0 are read"));
  size_t start = 10, size = u8(8) | u8(9) << 8;
  if (major > 1) {
    if (bytes.size() < 12) throw InputError(cat(where, ": the .npy header is cut short"));
    size |= static_cast<size_t>(u8(10) | u8(11) << 8) << 16;
    start = 12;
  }
  if (size > kMaxNpyHeader - start)
    throw InputError(cat(where, ": a .npy header of ", size, " bytes is too long"));
  if (size > bytes.size() - start) throw InputError(cat(where, ": the .npy header is cut short"));
  NpyHeader header = HeaderParser({reinterpret_cast<const char*>(bytes.data()) + start, size}, where).parse();
  header.header_size = start + size;
  if (!byte_count(header.shape, header.dtype)) throw InputError(cat(where, ": its shape is too large"));
  return header;
}

std::vector<double> NpyArray::as_float64() const {
  std::vector<double> out(count());
  const std::byte* p = bytes.data();
  const auto fill = [&](auto read) {
    const size_t item = size_of(dtype);
    for (size_t i = 0; i < out.size(); ++i) out[i] = read(p + i * item);
  };
  switch (dtype) {
    case DType::kF64:
      fill([](const std::byte* b) { return load<double>(b); });
      break;
    case DType::kF32:
      fill([](const std::byte* b) { return double{load<float>(b)}; });
      break;
    case DType::kF16:
      fill([](const std::byte* b) { return double{float_from_half(load<uint16_t>(b))}; });
      break;
    case DType::kU64:
      fill([](const std::byte* b) { return static_cast<double>(load<uint64_t>(b)); });
      break;
    default: {
      const std::vector<int64_t> values = as_int64();
      std::transform(values.begin(), values.end(), out.begin(),
                     [](int64_t v) { return static_cast<double>(v); });
    }
  }
  return out;
}

std::vector<int64_t> NpyArray::as_int64() const {
  std::vector<int64_t> out(count());
  const std::byte* p = bytes.data();
  const auto fill = [&](auto zero) {
    using T = decltype(zero);
    for (size_t i = 0; i < out.size(); ++i) {
      const T value = load<T>(p + i * sizeof(T));
      if constexpr (std::is_same_v<T, uint64_t>)
        if (value > uint64_t{INT64_MAX}) throw InputError(cat(where, ": the value ", value, " is too large"));
      out[i] = static_cast<int64_t>(value);
    }
  };
  switch (dtype) {
    case DType::kBool:
      for (size_t i = 0; i < out.size(); ++i) out[i] = bytes[i] != std::byte{0};
      break;
    case DType::kU8:
      fill(uint8_t{});
      break;
    case DType::kI8:
      fill(int8_t{});
      break;
    case DType::kI16:
      fill(int16_t{});
      break;
    case DType::kU16:
      fill(uint16_t{});
      break;
    case DType::kI32:
      fill(int32_t{});
      break;
    case DType::kU32:
      fill(uint32_t{});
      break;
    case DType::kI64:
      fill(int64_t{});
      break;
    case DType::kU64:
      fill(uint64_t{});
      break;
    default:
      throw InputError(cat(where, ": holds ", name_of(dtype), " numbers where integers are wanted"));
  }
  return out;
}

void NpyStream::read(void* out, int64_t rows) {
  if (rows < 0 || rows > this->rows() - position_)
    throw RunError(cat(where_, ": ", rows, " rows wanted, ", this->rows() - position_, " are left"));
  const uint64_t size = static_cast<uint64_t>(rows) * row_bytes_;
  if (member_) {
    member_->read(out, static_cast<size_t>(size));
  } else if (size > 0) {
    const uint64_t begin = header_.header_size + static_cast<uint64_t>(position_) * row_bytes_;
    std::memcpy(out, file_->data() + begin, static_cast<size_t>(size));
  }
  position_ += rows;
}

NpzFile NpzFile::open(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  if (!is_zip(file->bytes()))
    throw InputError(cat(path.string(), ": is no .npz file (it does not start like a zip archive)"));
  NpzFile out(ZipFile::open(std::move(file)));
  for (const ZipEntry& entry : out.zip_.entries())
    if (entry.name.size() > 4 && entry.name.ends_with(".npy"))
      out.names_.push_back(entry.name.substr(0, entry.name.size() - 4));
  return out;
}

bool NpzFile::contains(std::string_view name) const {
  return zip_.find(cat(name, ".npy")) != nullptr;
}

std::string NpzFile::where(std::string_view name) const {
  return cat(path().string(), ": ", printable(name));
}

const ZipEntry& NpzFile::entry(std::string_view name) const {
  if (const ZipEntry* found = zip_.find(cat(name, ".npy"))) return *found;
  std::string list;
  for (size_t i = 0; i < names_.size() && i < 8; ++i) list += (i == 0 ? "" : ", ") + printable(names_[i]);
  throw InputError(cat(path().string(), ": has no array \"", printable(name), "\"; it holds ",
                       names_.empty() ? "none" : list,
                       names_.size() > 8 ? cat(" and ", names_.size() - 8, " more") : ""));
}

namespace {

// The header of a member; the stream stands behind it then.
NpyHeader read_header(ZipStream& stream, const std::string& where) {
  // First what says how long the header is, then the rest of it: the stream cannot go back.
  std::vector<std::byte> bytes(12);
  if (stream.left() < bytes.size()) throw InputError(cat(where, ": is too short for a .npy file"));
  stream.read(bytes.data(), bytes.size());
  const auto u8 = [&](size_t i) { return std::to_integer<size_t>(bytes[i]); };
  size_t total = 10 + (u8(8) | u8(9) << 8);
  if (u8(6) > 1) total = 12 + (u8(8) | u8(9) << 8 | u8(10) << 16 | u8(11) << 24);
  total = std::clamp<size_t>(total, 12, kMaxNpyHeader);
  total = static_cast<size_t>(std::min<uint64_t>(total, 12 + stream.left()));
  bytes.resize(total);
  stream.read(bytes.data() + 12, total - 12);
  NpyHeader header = parse_npy_header(bytes, where);
  if (header.header_size != total) throw InputError(cat(where, ": the .npy header is damaged"));
  return header;
}

}  // namespace

NpyHeader NpzFile::header(std::string_view name) const {
  const ZipEntry& member = entry(name);
  ZipStream stream(zip_, member);
  const NpyHeader header = read_header(stream, where(name));
  check_size(header, member.size, where(name));
  return header;
}

NpyArray NpzFile::array(std::string_view name, uint64_t max_bytes) const {
  const ZipEntry& member = entry(name);
  ZipStream stream(zip_, member);
  const NpyHeader header = read_header(stream, where(name));
  check_size(header, member.size, where(name));
  check_limit(header, max_bytes, where(name));
  std::vector<std::byte> bytes(static_cast<size_t>(header.bytes()));
  stream.read(bytes.data(), bytes.size());
  return make_array(where(name), header, std::move(bytes));
}

NpyStream NpzFile::stream(std::string_view name) const {
  const ZipEntry& member = entry(name);
  NpyStream out;
  out.where_ = where(name);
  out.member_ = std::make_unique<ZipStream>(zip_, member);
  out.header_ = read_header(*out.member_, out.where_);
  check_size(out.header_, member.size, out.where_);
  check_rows(out.header_, out.where_);
  out.row_bytes_ = row_bytes_of(out.header_);
  return out;
}

void NpzFile::verify() const {
  for (const ZipEntry& entry : zip_.entries()) zip_.check_crc(entry);
}

NpyStream open_npy(const std::filesystem::path& path) {
  NpyStream out;
  out.where_ = path.string();
  out.file_ = MappedFile::open(path);
  out.header_ = parse_npy_header(out.file_->bytes(), out.where_);
  check_size(out.header_, out.file_->size(), out.where_);
  check_rows(out.header_, out.where_);
  out.row_bytes_ = row_bytes_of(out.header_);
  return out;
}

NpyArray read_npy(const std::filesystem::path& path, uint64_t max_bytes) {
  const auto file = MappedFile::open(path);
  const NpyHeader header = parse_npy_header(file->bytes(), path.string());
  check_size(header, file->size(), path.string());
  check_limit(header, max_bytes, path.string());
  const auto data = file->bytes().subspan(static_cast<size_t>(header.header_size));
  return make_array(path.string(), header, {data.begin(), data.end()});
}

std::string npy_header(DType dtype, const std::vector<int64_t>& shape) {
  const auto found =
      std::find_if(kDescrs.begin(), kDescrs.end(), [&](const Descr& row) { return row.dtype == dtype; });
  if (found == kDescrs.end()) throw RunError(cat("numpy has no type for ", name_of(dtype)));
  std::string sizes;
  for (size_t i = 0; i < shape.size(); ++i) sizes += cat(i == 0 ? "" : ", ", shape[i]);
  if (shape.size() == 1) sizes += ',';
  std::string text = cat("{'descr': '", found->text, "', 'fortran_order': False, 'shape': (", sizes, "), }");
  text.append(63 - (10 + text.size()) % 64,
              ' ');  // numpy leaves one byte for the newline: the total is a multiple of 64
  text += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(text.size() & 0xFF);
  out += static_cast<char>(text.size() >> 8);
  return out + text;
}

namespace {

void check_array(const TensorBytes& array, const std::filesystem::path& path) {
  for (const int64_t size : array.shape)
    if (size < 0) throw RunError(cat(path.string(), ": \"", array.name, "\" has the negative size ", size));
  const auto wanted = byte_count(array.shape, array.dtype);
  if (array.shape.size() > kMaxRank || !wanted || *wanted != array.size)
    throw RunError(cat(path.string(), ": \"", array.name, "\" has ", array.size,
                       " bytes, its shape and type need ", wanted ? *wanted : UINT64_MAX));
}

}  // namespace

void write_npz(const std::filesystem::path& path, const std::vector<TensorBytes>& arrays, bool deflate) {
  for (const TensorBytes& array : arrays) check_array(array, path);
  ZipWriter writer(path);
  for (const TensorBytes& array : arrays) {
    const std::string header = npy_header(array.dtype, array.shape);
    const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(header)),
                                                 {static_cast<const std::byte*>(array.data), array.size}};
    writer.add(array.name + ".npy", pieces, deflate);
  }
  writer.commit();
}

void write_npy(const std::filesystem::path& path, const TensorBytes& array) {
  check_array(array, path);
  AtomicFile file(path);
  file.write(npy_header(array.dtype, array.shape));
  file.write(array.data, array.size);
  file.commit();
}

}  // namespace adanat
