#include "core/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/io/atomic_file.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // as the reference reader
constexpr size_t kMaxRank = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

uint64_t load_u64_le(const std::byte* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

// Reads the header's JSON as a stream of events, so that a hostile header costs no more memory than the
// entries that it names: no document tree is built, and nothing but the expected shape gets past the first
// wrong token.
class HeaderReader : public json::json_sax_t {
 public:
  explicit HeaderReader(std::string where) : where_(std::move(where)) {}

  std::vector<TensorEntry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(std::size_t) override {
    if (state_ == State::kStart) return go(State::kTop);
    if (state_ == State::kTensorValue) return go(State::kTensor);
    if (state_ == State::kMetadataValue) return go(State::kMetadata);
    fail("an object is not allowed here");
  }

  bool key(string_t& text) override {
    switch (state_) {
      case State::kTop:
        if (text == kMetadataKey) {
          if (std::exchange(has_metadata_, true)) fail("is there twice", text);
          return go(State::kMetadataValue);
        }
        if (!names_.insert(text).second) fail("is there twice", text);
        entries.push_back({text, DType::kU8, {}, 0, 0});
        has_dtype_ = has_shape_ = has_offsets_ = false;
        return go(State::kTensorValue);
      case State::kTensor:
        if (text == "dtype") return once(has_dtype_, text), go(State::kDtype);
        if (text == "shape") return once(has_shape_, text), go(State::kShapeValue);
        if (text == "data_offsets") return once(has_offsets_, text), go(State::kOffsetsValue);
        fail(cat("has the unknown key \"", printable(text), "\""), entries.back().name);
      case State::kMetadata:
        if (metadata.contains(text)) fail(cat("holds \"", printable(text), "\" twice"), kMetadataKey);
        metadata_key_ = text;
        return go(State::kMetadataString);
      default:
        fail("a key is not allowed here");
    }
  }

  bool end_object() override {
    if (state_ == State::kTensor) {
      const std::string& name = entries.back().name;
      if (!has_dtype_) fail("has no \"dtype\"", name);
      if (!has_shape_) fail("has no \"shape\"", name);
      if (!has_offsets_ || numbers_in_offsets_ != 2) fail("needs \"data_offsets\" of two numbers", name);
      return go(State::kTop);
    }
    if (state_ == State::kMetadata) return go(State::kTop);
    return go(State::kEnd);
  }

  bool string(string_t& text) override {
    if (state_ == State::kDtype) {
      const auto dtype = dtype_from_name(text);
      if (!dtype)
        fail(cat("has the dtype \"", printable(text), "\", which this program does not read"),
             entries.back().name);
      entries.back().dtype = *dtype;
      return go(State::kTensor);
    }
    if (state_ == State::kMetadataString) {
      metadata.emplace(std::move(metadata_key_), text);
      return go(State::kMetadata);
    }
    fail("a text is not allowed here");
  }

  bool start_array(std::size_t) override {
    if (state_ == State::kShapeValue) return go(State::kShape);
    if (state_ == State::kOffsetsValue) {
      numbers_in_offsets_ = 0;
      return go(State::kOffsets);
    }
    fail("a list is not allowed here");
  }
  bool end_array() override { return go(State::kTensor); }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > uint64_t{INT64_MAX}) fail(cat("the number ", value, " is too large"));
    if (state_ == State::kShape) {
      if (entries.back().shape.size() == kMaxRank)
        fail(cat("has more than ", kMaxRank, " dimensions"), entries.back().name);
      entries.back().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (numbers_in_offsets_ == 0) entries.back().begin = value;
      if (numbers_in_offsets_ == 1) entries.back().end = value;
      if (++numbers_in_offsets_ > 2) fail("needs \"data_offsets\" of two numbers", entries.back().name);
      return true;
    }
    fail("a number is not allowed here");
  }

  bool null() override { fail("null is not allowed"); }
  bool boolean(bool) override { fail("true and false are not allowed"); }
  bool number_integer(number_integer_t) override { fail("negative numbers are not allowed"); }
  bool number_float(number_float_t, const string_t&) override { fail("fractions are not allowed"); }
  bool binary(binary_t&) override { fail("binary values are not allowed"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw InputError(cat(where_, ": the safetensors header is not valid JSON (at byte ", position,
                         "); the file is damaged or no safetensors file"));
  }

 private:
  enum class State {
    kStart,
    kTop,
    kTensorValue,
    kTensor,
    kDtype,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kMetadataValue,
    kMetadata,
    kMetadataString,
    kEnd
  };

  bool go(State state) {
    state_ = state;
    return true;
  }
  void once(bool& seen, const std::string& key) {
    if (std::exchange(seen, true)) fail(cat("has \"", key, "\" twice"), entries.back().name);
  }
  [[noreturn]] void fail(const std::string& what, std::string_view name) const {
    throw InputError(cat(where_, ": safetensors header: \"", printable(name), "\" ", what));
  }
  [[noreturn]] void fail(const std::string& what) const {
    const std::string after =
        entries.empty() ? "" : cat(" (in or after \"", printable(entries.back().name), "\")");
    throw InputError(cat(where_, ": safetensors header: ", what, after));
  }

  std::string where_;
  State state_ = State::kStart;
  std::set<std::string> names_;
  std::string metadata_key_;
  bool has_metadata_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int numbers_in_offsets_ = 0;
};

// The ranges (still relative to the data) must follow one another from 0 to data_size without hole or
// overlap.
void check_ranges(std::vector<TensorEntry>& entries, uint64_t data_size, const std::string& where) {
  std::sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t expected = 0;
  for (const TensorEntry& entry : entries) {
    const auto fail = [&](const std::string& what) {
      throw InputError(cat(where, ": \"", printable(entry.name), "\" ", what));
    };
    if (entry.begin > entry.end || entry.end > data_size)
      fail(cat("has the bytes [", entry.begin, ", ", entry.end, "), but the file holds ", data_size,
               " bytes of data; it is cut short or damaged"));
    if (entry.begin != expected)
      fail(cat("starts at byte ", entry.begin, ", but ", expected, " was expected: the tensors ",
               entry.begin < expected ? "overlap" : "leave a hole"));
    const auto size = byte_count(entry.shape, entry.dtype);
    if (!size || *size != entry.end - entry.begin)
      fail(cat("has ", entry.end - entry.begin, " bytes, but its shape and its type ", name_of(entry.dtype),
               " need ", size ? std::to_string(*size) : std::string("more than 2^63")));
    expected = entry.end;
  }
  if (expected != data_size)
    throw InputError(cat(where, ": the tensors take ", expected, " bytes, but the file holds ", data_size,
                         " bytes of data; it is damaged"));
}

std::string json_text(const std::string& text, const fs::path& path) {
  try {
    return json(text).dump();
  } catch (const json::exception&) {
    throw RunError(cat(path.string(), ": a name or a metadata text is not valid UTF-8"));
  }
}

void check_tensors(const std::vector<TensorBytes>& tensors, const fs::path& path) {
  std::set<std::string_view> names;
  for (const TensorBytes& tensor : tensors) {
    const auto fail = [&](const std::string& what) {
      throw RunError(cat(path.string(), ": \"", tensor.name, "\" ", what));
    };
    if (tensor.name == kMetadataKey) fail("is a reserved name");
    if (!names.insert(tensor.name).second) fail("is there twice");
    for (const int64_t size : tensor.shape)
      if (size < 0) fail(cat("has the negative size ", size));
    const auto expected = byte_count(tensor.shape, tensor.dtype);
    if (!expected || *expected != tensor.size)
      fail(cat("has ", tensor.size, " bytes, but its shape and type need ",
               expected ? *expected : UINT64_MAX));
  }
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const fs::path& path) {
  SafetensorsFile result;
  result.file_ = MappedFile::open(path);
  const MappedFile& file = *result.file_;
  const std::string where = path.string();
  if (file.size() < 8)
    throw InputError(
        cat(where, ": ", file.size(), " bytes are too few for a safetensors file; it is cut short"));
  const uint64_t header_size = load_u64_le(file.data());
  if (header_size > kMaxHeader)
    throw InputError(cat(where, ": its first 8 bytes say a header of ", header_size, " bytes, the limit is ",
                         kMaxHeader, "; it is no safetensors file"));
  if (header_size > file.size() - 8)
    throw InputError(cat(where, ": the header takes ", header_size, " bytes, but only ", file.size() - 8,
                         " follow; it is cut short"));
  const char* text = reinterpret_cast<const char*>(file.data()) + 8;
  if (header_size == 0 || text[0] != '{')
    throw InputError(cat(where, ": the header does not start with '{'; it is no safetensors file"));

  HeaderReader reader(where);
  json::sax_parse(text, text + header_size, &reader);
  const uint64_t data_begin = 8 + header_size;
  check_ranges(reader.entries, file.size() - data_begin, where);
  result.entries_ = std::move(reader.entries);
  result.metadata_ = std::move(reader.metadata);
  for (size_t i = 0; i < result.entries_.size(); ++i) {
    TensorEntry& entry = result.entries_[i];
    entry.begin += data_begin;
    entry.end += data_begin;
    result.index_.emplace(entry.name, i);
  }
  return result;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  if (const TensorEntry* entry = find(name)) return *entry;
  throw InputError(cat(path().string(), ": has no tensor \"", printable(name), "\""));
}

const std::byte* SafetensorsFile::data(const TensorEntry& entry) const {
  return file_->data() + entry.begin;
}

void write_safetensors(const fs::path& path, std::vector<TensorBytes> tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_tensors(tensors, path);
  std::sort(tensors.begin(), tensors.end(), [](const TensorBytes& a, const TensorBytes& b) {
    const size_t size_a = size_of(a.dtype), size_b = size_of(b.dtype);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  // Written by hand: the order of the keys is part of what makes equal content give equal bytes.
  std::string header = "{";
  const auto separate = [&] {
    if (header.back() != '{') header += ',';
  };
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      separate();
      header += json_text(key, path) + ":" + json_text(value, path);
    }
    header += '}';
  }
  uint64_t offset = 0;
  for (const TensorBytes& tensor : tensors) {
    separate();
    header += cat(json_text(tensor.name, path), ":{\"dtype\":\"", name_of(tensor.dtype),
                  "\",\"shape\":", json(tensor.shape).dump(), ",\"data_offsets\":[", offset, ",",
                  offset + tensor.size, "]}");
    offset += tensor.size;
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > kMaxHeader)
    throw RunError(
        cat(path.string(), ": a header of ", header.size(), " bytes is over the limit of ", kMaxHeader));

  char length[8];
  for (int i = 0; i < 8; ++i)
    length[i] = static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i) & 0xFF);
  AtomicFile file(path);
  file.write(length, sizeof length);
  file.write(header);
  for (const TensorBytes& tensor : tensors) file.write(tensor.data, tensor.size);
  file.commit();
}

}  // namespace adanat
