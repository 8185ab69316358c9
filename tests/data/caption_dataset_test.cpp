// Captioned images: tables in both forms, WebDataset shards, and what is broken in them.
#include <gtest/gtest.h>

#include "core/base/log.h"
#include "core/data/base64.h"
#include "core/data/dataset.h"
#include "core/data/sequential.h"
#include "data/files.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::expect_input_error;
using testing::gzip;
using testing::png_bytes;
using testing::put_file;
using testing::tar_end;
using testing::tar_entry;
using testing::TempDir;
using testing::test_image;
using Names = std::vector<std::string>;

std::string encode_base64(const std::string& bytes, bool safe = false) {
  const std::string letters =
      std::string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") + (safe ? "-_" : "+/");
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t v = 0;
    for (size_t k = 0; k < 3; ++k) v = v << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? letters[v >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

Names captions_of(const ImageDataset& dataset) {
  Names out;
  for (int64_t i = 0; i < dataset.size(); ++i) out.push_back(dataset.caption(i));
  return out;
}

TEST(Base64, ReadsBothAlphabets) {
  EXPECT_EQ(decode_base64(""), "");
  EXPECT_EQ(decode_base64("TWFu"), "Man");
  EXPECT_EQ(decode_base64("TWE="), "Ma");
  EXPECT_EQ(decode_base64("TWE"), "Ma");
  EXPECT_EQ(decode_base64("TQ=="), "M");
  EXPECT_EQ(decode_base64("++//"), decode_base64("--__"));
  std::string all;
  for (int i = 0; i < 257; ++i) all += char(i);
  EXPECT_EQ(decode_base64(encode_base64(all)), all);
  EXPECT_EQ(decode_base64(encode_base64(all, true)), all);
  for (const char* bad : {"T", "TWFuT", "TW!u", "TW u", "T===", "=", "TWFu\n"})
    EXPECT_FALSE(decode_base64(bad).has_value()) << bad;
}

TEST(TsvDataset, ReadsCaptionsAndPathsInEitherOrder) {
  const TempDir dir;
  put_file(dir / "images/1.png", png_bytes(4, 3, 1));
  put_file(dir / "images/2.png", png_bytes(4, 3, 2));
  for (const char* rows :
       {"a cat\timages/1.png\n a dog \timages/2.png\r\n", "images/1.png\ta cat\n\nimages/2.png\ta dog",
        "caption\timage\na cat\timages/1.png\na dog\timages/2.png\n",
        "FilePath\tTitle\nimages/1.png\ta cat\nimages/2.png\ta dog\n"}) {
    put_file(dir / "t.tsv", rows);
    const auto dataset = open_dataset(dir / "t.tsv");
    ASSERT_EQ(dataset->size(), 2) << rows;
    EXPECT_TRUE(dataset->has_captions());
    EXPECT_EQ(captions_of(*dataset), (Names{"a cat", "a dog"})) << rows;
    EXPECT_EQ(dataset->image(1).rgb, test_image(4, 3, 2).rgb);
    EXPECT_EQ(dataset->class_names(), (Names{"all"}));
    EXPECT_EQ(dataset->label(1), 0);
    EXPECT_NE(dataset->describe().find("2 captioned images"), std::string::npos);
  }
  EXPECT_EQ(captions_of(*open_dataset((dir / "t.tsv").string() + "@1:")), (Names{"a dog"}));
}

TEST(TsvDataset, ReadsImagesInsideTheTable) {
  const TempDir dir;
  const std::string rows[] = {"a.jpg\t0\tone\t" + encode_base64(png_bytes(4, 3, 1)) + "\n",
                              "b.jpg\t1\tt\xc3\xa9wo\t" + encode_base64(png_bytes(5, 3, 2), true) + "\n",
                              "c.jpg\t2\tthree\t" + encode_base64(png_bytes(6, 3, 3))};
  put_file(dir / "t.tsv", rows[0] + rows[1] + rows[2]);
  for (const bool indexed : {false, true}) {
    if (indexed)
      put_file(dir / "t.lineidx", "0\n" + std::to_string(rows[0].size()) + "\n" +
                                      std::to_string(rows[0].size() + rows[1].size()) + "\n");
    const auto dataset = open_dataset(dir / "t.tsv");
    EXPECT_EQ(captions_of(*dataset), (Names{"one", "t\xc3\xa9wo", "three"}));
    EXPECT_EQ(dataset->image(0).rgb, test_image(4, 3, 1).rgb);
    EXPECT_EQ(dataset->image(1).width, 5);
    EXPECT_EQ(dataset->image(2).width, 6);
  }
  for (const char* bad : {"0\n5\n", "0\n0\n", "0\n99999999\n", "0\nx\n", "0\n-1\n"}) {
    put_file(dir / "t.lineidx", bad);
    expect_input_error([&] { open_dataset(dir / "t.tsv"); },
                       {"t.lineidx", "line 2", "belongs to another file"}, bad);
  }
}

TEST(TsvDataset, NamesBrokenRowsAndReadersSkipThem) {
  const TempDir dir;
  put_file(dir / "good.png", png_bytes(4, 4, 9));
  put_file(dir / "broken.png", "no image");
  put_file(dir / "t.tsv",
           "a\tgood.png\n"
           "b\tbroken.png\n"
           "c\tabsent.png\n"
           "\tgood.png\n"
           "bad \xff text\tgood.png\n"
           "three\tcolumns\tgood.png\n"
           "one column good.png\n"
           "d\t\n"
           "e\tgood.png\n");
  const auto dataset = open_dataset(dir / "t.tsv");
  ASSERT_EQ(dataset->size(), 9);
  EXPECT_EQ(dataset->caption(0), "a");
  expect_input_error([&] { dataset->image(1); }, {"broken.png"});
  expect_input_error([&] { dataset->image(2); }, {"absent.png"});
  expect_input_error([&] { dataset->caption(3); }, {"t.tsv: row 4: has no caption"});
  expect_input_error([&] { dataset->caption(4); }, {"row 5: its caption is not valid UTF-8"});
  expect_input_error([&] { dataset->caption(5); }, {"row 6: has 3 columns, not 2"});
  expect_input_error([&] { dataset->image(6); }, {"row 7: has 1 columns, not 2"});
  expect_input_error([&] { dataset->image(7); }, {"row 8: names no image"});
  ::testing::internal::CaptureStderr();
  SequentialReader reader(*dataset, {.batch_size = 3, .crop = 4, .captions = true, .skip_broken = true});
  Names captions;
  while (const auto batch = reader.next()) {
    EXPECT_EQ(batch->labels.size(0), int64_t(batch->captions.size()));
    captions.insert(captions.end(), batch->captions.begin(), batch->captions.end());
  }
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(captions, (Names{"a", "e"}));
  EXPECT_EQ(reader.skipped(), 7);
  EXPECT_NE(said.find("broken.png"), std::string::npos) << said;
}

TEST(TsvDataset, AnyRowMayBeBroken) {
  const TempDir dir;
  const std::string good = "b.jpg\t1\ttwo\t" + encode_base64(png_bytes(5, 3, 2)) + "\n";
  // Fewer columns than four, two that look like a pair of caption and file, and more.
  for (const char* broken : {"a\tb\tc\n", "a\tb.jpg\n", "a\tb\tc\td\te\n"}) {
    put_file(dir / "t.tsv", broken + good + good);
    const auto dataset = open_dataset(dir / "t.tsv");
    expect_input_error([&] { dataset->image(0); }, {"row 1: has", "not 4"}, broken);
    EXPECT_EQ(dataset->caption(2), "two") << broken;
    EXPECT_EQ(dataset->image(2).width, 5) << broken;
  }
  put_file(dir / "t.tsv", good + "a\tb.jpg\n");
  EXPECT_EQ(open_dataset(dir / "t.tsv")->image(0).width, 5);
  put_file(dir / "t.tsv", "a\tb\tc\na\n" + good);
  EXPECT_EQ(open_dataset(dir / "t.tsv")->image(2).width, 5);
  put_file(dir / "c.png", png_bytes(4, 3, 1));
  put_file(dir / "t.tsv", "four\tcolumns\tin\tone\none\tc.png\ntwo\tc.png\n");
  EXPECT_EQ(open_dataset(dir / "t.tsv")->image(1).width, 4);
}

TEST(TsvDataset, SaysWhatItCannotUse) {
  const TempDir dir;
  put_file(dir / "t.tsv", "a cat\thttps://example.org/1.jpg\n");
  expect_input_error([&] { open_dataset(dir / "t.tsv"); },
                     {"its images are web addresses; fetch them first"});
  put_file(dir / "t.tsv", "one\ttwo\nthree\tfour\n");
  expect_input_error([&] { open_dataset(dir / "t.tsv"); }, {"cannot tell which column names the images"});
  put_file(dir / "t.tsv", "\n \n");
  expect_input_error([&] { open_dataset(dir / "t.tsv"); }, {"holds no rows"});
  put_file(dir / "t.tsv", "caption\timage\n");
  expect_input_error([&] { open_dataset(dir / "t.tsv"); }, {"holds no rows"});
  put_file(dir / "t.tsv", "a\tb.png\n");
  expect_input_error([&] { open_dataset((dir / "t.tsv").string() + "#test"); }, {"has no split \"test\""});
  // Four columns whose image is no base64, or base64 of no image.
  put_file(dir / "t.tsv", "a.jpg\t0\tone\t!!!\nb.jpg\t1\ttwo\tTWFu\n");
  const auto dataset = open_dataset(dir / "t.tsv");
  expect_input_error([&] { dataset->image(0); }, {"row 1: the image is no base64"});
  expect_input_error([&] { dataset->image(1); }, {"row 2"});
}

std::string sample_files(const std::string& key, const std::string& caption, uint8_t tint) {
  return tar_entry(key + ".json", "{}") + tar_entry(key + ".png", png_bytes(4, 4, tint)) +
         tar_entry(key + ".txt", caption);
}

TEST(ShardDataset, ReadsCaptionsOfShardsInOrder) {
  const TempDir dir;
  put_file(dir / "s/00000.tar",
           sample_files("00000/0002", "first\n", 1) + sample_files("00000/0001", "second", 2) + tar_end());
  put_file(dir / "s/00001.tar", sample_files("x", "third", 3) + tar_end());
  put_file(dir / "s/00000_stats.json", "{}");
  const std::string range = (dir / "s/{00000..00001}.tar").string();
  for (const std::string& path : {(dir / "s").string(), range}) {
    const auto dataset = open_dataset(path);
    EXPECT_TRUE(dataset->has_captions());
    EXPECT_EQ(captions_of(*dataset), (Names{"first", "second", "third"})) << path;
    EXPECT_EQ(dataset->image(1).rgb, test_image(4, 4, 2).rgb);
    EXPECT_EQ(dataset->class_names(), (Names{"all"}));
    EXPECT_NE(dataset->describe().find("3 captioned images in 2 shards"), std::string::npos)
        << dataset->describe();
  }
  EXPECT_EQ(captions_of(*open_dataset(range + "@1:3")), (Names{"second", "third"}));
  put_file(dir / "one.tar.gz", gzip(sample_files("a.b/c", "only", 4) + tar_end()));
  EXPECT_EQ(captions_of(*open_dataset(dir / "one.tar.gz")), (Names{"only"}));
  expect_input_error([&] { open_dataset((dir / "s/{00000..00002}.tar").string()); }, {"00002.tar"});
  expect_input_error([&] { open_dataset((dir / "s/{5..3}.tar").string()); }, {"is empty or over"});
}

TEST(ShardDataset, TakesClassesFromClsFiles) {
  const TempDir dir;
  const auto labelled = [](const std::string& key, const std::string& label) {
    return tar_entry(key + ".cls", label) + tar_entry(key + ".jpg", png_bytes(4, 4, 1));
  };
  put_file(dir / "s.tar", labelled("a", "2") + labelled("b", "0\n") + tar_end());
  const auto dataset = open_dataset(dir / "s.tar");
  EXPECT_FALSE(dataset->has_captions());
  EXPECT_EQ(dataset->class_names(), (Names{"0", "1", "2"}));
  EXPECT_EQ(dataset->label(0), 2);
  EXPECT_EQ(dataset->label(1), 0);
  for (const char* bad : {"", "x", "-1", "1.5", "99999999"}) {
    put_file(dir / "s.tar", labelled("a", "1") + labelled("b", bad) + tar_end());
    expect_input_error([&] { open_dataset(dir / "s.tar"); }, {"s.tar: b.cls must hold a class"}, bad);
  }
}

TEST(ShardDataset, BadSamples) {
  const TempDir dir;
  put_file(dir / "s.tar", sample_files("a", "good", 1) + tar_entry("b.txt", "no image") +
                              tar_entry("c.png", png_bytes(4, 4, 2)) + sample_files("d", " \n", 3) +
                              sample_files("e", "\xff", 4) + tar_entry("__meta__.txt", "x") +
                              tar_entry("nodot", "x") + tar_entry("f.png", "broken") +
                              tar_entry("f.txt", "of a broken image") + tar_end());
  ::testing::internal::CaptureStderr();
  const auto dataset = open_dataset(dir / "s.tar");
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("1 samples have no image"), std::string::npos);
  ASSERT_EQ(dataset->size(), 5);
  EXPECT_EQ(dataset->caption(0), "good");
  expect_input_error([&] { dataset->caption(1); }, {"s.tar: c.png: has no caption"});
  expect_input_error([&] { dataset->caption(2); }, {"its caption is empty"});
  expect_input_error([&] { dataset->caption(3); }, {"not valid UTF-8"});
  expect_input_error([&] { dataset->image(4); }, {"f.png"});
  put_file(dir / "t.tar", sample_files("a", "good", 1) + tar_entry("a.txt", "again") + tar_end());
  expect_input_error([&] { open_dataset(dir / "t.tar"); }, {"t.tar: holds a.txt although"});
}

TEST(ShardDataset, NamesThatAreNoPartOfASampleDoNotEndOne) {
  const TempDir dir;
  // What macOS writes beside each file, webdataset's notes, and a name that only looks like one.
  put_file(dir / "s.tar", tar_entry("._a.png", "x") + tar_entry("a.png", png_bytes(4, 4, 1)) +
                              tar_entry("._a.txt", "x") + tar_entry("__index__.json", "x") +
                              tar_entry("a.txt", "first") + sample_files("__b", "second", 2) + tar_end());
  ::testing::internal::CaptureStderr();
  const auto dataset = open_dataset(dir / "s.tar");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ASSERT_EQ(dataset->size(), 2);
  EXPECT_EQ(dataset->caption(0), "first");
  EXPECT_EQ(dataset->caption(1), "second");
}

TEST(ShardDataset, OfSeveralKindsOfImageTheFirstIsTaken) {
  const TempDir dir;
  put_file(dir / "s.tar", sample_files("a", "both", 1) + tar_entry("a.jpeg", "not read") + tar_end());
  const auto dataset = open_dataset(dir / "s.tar");
  ASSERT_EQ(dataset->size(), 1);
  EXPECT_EQ(dataset->image(0).width, 4);
  for (const char* twice : {"png", "jpeg"}) {
    put_file(dir / "t.tar", sample_files("a", "twice", 1) + tar_entry("a.jpeg", "other") +
                                tar_entry(cat("a.", twice), "again") + tar_end());
    expect_input_error([&] { open_dataset(dir / "t.tar"); }, {"t.tar: holds a.", twice, " although"});
  }
}

TEST(ShardDataset, LeavesOtherArchivesToTheirReaders) {
  const TempDir dir;
  put_file(dir / "tree.tar", tar_entry("cat/1.png", png_bytes(4, 4, 1)) +
                                 tar_entry("dog/1.png", png_bytes(4, 4, 2)) +
                                 tar_entry("README.txt", "classes") + tar_end());
  EXPECT_EQ(open_dataset(dir / "tree.tar")->class_names(), (Names{"cat", "dog"}));
  EXPECT_FALSE(open_dataset(dir / "tree.tar")->has_captions());
  put_file(dir / "n-1.tar", tar_entry("cat/1.png", png_bytes(4, 4, 1)) + tar_end());
  expect_input_error([&] { open_dataset((dir / "n-{1..1}.tar").string()); }, {"is no WebDataset shard"});
}

}  // namespace
}  // namespace adanat
