#include "core/io/pth.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/io/atomic_file.h"
#include "core/io/float16.h"
#include "core/io/npy.h"
#include "core/io/zip.h"
#include "io/bytes.h"
#include "io/pickle_fixture.h"
#include "support/support.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::as_bytes;
using testing::Damage;
using testing::expect_input_error;
using testing::TempDir;

fs::path checkpoints() {
  return testing::golden_dir() / "checkpoints";
}

std::string torch_name(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return "bool";
    case DType::kU8:
      return "uint8";
    case DType::kI8:
      return "int8";
    case DType::kI16:
      return "int16";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF32:
      return "float32";
    case DType::kF64:
      return "float64";
    default:
      return name_of(dtype);
  }
}

// Every element as a double, through copy().
std::vector<double> values(const PthFile& file, const PthTensor& tensor) {
  NpyArray array{tensor.name, tensor.dtype, tensor.shape,
                 std::vector<std::byte>(static_cast<size_t>(tensor.count()) * size_of(tensor.dtype))};
  file.copy(tensor, array.bytes.data());
  if (tensor.dtype != DType::kBF16) return array.as_float64();
  std::vector<double> out;
  for (size_t i = 0; i < array.bytes.size(); i += 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, array.bytes.data() + i, 2);
    out.push_back(float_from_bfloat16(bits));
  }
  return out;
}

double number(const json& value) {
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value.is_string()) {
    const std::string text = value;
    if (text == "nan" || text == "NaN") return NAN;
    if (text == "inf" || text == "Infinity") return INFINITY;
    if (text == "-inf" || text == "-Infinity") return -INFINITY;
    ADD_FAILURE() << "unknown number " << text;
  }
  return value.get<double>();
}

// One file of tests/golden/data/checkpoints and what its row of expected.json asks for.
class CheckpointTest : public ::testing::TestWithParam<std::string> {};

TEST_P(CheckpointTest, IsWhatPyTorchSaved) {
  const TempDir empty;
  const fs::path before = fs::current_path();
  fs::current_path(empty.path());  // what a hostile file would create, it would create here
  static const json all = json::parse(read_file(checkpoints() / "expected.json"));
  const json& row = all.at(GetParam());
  const std::string expect = row.at("expect");
  try {
    const PthFile file = PthFile::open(checkpoints() / GetParam());
    for (const PthTensor& tensor : file.tensors()) file.storage(tensor);
    EXPECT_TRUE(expect == "ok" || expect == "ok_or_refuse") << expect << ", but it was read";
    const json& tensors = row.at("tensors");
    EXPECT_EQ(file.tensors().size(), tensors.size());
    for (const auto& [name, wanted] : tensors.items()) {
      const PthTensor* tensor = file.find(name);
      ASSERT_NE(tensor, nullptr) << name;
      EXPECT_EQ(torch_name(tensor->dtype), wanted.at("dtype").get<std::string>()) << name;
      EXPECT_EQ(tensor->shape, wanted.at("shape").get<std::vector<int64_t>>()) << name;
      const std::vector<double> got = values(file, *tensor);
      ASSERT_EQ(got.size(), wanted.at("values").size()) << name;
      for (size_t i = 0; i < got.size(); ++i) {
        const double want = number(wanted.at("values")[i]);
        EXPECT_TRUE(got[i] == want || (std::isnan(got[i]) && std::isnan(want)))
            << name << " " << i << ": " << got[i];
      }
    }
    if (row.contains("scalars"))
      for (const auto& [name, wanted] : row.at("scalars").items()) {
        const auto found = file.scalars().find(name);
        ASSERT_NE(found, file.scalars().end()) << name;
        if (wanted.is_string())
          EXPECT_EQ(found->second.text, wanted.get<std::string>());
        else
          EXPECT_EQ(found->second.integer, wanted.get<int64_t>()) << name;
      }
  } catch (const InputError& error) {
    EXPECT_NE(expect, "ok") << error.what();
    EXPECT_NE(std::string(error.what()).find(GetParam()), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
  }
  EXPECT_TRUE(fs::is_empty(empty.path()));
  fs::current_path(before);
}

std::vector<std::string> checkpoint_names() {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(checkpoints()))
    if (entry.path().extension() == ".pth") out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, CheckpointTest, ::testing::ValuesIn(checkpoint_names()),
                         [](const auto& info) { return info.param.substr(0, info.param.size() - 4); });

TEST(PthTest, EveryGoldenFileHasARow) {
  const json all = json::parse(read_file(checkpoints() / "expected.json"));
  EXPECT_EQ(all.size(), checkpoint_names().size());
  for (const std::string& name : checkpoint_names()) EXPECT_TRUE(all.contains(name)) << name;
}

TEST(PthTest, ContentDecidesNotTheName) {
  for (const char* name : {"small_zip.pth", "small_legacy.pth", "small_legacy_protocol4.pth"})
    EXPECT_TRUE(is_pth(as_bytes(read_file(checkpoints() / name)))) << name;
  for (const char* name : {"text.pth", "empty.pth"})
    EXPECT_FALSE(is_pth(as_bytes(read_file(checkpoints() / name)))) << name;
  EXPECT_EQ(PthFile::open(checkpoints() / "small_zip.pth").container(), "zip");
  EXPECT_EQ(PthFile::open(checkpoints() / "small_legacy.pth").container(), "legacy");
}

TEST(PthTest, SettingsOfAPolicyFile) {
  const PthFile file = PthFile::open(checkpoints() / "policy_zip.pth");
  // The Namespace is a plain map; its keys and kinds as they were saved.
  const auto& s = file.scalars();
  EXPECT_EQ(s.at("args.heu").integer, 1);
  EXPECT_EQ(s.at("args.gen_steps").integer, 8);
  EXPECT_EQ(s.at("args.upd_set.0").text, "manual_gen_ratios");
  EXPECT_EQ(s.at("args.lr").real, 1e-5);
  EXPECT_EQ(s.at("args.resume").kind, PthScalar::Kind::kNone);
  EXPECT_EQ(s.at("optimizer.param_groups.0.betas.1").real, 0.999);
  EXPECT_EQ(s.at("scaler.scale").real, 65536);
  EXPECT_TRUE(file.refused().empty());
  EXPECT_EQ(PthFile::open(checkpoints() / "numpy_scalar.pth").scalars().at("best").real, 1.5);
}

TEST(PthTest, SharedStoragesAreShared) {
  for (const char* name : {"mixed_zip.pth", "mixed_legacy.pth"}) {
    const PthFile file = PthFile::open(checkpoints() / name);
    const PthTensor &base = *file.find("base"), &view = *file.find("transposed_view");
    EXPECT_EQ(base.storage, view.storage);
    EXPECT_TRUE(base.contiguous());
    EXPECT_FALSE(view.contiguous());
    EXPECT_EQ(view.strides, (std::vector<int64_t>{1, 6}));
    EXPECT_EQ(file.storage(base).data(), file.storage(view).data());
  }
}

TEST(PthTest, HostileFilesAreNamedAndListed) {
  for (const char* name : {"hostile_zip.pth", "hostile_legacy.pth"}) {
    expect_input_error([&] { PthFile::open(checkpoints() / name); },
                       {name, "posix.system", "nothing in it was executed"});
    const PthFile file = PthFile::open(checkpoints() / name, UnknownNames::kList);
    EXPECT_EQ(file.refused(), std::vector<std::string>{"posix.system"});
    ASSERT_NE(file.find("w"), nullptr);
    EXPECT_EQ(values(file, *file.find("w")).size(), file.find("w")->count());
  }
  expect_input_error([&] { PthFile::open(checkpoints() / "hostile_eval.pth"); }, {"eval"});
  EXPECT_EQ(PthFile::open(checkpoints() / "hostile_eval.pth", UnknownNames::kList).refused(),
            std::vector<std::string>{"__builtin__.eval"});
}

TEST_F(PickleTest, PlainValues) {
  const std::string items = text("int") + number(-7) + text("long") + std::string("\x8a\x02\x00\xff", 4) +
                            text("big") + std::string("\x8a\x09\x01\x00\x00\x00\x00\x00\x00\x00\x7f", 11) +
                            text("float") + std::string("G\xc0\x08\x00\x00\x00\x00\x00\x00", 9) +
                            text("yes") + "\x88" + text("none") + "N" + text("list") + "](K\x05" + text("x") +
                            "e" + number(9) + "\x88";
  const PthFile file = open("}(" + items + "u");
  const auto& s = file.scalars();
  EXPECT_EQ(s.at("int").integer, -7);
  EXPECT_EQ(s.at("long").integer, -256);
  EXPECT_EQ(s.at("big").text, "0x7f0000000000000001");
  EXPECT_EQ(s.at("float").real, -3.0);
  EXPECT_EQ(s.at("yes").kind, PthScalar::Kind::kBool);
  EXPECT_EQ(s.at("yes").integer, 1);
  EXPECT_EQ(s.at("none").kind, PthScalar::Kind::kNone);
  EXPECT_EQ(s.at("list.0").integer, 5);
  EXPECT_EQ(s.at("list.1").text, "x");
  EXPECT_EQ(s.at("9").kind, PthScalar::Kind::kBool);
}

TEST_F(PickleTest, TensorsAreCheckedAgainstTheirStorage) {
  const std::string two_by_three = "K\x02K\x03\x86", row_major = "K\x03K\x01\x86";
  EXPECT_EQ(open(tensor("FloatStorage", 6, 0, two_by_three, row_major)).tensors().size(), 1u);
  EXPECT_EQ(open(tensor("FloatStorage", 6, 0, two_by_three, std::string("K\0K\0\x86", 5))).copied_bytes(),
            24u);
  refused(tensor("FloatStorage", 6, 1, two_by_three, row_major), {"reaches element 6 of a storage of 6"});
  refused(tensor("FloatStorage", 6, 0, two_by_three, "K\x04K\x01\x86"), {"reaches element 6"});
  refused(tensor("FloatStorage", 6, -1, two_by_three, row_major), {"size was expected"});
  refused(tensor("FloatStorage", 6, 0, two_by_three, "K\x03\x85"), {"do not fit"});
  refused(tensor("FloatStorage", 7, 0, two_by_three, row_major), {"a/data/0", "24 bytes", "28"});
  refused(tensor("FloatStorage", 5, 0, "K\x05\x85", "K\x01\x85"), {"a/data/0", "24 bytes", "20"});
  refused(tensor("FloatStorage", -6, 0, two_by_three, row_major), {"size was expected"});
  const std::string huge = number(INT32_MAX);
  refused(tensor("FloatStorage", 6, 0, huge + huge + huge + "\x87", std::string("K\0K\0K\0\x87", 7)),
          {"too large"});
  std::string endless = tensor("DoubleStorage", 6, 0, two_by_three, row_major);
  endless.replace(endless.find(number(6)), 5, "\x8a\x08" + std::string(7, '\xff') + "\x7f");
  refused(endless, {"a storage is too large"});
  std::string deep = "(";
  for (int i = 0; i < 65; ++i) deep += "K\x01";
  refused(tensor("FloatStorage", 6, 0, deep + "t", deep + "t"), {"too many dimensions"});
  const std::string other_type = global("torch._utils", "_rebuild_tensor_v3") + "((" + text("storage") +
                                 global("torch", "FloatStorage") + text("0") + text("cpu") + number(6) +
                                 "tQ" + number(0) + "K\x03\x85K\x01\x85\x89}" + global("torch", "float64") +
                                 "tR";
  refused(other_type, {"not its storage's"});
  // Terabytes from 24 bytes: allowed to exist, not to be copied unseen.
  const std::string many = number(1 << 20);
  EXPECT_EQ(
      open(tensor("FloatStorage", 6, 0, many + many + "\x86", std::string("K\0K\0\x86", 5))).copied_bytes(),
      uint64_t{4} << 40);
  refused(tensor("QInt8Storage", 24, 0, "K\x18\x85", "K\x01\x85"), {"torch.QInt8Storage"});
}

// Old versions of torch saved a part of a storage as a view of it.
TEST_F(PickleTest, StoragesMayBeViews) {
  const float numbers[] = {0, 1, 2, 3, 4, 5};
  const std::string bytes(reinterpret_cast<const char*>(numbers), sizeof numbers);
  const auto part = [](int begin, int count) {
    return tensor("FloatStorage", 6, 0, "K\x03\x85", "K\x01\x85", view(begin, count));
  };
  for (const bool deflate : {false, true}) {
    deflate_ = deflate;
    const PthFile zip = open(part(2, 3), UnknownNames::kRefuse, bytes);
    EXPECT_EQ(adanat::values(zip, zip.tensors().at(0)), (std::vector<double>{2, 3, 4}));
  }
  const PthFile old = legacy(part(2, 3), bytes, 6);
  EXPECT_EQ(adanat::values(old, old.tensors().at(0)), (std::vector<double>{2, 3, 4}));
  refused(part(4, 3), {"view of storage 0", "outside"});
  refused(part(2, 2), {"reaches element 2 of a storage of 2"});
}

TEST_F(PickleTest, LegacyContainersAreChecked) {
  const std::string whole = tensor("FloatStorage", 6, 0, "K\x06\x85", "K\x01\x85"), bytes(24, '\1');
  EXPECT_EQ(legacy(whole, bytes, 6).tensors().size(), 1u);
  expect_input_error([&] { legacy(whole, bytes, 6, false); }, {"a.pth", "big-endian"});
  expect_input_error([&] { legacy(whole, bytes, 5); }, {"a storage has 5 elements", "need 6"});
  expect_input_error([&] { legacy(whole, bytes.substr(0, 23), 6); }, {"runs out of the file"});
}

TEST_F(PickleTest, NumpyValuesArePlainData) {
  const std::string dtype = global("numpy", "dtype") + text("f8") + "\x89\x88\x87R(K\x03" + text("<") +
                            "NNNJ" + std::string(4, '\xff') + "J" + std::string(4, '\xff') +
                            std::string("K\0tb", 4);
  const double values[] = {1.5, -2};
  const std::string raw(reinterpret_cast<const char*>(values), 16);
  const std::string bytes = std::string("C\x10") + raw;
  const std::string scalar =
      global("numpy.core.multiarray", "scalar") + dtype + "C\x08" + raw.substr(0, 8) + "\x86R";
  EXPECT_EQ(open(scalar).scalars().at("").real, 1.5);
  const std::string array = global("numpy.core.multiarray", "_reconstruct") + global("numpy", "ndarray") +
                            std::string("K\0\x85", 3) + "C\x01" + "b\x87R(K\x01K\x02\x85" + dtype + "\x89" +
                            bytes + "tb";
  const PthFile file = open("}" + text("state") + array + "s");
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_EQ(file.tensors()[0].name, "state");
  EXPECT_EQ(adanat::values(file, file.tensors()[0]), (std::vector<double>{1.5, -2}));
  // Protocol 5 writes them otherwise.
  const std::string buffer =
      global("numpy._core.numeric", "_frombuffer") + "(" + bytes + dtype + "K\x02\x85" + text("C") + "tR";
  EXPECT_EQ(adanat::values(open(buffer), open(buffer).tensors().at(0)), (std::vector<double>{1.5, -2}));
  // Protocol 2 writes bytes as a text that is to be encoded.
  const std::string encode = global("_codecs", "encode");
  const auto encoded = [&](const std::string& characters, const std::string& encoding = "latin1") {
    return global("numpy.core.multiarray", "scalar") + dtype + encode + text(characters) + text(encoding) +
           "\x86R\x86R";
  };
  EXPECT_EQ(open(encoded(std::string(6, '\0') + "\xc3\xb8?")).scalars().at("").real, 1.5);
  refused(encoded(std::string(6, '\0') + "\xc4\x80?"), {"no latin1"});
  refused(encoded(std::string(7, '\0') + "\xc3"), {"no latin1"});
  refused(encoded(std::string(8, '\0'), "utf8"), {"unknown encoding"});
  refused(encoded(std::string(7, '\0')), {"too few or too many bytes"});
  refused(global("numpy.core.multiarray", "scalar") + global("torch", "complex128") + "C\x10" + raw + "\x86R",
          {"numpy does not have"});
  // A type that is not read leaves nothing of itself behind.
  const std::string complex =
      global("numpy", "dtype") + text("c16") + "\x89\x88\x87R(K\x03" + text("<") + "tb";
  const PthFile other =
      open("}" + text("a") + global("numpy.core.multiarray", "scalar") + complex + "C\x10" + raw + "\x86Rs",
           UnknownNames::kList);
  EXPECT_TRUE(other.scalars().empty());
  std::string repeated =
      encode + "q\x01" + text(std::string(200, 'x')) + std::string("q\0", 2) + text("latin1") + "q\x02(";
  for (int i = 0; i < 60; ++i) repeated += std::string("h\x01h\0h\x02\x86R", 8);
  refused(repeated + "t", {"decoded again and again"});
  std::string big = scalar;
  big.replace(big.find('<'), 1, ">");
  refused(big, {"big-endian"});
  refused(array.substr(0, array.size() - 6) + "\1" + "tb", {"damaged"});
}

TEST_F(PickleTest, WhatIsRefused) {
  refused("cos\nsystem\n" + text("touch pwned") + "\x85R", {"a.pth", "os.system"});
  refused(text("os") + text("system") + "\x93" + text("touch pwned") + "\x85R", {"os.system"});
  refused(global("torch.storage", "_load_from_bytes") + "C\x01x\x85R", {"torch.storage._load_from_bytes"});
  refused(global("builtins", "getattr") + ")R", {"builtins.getattr"});
  refused("c" + std::string(300, 'a') + "\nb\n", {"name without end"});
  refused(global("builtins", "int") + "K\x01\x85R", {"call of builtins.int"});
  refused("K\x01)R", {"call of what is no name"});
  refused("I01\n", {"operation 0x49"});
  refused("\x97", {"operation 0x97"});
  refused("\x82\x01", {"operation 0x82"});
  refused("h\x07", {"memo"});
  refused("Nq\x02h\x01", {"memo"});  // a place that nothing was put into
  refused("N.N", {"bytes follow"});
  refused(std::string("Nr\xff\xff\xff\x7f", 6), {"memo"});
  refused("0", {"missing"});
  refused("N(0a", {"missing"});
  refused("NN", {"one value"});
  refused("t", {"mark"});
  refused("X\xff\xff\xff\x7f", {"cut short"});
  refused(std::string("\x8d\xff\xff\xff\xff\xff\xff\xff\xff", 9), {"cut short"});
  refused("}(NNNu", {"no dict"});
  refused("Na", {"missing"});
  refused("NNa", {"no list"});
  refused("\x80\x01", {"protocol 1"});
  refused("\x80\x06", {"protocol 6"});
  expect_input_error([&] { open("N", UnknownNames::kRefuse, std::string(24, '\1'), "big"); }, {"big-endian"});
  expect_input_error([&] { open("N", UnknownNames::kRefuse, std::string(24, '\1'), "?"); }, {"byteorder"});
}

TEST_F(PickleTest, DeflatedStoragesAreBounded) {
  deflate_ = true;
  EXPECT_EQ(adanat::values(open(tensor("ByteStorage", 24, 0, "K\x18\x85", "K\x01\x85")),
                           open(tensor("ByteStorage", 24, 0, "K\x18\x85", "K\x01\x85")).tensors()[0]),
            std::vector<double>(24, 1));
  const int large = 80 << 20;
  expect_input_error(
      [&] {
        open(tensor("ByteStorage", large, 0, number(large) + "\x85", "K\x01\x85"), UnknownNames::kRefuse,
             std::string(size_t{large}, '\0'));
      },
      {"save it uncompressed"});
}

TEST(PthTest, RandomDamageIsNoticedOrHarmless) {
  const TempDir dir;
  Damage damage(11);
  for (const char* name : {"mixed_zip.pth", "mixed_legacy.pth", "policy_legacy.pth", "numpy_scalar.pth"}) {
    const std::string bytes = read_file(checkpoints() / name);
    for (int i = 0; i < 150; ++i) {
      std::string broken = damage.apply(bytes);
      if (i % 5 == 0) broken.resize(damage.next(broken.size()));
      std::ofstream(dir / "b.pth", std::ios::binary) << broken;
      for (const auto unknown : {UnknownNames::kRefuse, UnknownNames::kList}) {
        try {
          const PthFile file = PthFile::open(dir / "b.pth", unknown);
          for (const PthTensor& tensor : file.tensors())
            if (tensor.count() < 1 << 20) values(file, tensor);
        } catch (const InputError& error) {
          EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
        }
      }
    }
  }
}

TEST(PthTest, OtherArchivesSayWhatTheyAre) {
  const TempDir dir;
  const auto write = [&](std::initializer_list<const char*> names) {
    ZipWriter writer(dir / "a.zip");
    for (const char* name : names) writer.add(name, {}, false);
    writer.commit();
  };
  write({"mu.npy"});
  expect_input_error([&] { PthFile::open(dir / "a.zip"); }, {"a.zip", "no PyTorch file", "data.pkl"});
  write({"m/data.pkl", "m/constants.pkl"});
  expect_input_error([&] { PthFile::open(dir / "a.zip"); }, {"TorchScript"});
  write({"m/data.pkl", "n/data.pkl"});
  expect_input_error([&] { PthFile::open(dir / "a.zip"); }, {"two objects"});
  std::string tar(1024, '\0');
  tar.replace(257, 5, "ustar");
  std::ofstream(dir / "a.tar", std::ios::binary) << tar;
  expect_input_error([&] { PthFile::open(dir / "a.tar"); }, {"tar file", "0.1.10"});
}

}  // namespace
}  // namespace adanat
