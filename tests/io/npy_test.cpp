#include "core/io/npy.h"

#include <cmath>
#include <cstring>
#include <fstream>

#include "core/io/float16.h"
#include "io/bytes.h"
#include "io/npz_samples.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::as_bytes;
using testing::Damage;
using testing::expect_input_error;
using testing::TempDir;

std::string npy(const std::string& header, const std::string& data, char major = 1) {
  std::string text = header + "\n";
  std::string out("\x93NUMPY", 6);
  out += major;
  out += '\0';
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) out += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return out + text + data;
}

template <class T>
std::string raw(std::initializer_list<T> values) {
  std::string out;
  for (const T value : values) out.append(reinterpret_cast<const char*>(&value), sizeof value);
  return out;
}

NpyHeader header_of(const std::string& bytes) {
  return parse_npy_header(as_bytes(bytes), "f");
}

TEST(NpyTest, HeadersOfAllVersionsAndTypes) {
  for (const char version : {1, 2, 3}) {
    const NpyHeader h =
        header_of(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }", "", version));
    EXPECT_EQ(h.dtype, DType::kF64);
    EXPECT_FALSE(h.fortran_order);
    EXPECT_EQ(h.shape, (std::vector<int64_t>{3, 4}));
    EXPECT_EQ(h.bytes(), 96u);
  }
  // Another order, other quotes, no spaces, no last comma, a scalar, one axis, Python 2's long.
  EXPECT_TRUE(header_of(npy("{\"shape\":(2,),\"fortran_order\":True,\"descr\":\"<i8\"}", "")).fortran_order);
  EXPECT_TRUE(header_of(npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", "")).shape.empty());
  EXPECT_EQ(header_of(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5L, 2L)}", "")).count(), 10u);
  const std::pair<const char*, DType> types[] = {
      {"|b1", DType::kBool}, {"|u1", DType::kU8},  {"|i1", DType::kI8},  {"<u1", DType::kU8},
      {"<i2", DType::kI16},  {"<u2", DType::kU16}, {"<f2", DType::kF16}, {"<i4", DType::kI32},
      {"<u4", DType::kU32},  {"<f4", DType::kF32}, {"<f8", DType::kF64}, {"<i8", DType::kI64},
      {"<u8", DType::kU64}};
  for (const auto& [descr, dtype] : types)
    EXPECT_EQ(
        header_of(npy(cat("{'descr': '", descr, "', 'fortran_order': False, 'shape': (0,)}"), "")).dtype,
        dtype);
}

TEST(NpyTest, HeadersThatAreRefused) {
  const auto refused = [](const std::string& bytes, std::initializer_list<const char*> parts) {
    expect_input_error([&] { header_of(bytes); }, parts, bytes);
  };
  const auto with = [](const std::string& descr, const std::string& shape) {
    return npy(cat("{'descr': ", descr, ", 'fortran_order': False, 'shape': ", shape, "}"), "");
  };
  refused("", {"f: ", "start"});
  refused("PK\x03\x04 and more", {"start"});
  refused(npy("{'descr': '<f8'}", "", 4), {"version 4.0"});
  refused(with("'>f8'", "(1,)"), {"big-endian"});
  refused(with("'|O'", "(1,)"), {"Python objects"});
  refused(with("'<U5'", "(1,)"), {"<U5"});
  refused(with("[('a', '<f8')]", "(1,)"), {"structured"});
  refused(with("'<f8'", "(1"), {"damaged"});
  refused(with("'<f8'", "(-1,)"), {"damaged"});
  refused(with("'<f8'", "(4294967296, 4294967296)"), {"too large"});
  refused(with("'<f8'", "(0, 4294967296, 4294967296)"), {"too large"});
  refused(with("'<f8'", "(99999999999999999999999,)"), {"damaged"});
  refused(npy("{'descr': '<f8', 'fortran_order': False}", ""), {"damaged"});
  refused(npy("{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': ()}", ""), {"damaged"});
  refused(npy("{'descr': '<f8', 'fortran_order': __import__('os'), 'shape': ()}", ""), {"damaged"});
  refused(with("'<f8'", "()").substr(0, 40), {"cut short"});
  const std::string whole = with("'<f8'", "()");
  refused(whole.substr(0, whole.size() - 1), {"cut short"});
  const auto of_rank = [](int rank) {
    std::string shape = "(";
    for (int i = 0; i < rank; ++i) shape += "1,";
    return shape + ")";
  };
  EXPECT_EQ(header_of(with("'<f8'", of_rank(64))).shape.size(), 64u);
  refused(with("'<f8'", of_rank(65)), {"damaged"});
}

TEST(NpyTest, Values) {
  const TempDir dir;
  const auto read = [&](const std::string& descr, const std::string& data, const std::string& shape) {
    std::ofstream(dir / "a.npy", std::ios::binary)
        << npy(cat("{'descr': '", descr, "', 'fortran_order': False, 'shape': ", shape, "}"), data);
    return read_npy(dir / "a.npy");
  };
  EXPECT_EQ(read("<f8", raw<double>({1.5, -2}), "(2,)").as_float64(), (std::vector<double>{1.5, -2}));
  EXPECT_EQ(read("<f4", raw<float>({1.5f, -2}), "(2,)").as_float64(), (std::vector<double>{1.5, -2}));
  EXPECT_EQ(read("<f2", raw<uint16_t>({0x3E00, 0xC000, 0x0001, 0x7BFF}), "(4,)").as_float64(),
            (std::vector<double>{1.5, -2, 0x1p-24, 65504}));
  EXPECT_EQ(read("<i8", raw<int64_t>({-5, int64_t{1} << 60}), "(2,)").as_int64(),
            (std::vector<int64_t>{-5, int64_t{1} << 60}));
  EXPECT_EQ(read("|u1", raw<uint8_t>({0, 255}), "(2,)").as_int64(), (std::vector<int64_t>{0, 255}));
  EXPECT_EQ(read("|b1", raw<uint8_t>({0, 1}), "(2,)").as_int64(), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(read("<i2", raw<int16_t>({-300}), "()").as_float64(), (std::vector<double>{-300}));
  EXPECT_EQ(read("<u8", raw<uint64_t>({UINT64_MAX}), "(1,)").as_float64(), (std::vector<double>{0x1p64}));
  expect_input_error([&] { read("<u8", raw<uint64_t>({UINT64_MAX}), "(1,)").as_int64(); }, {"too large"});
  expect_input_error([&] { read("<f4", raw<float>({1}), "(1,)").as_int64(); }, {"F32", "integers"});
  expect_input_error([&] { read("<f8", raw<double>({1}), "(2,)"); }, {"a.npy", "8 bytes", "16"});
  expect_input_error([&] { read("<f8", raw<double>({1, 2, 3}), "(2,)"); }, {"24 bytes", "16"});
  expect_input_error([&] { read_npy(dir / "a.npy", 15); }, {"a.npy"});
}

TEST(NpyTest, FortranOrderIsTurnedRound) {
  const TempDir dir;
  // a[i][j][k] = 100 i + 10 j + k with the shape (2, 3, 4), the first index fastest.
  std::string data;
  std::vector<double> expected;
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < 3; ++j)
      for (int i = 0; i < 2; ++i) data += raw<int32_t>({100 * i + 10 * j + k});
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) expected.push_back(100 * i + 10 * j + k);
  std::ofstream(dir / "f.npy", std::ios::binary)
      << npy("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 3, 4)}", data);
  const NpyArray array = read_npy(dir / "f.npy");
  EXPECT_EQ(array.as_float64(), expected);
  EXPECT_EQ(array.shape, (std::vector<int64_t>{2, 3, 4}));
  expect_input_error([&] { open_npy(dir / "f.npy"); }, {"f.npy", "Fortran"});
  std::ofstream(dir / "one.npy", std::ios::binary)
      << npy("{'descr': '<i4', 'fortran_order': True, 'shape': (2,)}", raw<int32_t>({7, 8}));
  EXPECT_EQ(open_npy(dir / "one.npy").rows(), 2);  // one axis: both orders are the same
}

TEST(NpyTest, HalfPrecisionIsExact) {
  EXPECT_EQ(float_from_half(0x0000), 0.0f);
  EXPECT_TRUE(std::signbit(float_from_half(0x8000)));
  EXPECT_EQ(float_from_half(0x03FF), 0x1.ff8p-15f);  // the largest subnormal
  EXPECT_EQ(float_from_half(0x0400), 0x1p-14f);
  EXPECT_EQ(float_from_half(0xFC00), -INFINITY);
  EXPECT_TRUE(std::isnan(float_from_half(0x7E00)));
  EXPECT_EQ(float_from_bfloat16(0xBF80), -1.0f);
}

// What write_npz must give back.
struct Arrays {
  std::vector<double> mu = {1, 2.5, -3};
  std::vector<float> sigma = {1, 2, 3, 4, 5, 6};
  std::vector<uint8_t> images = std::vector<uint8_t>(5 * 4 * 4 * 3);
  Arrays() {
    for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(i * 7);
  }
  std::vector<TensorBytes> list() const {
    return {{"mu", DType::kF64, {3}, mu.data(), 24},
            {"sigma", DType::kF32, {2, 3}, sigma.data(), 24},
            {"arr_0", DType::kU8, {5, 4, 4, 3}, images.data(), images.size()}};
  }
};

TEST(NpzTest, RoundTripStoredAndDeflated) {
  const TempDir dir;
  const Arrays arrays;
  for (const bool deflate : {false, true}) {
    write_npz(dir / "a.npz", arrays.list(), deflate);
    const NpzFile file(dir / "a.npz");
    EXPECT_EQ(file.names(), (std::vector<std::string>{"mu", "sigma", "arr_0"}));
    EXPECT_TRUE(file.contains("mu"));
    EXPECT_FALSE(file.contains("mu.npy"));
    EXPECT_EQ(file.header("sigma").shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(file.header("sigma").header_size % 64, 0u);
    EXPECT_EQ(file.array("mu").as_float64(), arrays.mu);
    EXPECT_EQ(file.array("sigma").as_float64(),
              std::vector<double>(arrays.sigma.begin(), arrays.sigma.end()));
    NpyStream stream = file.stream("arr_0");
    EXPECT_EQ(stream.rows(), 5);
    EXPECT_EQ(stream.row_bytes(), 48u);
    std::vector<uint8_t> images(arrays.images.size());
    stream.read(images.data(), 2);
    stream.read(images.data() + 96, 0);
    stream.read(images.data() + 96, 3);
    EXPECT_EQ(images, arrays.images);
    EXPECT_EQ(stream.position(), 5);
    file.verify();
    EXPECT_THROW(stream.read(images.data(), 1), RunError);
    expect_input_error([&] { file.array("sigma_s"); }, {"a.npz", "sigma_s", "mu, sigma, arr_0"});
    expect_input_error([&] { file.array("mu", 23); }, {"a.npz: mu", "24 bytes", "23"});
  }
  const auto before = std::filesystem::file_size(dir / "a.npz");
  write_npz(dir / "b.npz", arrays.list(), true);
  EXPECT_EQ(read_file(dir / "a.npz"), read_file(dir / "b.npz"));
  EXPECT_EQ(before, std::filesystem::file_size(dir / "b.npz"));
  EXPECT_THROW(write_npz(dir / "c.npz", {arrays.list()[0], arrays.list()[0]}), RunError);
  EXPECT_THROW(write_npz(dir / "c.npz", {{"mu", DType::kF64, {4}, arrays.mu.data(), 24}}), RunError);
  EXPECT_THROW(write_npz(dir / "c.npz", {{"mu", DType::kBF16, {12}, arrays.mu.data(), 24}}), RunError);
  EXPECT_FALSE(std::filesystem::exists(dir / "c.npz"));
}

TEST(NpzTest, ReadsWhatNumpyWrote) {
  const TempDir dir;
  for (const char* hex : {testing::kNumpyStored, testing::kNumpyDeflated}) {
    write_file_atomic(dir / "n.npz", testing::from_hex(hex));
    const NpzFile file(dir / "n.npz");
    EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(file.array("a").as_int64(), (std::vector<int64_t>{0, 1, 2}));
    EXPECT_EQ(file.array("b").as_float64(), (std::vector<double>{1, 2, 3, 4}));
    EXPECT_TRUE(file.header("b").fortran_order);
  }
}

// One member of content `content` under `name`, with every field open to change.
std::string zip_of(const std::string& name, const std::string& content) {
  const TempDir dir;
  ZipWriter writer(dir / "z.zip");
  const std::span<const std::byte> pieces[] = {as_bytes(content)};
  writer.add(name, pieces, false);
  writer.add("second", pieces, true);
  writer.commit();
  return read_file(dir / "z.zip");
}

class ZipDamageTest : public ::testing::Test {
 protected:
  void write(const std::string& bytes) { std::ofstream(dir_ / "z.zip", std::ios::binary) << bytes; }
  void expect_refused(std::string bytes, std::initializer_list<const char*> parts) {
    write(bytes);
    expect_input_error(
        [&] {
          const ZipFile file = ZipFile::open(dir_ / "z.zip");
          for (const ZipEntry& entry : file.entries()) file.read(entry, 1 << 20);
        },
        parts);
  }
  // Byte offset of the n-th central record, and of the end record.
  size_t central(int n) const {
    size_t at = bytes_.find(std::string("PK\x01\x02", 4));
    for (; n > 0; --n) at = bytes_.find(std::string("PK\x01\x02", 4), at + 1);
    return at;
  }
  size_t end() const { return bytes_.size() - 22; }
  // Little-endian.
  static std::string number(uint64_t value, int bytes) {
    std::string out;
    for (; bytes > 0; --bytes, value >>= 8) out.push_back(char(value & 0xFF));
    return out;
  }
  std::string with(size_t at, const std::string& patch) const {
    std::string out = bytes_;
    return out.replace(at, patch.size(), patch);
  }
  TempDir dir_;
  const std::string content_ =
      "some content that is long enough to be worth compressing, compressing, compressing";
  const std::string bytes_ = zip_of("first", content_);
};

TEST_F(ZipDamageTest, EveryFieldIsChecked) {
  write(bytes_);
  const ZipFile file = ZipFile::open(dir_ / "z.zip");
  ASSERT_EQ(file.entries().size(), 2u);
  for (const ZipEntry& entry : file.entries()) EXPECT_EQ(file.read(entry, 1 << 20), content_);
  EXPECT_LT(file.find("second")->data_size, content_.size());
  EXPECT_EQ(file.find("third"), nullptr);
  expect_input_error([&] { file.read(*file.find("first"), 10); }, {"first", "10 allowed"});

  const std::string four("\xff\xff\xff\x7f", 4);
  expect_refused("", {"z.zip", "too few"});
  expect_refused(std::string(100, 'x'), {"end of the zip archive"});
  expect_refused(bytes_.substr(0, bytes_.size() - 1), {"end of the zip archive"});
  expect_refused(with(35, "X"), {"first", "CRC"});
  expect_refused(with(0, "XX"), {"first", "local header"});
  expect_refused(with(30, "F"), {"contradicts"});               // the local name
  expect_refused(with(central(0) + 46, "F"), {"contradicts"});  // the central name
  expect_refused(with(central(0) + 8, std::string("\x01", 1)), {"encrypted"});
  expect_refused(with(central(0) + 10, std::string("\x0c", 1)), {"method 12"});
  expect_refused(with(central(0) + 16, "abcd"), {"contradicts"});     // the CRC
  expect_refused(with(central(0) + 20, four), {"first", "run out"});  // size in the file
  expect_refused(with(central(0) + 24, four), {"first", "differ"});   // size of the content
  expect_refused(with(central(1) + 24, four), {"second", "cannot become"});
  expect_refused(with(central(1) + 24, std::string("\x90", 1)), {"second", "damaged"});  // ends before that
  expect_refused(with(central(0) + 42, four), {"first", "local header"});
  expect_refused(with(central(1) + 42, std::string(4, '\0')),
                 {"contradicts"});  // both at the first local header
  expect_refused(with(central(0), "XX"), {"damaged"});
  expect_refused(with(central(0) + 28, std::string("\xff\xff", 2)), {"damaged"});
  expect_refused(with(end() + 8, std::string("\x03\x00\x03\x00", 4)), {"damaged"});
  expect_refused(with(end() + 8, std::string("\xff\xff\xff\xff", 4)), {"cannot hold"});
  expect_refused(with(end() + 12, four), {"outside"});
  expect_refused(with(end() + 16, four), {"outside"});
  expect_refused(with(end() + 4, std::string("\x01", 1)), {"several disks"});
  // Bounds that are missed by little: data up to the directory's place, an overlap of one byte.
  expect_refused(with(central(1) + 20, number(central(0), 4)), {"second", "run out"});
  const std::string longer = number(content_.size() + 1, 4);
  std::string overlapping = with(central(0) + 20, longer + longer);
  expect_refused(overlapping, {"first", "overlap"});
}

TEST_F(ZipDamageTest, Zip64FieldsAreChecked) {
  // The second member's size in a zip64 field that is too short for it.
  std::string bytes = with(central(1) + 24, std::string(4, '\xff'));
  bytes.replace(central(1) + 30, 2, number(8, 2));
  bytes.insert(central(1) + 46 + std::string("second").size(), std::string("\x01\0\x04\0", 4) + "abcd");
  const uint64_t directory = end() - central(0);
  bytes.replace(end() + 8 + 12, 4, number(directory + 8, 4));
  expect_refused(bytes, {"second", "zip64 field is too short"});
  // An end record that reaches into what comes behind it.
  const std::string locator = std::string("PK\x06\x07", 4) + number(0, 4) + number(end(), 8) + number(1, 4);
  bytes = bytes_;
  bytes.insert(end(), std::string("PK\x06\x06", 4) + locator);
  expect_refused(bytes, {"zip64 end record is not where"});
}

TEST_F(ZipDamageTest, CheckCrcReadsBothKinds) {
  for (const auto& [name, offset] : {std::pair{"first", 3}, std::pair{"second", 10}}) {
    write(bytes_);
    const uint64_t begin = ZipFile::open(dir_ / "z.zip").find(name)->begin;
    write(with(static_cast<size_t>(begin) + offset, "!"));
    const ZipFile file = ZipFile::open(dir_ / "z.zip");
    expect_input_error([&] { file.check_crc(*file.find(name)); }, {name});
    file.check_crc(*file.find(std::string(name) == "first" ? "second" : "first"));
  }
}

TEST_F(ZipDamageTest, MembersMustNotOverlap) {
  // Two names for the same bytes: the second central record points to the first member, with the first one's
  // name.
  std::string bytes = bytes_;
  const size_t first = central(0), second = central(1);
  std::string record = bytes.substr(first, 46 + 5);
  bytes.replace(second, end() - second, record);
  const size_t at = bytes.size() - 22;
  const uint32_t size = static_cast<uint32_t>(at - first);
  bytes.replace(at + 12, 4, reinterpret_cast<const char*>(&size), 4);
  expect_refused(bytes, {"overlap"});
}

TEST_F(ZipDamageTest, RandomDamageNeverGivesOtherContent) {
  Damage damage(5);
  for (int i = 0; i < 500; ++i) {
    write(damage.apply(bytes_));
    try {
      const ZipFile file = ZipFile::open(dir_ / "z.zip");
      for (const ZipEntry& entry : file.entries()) EXPECT_EQ(file.read(entry, 1 << 20), content_);
    } catch (const InputError& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  }
}

TEST(NpzTest, CommentsAndFoldersAreAllowed) {
  const TempDir dir;
  const double value = 4;
  write_npz(dir / "a.npz", {{"mu", DType::kF64, {}, &value, 8}});
  std::string bytes = read_file(dir / "a.npz");
  bytes[bytes.size() - 2] = 7;
  write_file_atomic(dir / "a.npz", bytes + "comment");
  EXPECT_EQ(NpzFile(dir / "a.npz").array("mu").as_float64(), std::vector<double>{4});
}

// Names of members go into messages, which are one line.
TEST(NpzTest, NamesAreNotTrustedInMessages) {
  const TempDir dir;
  const double value = 4;
  write_npz(dir / "a.npz", {{"m\nu\x1b[31m", DType::kF64, {}, &value, 8}});
  expect_input_error([&] { NpzFile(dir / "a.npz").array("m\nu\x1b[31m", 7); }, {"m\\nu?[31m"});
}

// Members above 4 GiB: sparse files make them cheap to have, if not to check (no CRC is read here).
TEST(NpzTest, MembersAboveFourGiB) {
  const TempDir dir;
  const int64_t rows = 5000, row = 1024 * 1024;
  const std::string header = npy_header(DType::kU8, {rows, 1024, 1024});
  const std::string name = "arr_0.npy";
  const uint64_t size = header.size() + static_cast<uint64_t>(rows) * row;
  const auto le = [](uint64_t value, int bytes) {
    std::string out;
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
    return out;
  };
  const std::string f4 = le(UINT32_MAX, 4), zip64 = le(1, 2) + le(16, 2) + le(size, 8) + le(size, 8);
  const std::string local = "PK\x03\x04" + le(45, 2) + le(0, 2) + le(0, 2) + le(0, 4) + le(0, 4) + f4 + f4 +
                            le(name.size(), 2) + le(zip64.size(), 2) + name + zip64;
  const std::string central = "PK\x01\x02" + le(45, 2) + le(45, 2) + le(0, 4) + le(0, 4) + le(0, 4) + f4 +
                              f4 + le(name.size(), 2) + le(zip64.size(), 2) + le(0, 6) + le(0, 4) + le(0, 4) +
                              name + zip64;
  const uint64_t directory = local.size() + size;
  const std::string end = "PK\x06\x06" + le(44, 8) + le(45, 2) + le(45, 2) + le(0, 8) + le(1, 8) + le(1, 8) +
                          le(central.size(), 8) + le(directory, 8) + "PK\x06\x07" + le(0, 4) +
                          le(directory + central.size(), 8) + le(1, 4) + "PK\x05\x06" + le(0, 4) +
                          le(0xFFFF, 2) + le(0xFFFF, 2) + f4 + f4 + le(0, 2);
  {
    std::ofstream out(dir / "large.npz", std::ios::binary);
    out << local << header;
    out.seekp(static_cast<std::streamoff>(local.size() + header.size() + (rows - 1) * row));
    out << std::string(row, 'z') << central << end;
  }
  const NpzFile file(dir / "large.npz");
  EXPECT_EQ(file.header("arr_0").shape, (std::vector<int64_t>{rows, 1024, 1024}));
  NpyStream stream = file.stream("arr_0");
  std::vector<char> first(row, 'x');
  stream.read(first.data(), 1);
  EXPECT_EQ(first, std::vector<char>(row, '\0'));
  expect_input_error([&] { file.array("arr_0"); }, {"more than"});
}

}  // namespace
}  // namespace adanat
