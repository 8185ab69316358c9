#include <cstring>

#include "core/io/atomic_file.h"
#include "core/io/gzip.h"
#include "core/io/tar.h"
#include "io/bytes.h"
#include "io/tar_builder.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::as_bytes;
using testing::Damage;
using testing::expect_input_error;
using testing::tar_end;
using testing::tar_entry;
using testing::tar_header;

TEST(GzipTest, Inflates) {
  const std::string text = "hello " + std::string(100'000, 'x');
  const std::string packed = testing::gzip(text);
  EXPECT_EQ(gunzip(as_bytes(packed), "f", text.size()), text);
  EXPECT_EQ(gunzip(as_bytes(testing::gzip("")), "f", 0), "");
  EXPECT_EQ(gunzip(as_bytes(packed + testing::gzip("more")), "f", 1 << 20), text + "more");
  EXPECT_EQ(gunzip(as_bytes(packed + std::string(700, '\0')), "f", 1 << 20), text);  // padded, as on tapes
}

TEST(GzipTest, OutputIsBounded) {
  const std::string text(1'000'000, '\0');
  const std::string bomb = testing::gzip(text);
  EXPECT_LT(bomb.size(), 2000u);
  expect_input_error([&] { gunzip(as_bytes(bomb), "f.gz", 999'999); },
                     {"f.gz", "more than the 999999 bytes"});
  EXPECT_EQ(gunzip(as_bytes(bomb), "f.gz", 1'000'000).size(), 1'000'000u);
  // Two members together are over the limit.
  expect_input_error([&] { gunzip(as_bytes(bomb + bomb), "f.gz", 1'500'000); }, {"more than"});
  // A last field that promises 4 GB does not make us allocate them.
  std::string liar = bomb;
  liar.replace(liar.size() - 4, 4, "\xff\xff\xff\xff");
  expect_input_error([&] { gunzip(as_bytes(liar), "f.gz", uint64_t{1} << 40); }, {"damaged"});
}

TEST(GzipTest, DamageIsNoticed) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += std::to_string(i * i);
  const std::string packed = testing::gzip(text);
  for (size_t size = 0; size < packed.size(); size += size < 40 ? 1 : 61)
    expect_input_error([&] { gunzip(as_bytes(std::string_view(packed).substr(0, size)), "f", 1 << 20); },
                       {"f: "}, cat("size ", size));
  expect_input_error([&] { gunzip(as_bytes(packed + "tail"), "f", 1 << 20); }, {"follow"});
  EXPECT_EQ(gunzip_start(as_bytes(packed), "f", 5), text.substr(0, 5));
  EXPECT_EQ(gunzip_start(as_bytes(packed), "f", text.size() + 9), text);
  EXPECT_EQ(gunzip_start(as_bytes(std::string_view(packed).substr(0, 10)), "f", 5),
            "");  // nothing but the gzip header
  expect_input_error([&] { gunzip_start(as_bytes("no gzip"), "f", 5); }, {"f: is not"});
  Damage damage(1);
  for (int i = 0; i < 2000; ++i) {
    try {
      // Flips in the header's time and the like are harmless; the checksum catches the rest.
      EXPECT_EQ(gunzip(as_bytes(damage.apply(packed)), "f", 1 << 20), text);
    } catch (const InputError&) {
    }
  }
}

TEST(TarTest, ListsRegularFilesOnly) {
  const std::string archive = tar_entry("top/", "", '5') + tar_entry("top/a.txt", "alpha") +
                              tar_entry("link", "", '2') + tar_entry("top/old", "beta", '\0') +
                              tar_entry("./top/empty", "") +
                              tar_entry("b.txt", std::string(512, 'b'), '0', "a/long/prefix") + tar_end();
  const auto entries = list_tar(as_bytes(archive), "x.tar");
  ASSERT_EQ(entries.size(), 4u);
  EXPECT_EQ(entries[0].name, "top/a.txt");
  EXPECT_EQ(archive.substr(entries[0].begin, entries[0].size), "alpha");
  EXPECT_EQ(entries[1].name, "top/old");
  EXPECT_EQ(archive.substr(entries[1].begin, entries[1].size), "beta");
  EXPECT_EQ(entries[2].name, "top/empty");
  EXPECT_EQ(entries[2].size, 0u);
  EXPECT_EQ(entries[3].name, "a/long/prefix/b.txt");
  EXPECT_EQ(entries[3].size, 512u);
}

TEST(TarTest, LongNames) {
  const std::string name = std::string(180, 'd') + "/" + std::string(90, 'f') + ".jpg";
  const std::string body = "path=" + name + "\n";
  std::string record = cat(body.size() + 4, " ", body);
  ASSERT_EQ(std::stoul(record), record.size());
  const std::string pax = tar_entry("PaxHeader",
                                    "11 comment=\n"
                                    "24 mtime=1234567890.12345\n" +
                                        record,
                                    'x');
  const std::string broken_pax = tar_entry("PaxHeader", record, 'x');
  const auto entries =
      list_tar(as_bytes(tar_entry("././@LongLink", name + '\0', 'L') + tar_entry("cut", "gnu") + broken_pax +
                        tar_entry("cut", "pax") + tar_entry("plain", "p") + tar_end()),
               "x");
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].name, name);
  EXPECT_EQ(entries[1].name, name);
  EXPECT_EQ(entries[2].name, "plain");
  expect_input_error([&] { list_tar(as_bytes(pax + tar_entry("a", "")), "x"); },
                     {"broken pax"});  // 11 is not its length
}

TEST(TarTest, NamesAreOnlyStrings) {
  const auto entries =
      list_tar(as_bytes(tar_entry("../../etc/passwd", "x") + tar_entry("/abs", "y") + tar_end()), "x");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].name, "../../etc/passwd");
  EXPECT_EQ(entries[1].name, "/abs");
}

TEST(TarTest, EndsWithoutItsMark) {
  EXPECT_EQ(list_tar(as_bytes(tar_entry("a", "1") + tar_entry("b", "2")), "x").size(), 2u);
  EXPECT_EQ(list_tar(as_bytes(tar_header("a", 3, '0') + "123"), "x").size(), 1u);  // padding missing
}

TEST(TarTest, HostileArchives) {
  const auto refuse = [](const std::string& archive, const char* message) {
    expect_input_error([&] { list_tar(as_bytes(archive), "x.tar"); }, {"x.tar", message}, message);
  };
  refuse("", "too few");
  refuse(std::string(600, 'a'), "checksum");
  refuse(tar_header("a", 1000, '0') + "short", "cut short");
  refuse(tar_header("a", 077777777777, '0') + std::string(512, ' '), "cut short");
  refuse(tar_entry("a", "1") + std::string(100, 'x'), "half a header");
  refuse(tar_entry("n", "name", 'L'), "without its file");
  refuse(tar_entry("s", "data", 'S') + tar_end(), "sparse");
  refuse(tar_entry("p", "22 GNU.sparse.major=1\n", 'x') + tar_entry("s", "data") + tar_end(), "sparse");
  for (const char* pax : {"5 a=b", "99 path=x\n", "0 path=x\n", "x path=x\n", "10 pathxx\n", "13 size=abc\n",
                          "18446744073709551615 a=b\n"})
    refuse(tar_entry("p", pax, 'x') + tar_entry("a", ""), "pax");
  // A size from pax that wraps around when it is rounded up to blocks.
  refuse(tar_entry("p", "29 size=18446744073709551615\n", 'x') + tar_entry("a", "1") + tar_end(),
         "cut short");
  // Binary sizes beyond 64 bits, with a correct checksum.
  std::string header = tar_header("a", 0, '0');
  header.replace(124, 12, 12, '\xff');
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  char text[9];
  std::snprintf(text, sizeof text, "%06o", sum);
  header.replace(148, 6, text, 6);
  header[154] = '\0';
  refuse(header, "out of range");
}

TEST(TarTest, DamagedArchivesNeverLeaveTheBytes) {
  const std::string archive = tar_entry("n", "11 path=ab\n", 'x') + tar_entry("a/b.jpg", "1234") +
                              tar_entry("L", "long", 'L') + tar_entry("c", std::string(700, 'c')) + tar_end();
  const auto inspect = [](const std::string& bytes) {
    try {
      for (const TarEntry& entry : list_tar(as_bytes(bytes), "x")) {
        EXPECT_LE(entry.begin, bytes.size());
        EXPECT_LE(entry.size, bytes.size() - entry.begin);
      }
    } catch (const InputError&) {
    }
  };
  for (size_t size = 0; size <= archive.size(); ++size) inspect(archive.substr(0, size));
  Damage damage(2);
  for (int i = 0; i < 20000; ++i) inspect(damage.apply(archive));
}

TEST(TarArchiveTest, PlainAndGzip) {
  const testing::TempDir dir;
  const std::string archive = tar_entry("a/x", "one") + tar_entry("a/y", "two") + tar_end();
  write_file_atomic(dir / "p.tar", archive);
  write_file_atomic(dir / "z.tar.gz", testing::gzip(archive));
  for (const char* name : {"p.tar", "z.tar.gz"}) {
    const auto opened = TarArchive::open(dir / name);
    ASSERT_EQ(opened->entries().size(), 2u);
    const auto bytes = opened->bytes(opened->entries()[1]);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()), "two");
  }
  EXPECT_TRUE(TarArchive::has_tar_name("x/A.TAR.GZ"));
  EXPECT_TRUE(TarArchive::has_tar_name("a.tgz"));
  EXPECT_FALSE(TarArchive::has_tar_name("a.gz"));
}

}  // namespace
}  // namespace adanat
