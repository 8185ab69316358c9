#include "core/io/safetensors.h"

#include <cstring>
#include <fstream>

#include "core/io/atomic_file.h"
#include "io/bytes.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::expect_input_error;
using testing::TempDir;

std::string file_of(const std::string& header, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i)
    out += static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i) & 0xff);
  return out + header + data;
}

std::string bytes_of(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry& entry = file.at(name);
  return {reinterpret_cast<const char*>(file.data(entry)), static_cast<size_t>(entry.end - entry.begin)};
}

TEST(DTypeTest, NamesAndSizesAreInverse) {
  for (int i = 0; i <= static_cast<int>(DType::kU64); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  }
  EXPECT_EQ(size_of(DType::kBF16), 2u);
  EXPECT_EQ(size_of(DType::kBool), 1u);
  EXPECT_EQ(size_of(DType::kI64), 8u);
  EXPECT_FALSE(dtype_from_name("F6_E2M3"));
  EXPECT_FALSE(dtype_from_name("f32"));
}

TEST(SafetensorsTest, RoundTrip) {
  const TempDir dir;
  const auto path = dir / "a.safetensors";
  const float floats[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
  const int64_t scalar = -5;
  const uint8_t bytes[3] = {1, 2, 255};
  const std::map<std::string, std::string> metadata = {{"k", "v"}, {"json", "{\"a\": \"\\n\xc3\xa9\"}"}};
  const std::vector<TensorBytes> tensors = {{"b", DType::kU8, {3}, bytes, 3},
                                            {"f \"x\"", DType::kF32, {2, 3}, floats, sizeof floats},
                                            {"empty", DType::kF16, {0, 4}, nullptr, 0},
                                            {"s", DType::kI64, {}, &scalar, 8}};
  write_safetensors(path, tensors, metadata);
  const auto file = SafetensorsFile::open(path);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.entries().size(), 4u);
  EXPECT_EQ(file.entries()[0].name, "s");  // the largest element first
  EXPECT_EQ(file.at("f \"x\"").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.at("s").shape, std::vector<int64_t>{});
  EXPECT_EQ(file.at("empty").begin, file.at("empty").end);
  EXPECT_EQ(std::memcmp(file.data(file.at("f \"x\"")), floats, sizeof floats), 0);
  EXPECT_EQ(std::memcmp(file.data(file.at("s")), &scalar, 8), 0);
  EXPECT_EQ(bytes_of(file, "b"), std::string("\x01\x02\xff"));
  for (const TensorEntry& entry : file.entries())
    EXPECT_EQ(entry.begin % size_of(entry.dtype), 0u) << entry.name;
  EXPECT_EQ(file.find("nothing"), nullptr);
  expect_input_error([&] { file.at("nothing"); }, {path.c_str(), "\"nothing\""});

  // Equal content, equal bytes, whatever the order it came in.
  const auto again = dir / "b.safetensors";
  write_safetensors(again, {tensors[3], tensors[1], tensors[2], tensors[0]}, metadata);
  EXPECT_EQ(read_file(path), read_file(again));
}

TEST(SafetensorsTest, NothingAtAllIsAFile) {
  const TempDir dir;
  write_safetensors(dir / "a", {}, {});
  EXPECT_TRUE(SafetensorsFile::open(dir / "a").entries().empty());
}

TEST(SafetensorsTest, CopiesOutliveTheFirstObject) {
  const TempDir dir;
  const uint8_t bytes[2] = {8, 9};
  write_safetensors(dir / "a", {{"x", DType::kU8, {2}, bytes, 2}}, {});
  std::shared_ptr<const MappedFile> mapping;
  uint64_t begin = 0;
  {
    const auto file = SafetensorsFile::open(dir / "a");
    mapping = file.mapping();
    begin = file.at("x").begin;
  }
  std::filesystem::remove(dir / "a");
  EXPECT_EQ(mapping->data()[begin + 1], std::byte{9});
}

TEST(SafetensorsTest, WriterRefusesContradictions) {
  const TempDir dir;
  const float x[2] = {};
  const auto path = dir / "a";
  EXPECT_THROW(write_safetensors(path, {{"x", DType::kF32, {3}, x, 8}}, {}), RunError);
  EXPECT_THROW(write_safetensors(path, {{"x", DType::kF32, {-2}, x, 8}}, {}), RunError);
  EXPECT_THROW(write_safetensors(path, {{"x", DType::kF32, {2}, x, 8}, {"x", DType::kF32, {2}, x, 8}}, {}),
               RunError);
  EXPECT_THROW(write_safetensors(path, {{"__metadata__", DType::kF32, {2}, x, 8}}, {}), RunError);
  EXPECT_THROW(write_safetensors(path, {{"\xff", DType::kF32, {2}, x, 8}}, {}), RunError);
  EXPECT_THROW(write_safetensors(path, {{"x", DType::kF32, {2}, x, 8}}, {{"k", "\xc3"}}), RunError);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

struct BadHeader {
  const char* name;
  const char* header;
  size_t data_size;
  const char* message;
};

class SafetensorsBadHeader : public ::testing::TestWithParam<BadHeader> {};

TEST_P(SafetensorsBadHeader, IsRefusedWithItsReason) {
  const TempDir dir;
  const auto path = dir / "bad.safetensors";
  write_file_atomic(path, file_of(GetParam().header, std::string(GetParam().data_size, 'x')));
  expect_input_error([&] { SafetensorsFile::open(path); }, {path.c_str(), GetParam().message},
                     GetParam().name);
}

constexpr BadHeader kBadHeaders[] = {
    {"data cut short", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 15, "cut short"},
    {"data too long", R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 17, "take 16 bytes"},
    {"size is not the shape's", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}})", 16, "need 12"},
    {"reversed range", R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}})", 0, "[4, 0)"},
    {"overlap",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
     6, "overlap"},
    {"same bytes twice",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
     4, "overlap"},
    {"hole",
     R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})",
     6, "hole"},
    {"hole in front", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})", 4, "hole"},
    {"name twice",
     R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
     4, "\"a\" is there twice"},
    {"dtype twice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2,
     "\"dtype\" twice"},
    {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "twice"},
    {"metadata key twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, "twice"},
    {"metadata is no text", R"({"__metadata__":{"a":1}})", 0, "number"},
    {"metadata nested", R"({"__metadata__":{"a":{}}})", 0, "object"},
    {"product overflows", R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
     "2^63"},
    {"product overflows to the right size",
     R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}})", 0, "2^63"},
    {"product overflows behind a size of 0",
     R"({"a":{"dtype":"U8","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})", 0, "2^63"},
    {"size over 63 bits", R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0,
     "too large"},
    {"65 dimensions",
     R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,)"
     R"(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})",
     1, "more than 64 dimensions"},
    {"size over 64 bits", R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0]}})", 0,
     "fractions"},
    {"negative size", R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0, "negative"},
    {"fraction", R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,0]}})", 0, "fractions"},
    {"offset at the end of the range",
     R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,9223372036854775807]}})", 1,
     "cut short"},
    {"three offsets", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "two numbers"},
    {"one offset", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})", 1, "two numbers"},
    {"no shape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "\"shape\""},
    {"unknown dtype", R"({"a":{"dtype":"F6_E2M3","shape":[1],"data_offsets":[0,1]}})", 1, "F6_E2M3"},
    {"unknown key", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1, "unknown key"},
    {"tensor is a number", R"({"a":1})", 0, "number"},
    {"tensor is null", R"({"a":null})", 0, "null"},
    {"nested lists", R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "list"},
    {"not JSON", R"({"a":{"dtype":)", 0, "not valid JSON"},
    {"two documents", R"({}{})", 0, "not valid JSON"},
    {"a list", R"([])", 0, "'{'"},
    {"leading space", R"( {})", 0, "'{'"},
    {"not UTF-8", "{\"\xff\":{}}", 0, "not valid JSON"},
};
INSTANTIATE_TEST_SUITE_P(Rows, SafetensorsBadHeader, ::testing::ValuesIn(kBadHeaders));

TEST(SafetensorsTest, BadHeaderLengths) {
  const TempDir dir;
  const auto path = dir / "bad";
  const auto expect = [&](const std::string& bytes, const char* message) {
    write_file_atomic(path, bytes);
    expect_input_error([&] { SafetensorsFile::open(path); }, {path.c_str(), message});
  };
  expect("", "too few");
  expect("1234567", "too few");
  expect(std::string(8, '\0'), "'{'");
  expect(std::string(8, '\xff'), "limit");
  expect(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{}", "limit");      // 100,000,001
  expect(std::string("\x00\xe1\xf5\x05\0\0\0\0", 8) + "{}", "cut short");  // 100,000,000
  expect(std::string("\x03\0\0\0\0\0\0\0{}", 10), "cut short");
  expect_input_error([&] { SafetensorsFile::open(dir / "none"); }, {"none", "cannot open"});
  expect_input_error([&] { SafetensorsFile::open(dir.path()); }, {"folder"});
}

// Ten thousand nested lists: no recursion, no memory beyond the text.
TEST(SafetensorsTest, DeepNesting) {
  const TempDir dir;
  write_file_atomic(dir / "deep", file_of("{\"a\":" + std::string(10'000'000, '['), ""));
  expect_input_error([&] { SafetensorsFile::open(dir / "deep"); }, {"list"});
}

TEST(SafetensorsTest, UnalignedDataIsReadable) {
  const TempDir dir;
  // A header of odd length: the float starts at an odd byte.
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )";
  const float value = 2.5f;
  std::string data(4, '\0');
  std::memcpy(data.data(), &value, 4);
  write_file_atomic(dir / "odd", file_of(header.size() % 2 == 1 ? header : header + " ", data));
  const auto file = SafetensorsFile::open(dir / "odd");
  EXPECT_EQ(file.at("a").begin % 2, 1u);
  EXPECT_EQ(bytes_of(file, "a"), data);
}

// Every truncation and single-bit flips all over the header: an InputError or a parse whose ranges lie inside
// the file.
TEST(SafetensorsTest, DamagedHeadersNeverCrash) {
  const TempDir dir;
  const auto good = dir / "good", bad = dir / "bad";
  const float x[6] = {1, 2, 3, 4, 5, 6};
  write_safetensors(good, {{"w", DType::kF32, {2, 3}, x, 24}, {"b", DType::kU8, {3}, x, 3}}, {{"k", "v"}});
  const std::string bytes = read_file(good);
  const auto try_open = [&](const std::string& content) {
    std::ofstream(bad, std::ios::binary)
        << content;  // without the fsync of our own writer: thousands of files
    try {
      const auto file = SafetensorsFile::open(bad);
      for (const TensorEntry& entry : file.entries()) {
        EXPECT_LE(entry.begin, entry.end);
        EXPECT_LE(entry.end, content.size());
      }
      return true;
    } catch (const InputError& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return false;
    }
  };
  EXPECT_TRUE(try_open(bytes));
  for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(try_open(bytes.substr(0, size))) << size;
  const size_t header_end = bytes.size() - 27;
  int accepted = 0, tried = 0;
  for (size_t i = 0; i < header_end; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      if (i >= 8 && bit != static_cast<int>(i % 8) && bit != 5)
        continue;  // every bit of the length, two of each letter
      ++tried;
      std::string damaged = bytes;
      damaged[i] ^= static_cast<char>(1 << bit);
      accepted += try_open(damaged);
    }
  // Flips inside names and texts give another valid header; most others must not.
  EXPECT_LT(accepted, tried / 4);
}

}  // namespace
}  // namespace adanat
