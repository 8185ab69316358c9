#include "core/data/dataset.h"

#include <set>

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
using Names = std::vector<std::string>;

// "class/file" of every item.
Names items_of(const ImageDataset& dataset) {
  Names out;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const std::string name = dataset.item_name(i);
    out.push_back(dataset.class_names()[static_cast<size_t>(dataset.label(i))] + "/" +
                  name.substr(name.rfind('/') + 1));
  }
  return out;
}

TEST(FolderDatasetTest, ClassIsTheFolder) {
  const TempDir dir;
  for (const char* name : {"dog/b.png", "dog/a.png", "cat/z.png", "cat/deep/er/y.png"})
    put_file(dir / name, png_bytes(3, 2, 7));
  put_file(dir / "README.txt", "beside the classes: ignored");
  put_file(dir / "cat/.hidden.png", "x");
  put_file(dir / ".git/x.png", "x");
  const auto dataset = open_dataset(dir.path());
  EXPECT_EQ(dataset->class_names(), (Names{"cat", "dog"}));
  EXPECT_EQ(items_of(*dataset), (Names{"cat/y.png", "cat/z.png", "dog/a.png", "dog/b.png"}));
  EXPECT_EQ(dataset->image(2).rgb, testing::test_image(3, 2, 7).rgb);
  EXPECT_EQ(dataset->item_name(1), (dir / "cat/z.png").string());
  EXPECT_NE(dataset->describe().find("4 images, 2 classes"), std::string::npos) << dataset->describe();
}

TEST(FolderDatasetTest, IntegerNamesSortByValue) {
  const TempDir dir;
  for (const char* name : {"10/a.png", "9/a.png", "2/a.png", "0/a.png"})
    put_file(dir / name, png_bytes(2, 2, 0));
  EXPECT_EQ(open_dataset(dir.path())->class_names(), (Names{"0", "2", "9", "10"}));
  // Files stay in the order of their names as text.
  EXPECT_EQ(items_of(*open_dataset(dir.path())), (Names{"0/a.png", "10/a.png", "2/a.png", "9/a.png"}));
  put_file(dir / "x/a.png", png_bytes(2, 2, 0));
  EXPECT_EQ(open_dataset(dir.path())->class_names(), (Names{"0", "10", "2", "9", "x"}));
}

TEST(FolderDatasetTest, FlatFolderIsOneClass) {
  const TempDir dir;
  put_file(dir / "b.PNG", png_bytes(2, 2, 0));
  put_file(dir / "a.jpeg", "broken, but an image by name");
  put_file(dir / "trace.json", "{}");
  const auto dataset = open_dataset(dir.path());
  EXPECT_EQ(items_of(*dataset), (Names{"all/a.jpeg", "all/b.PNG"}));
  expect_input_error([&] { dataset->image(0); }, {"a.jpeg", "no image"});
  EXPECT_EQ(dataset->image(1).width, 2);
}

TEST(FolderDatasetTest, FilesThatMayBeImagesAreItems) {
  const TempDir dir;
  put_file(dir / "c/a.png", png_bytes(2, 2, 0));
  put_file(dir / "c/notes", "text");
  const auto dataset = open_dataset(dir.path());
  ASSERT_EQ(dataset->size(), 2);
  expect_input_error([&] { dataset->image(1); }, {"notes", "no image"});
}

TEST(FolderDatasetTest, FilesThatAreNoImagesByNameAreLeftOutAndCounted) {
  const TempDir dir;
  for (const char* name : {"b/1.png", "a/2.png", "a/3"}) put_file(dir / name, png_bytes(2, 2, 0));
  for (const char* name : {"a/Thumbs.db", "b/LABELS.CSV", "readme.txt", "docs/index.html"})
    put_file(dir / name, "x");
  ::testing::internal::CaptureStderr();
  const auto dataset = open_dataset(dir.path());
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(items_of(*dataset), (Names{"a/2.png", "a/3", "b/1.png"}));
  EXPECT_EQ(dataset->class_names(), (Names{"a", "b"}));  // docs/ is none
  EXPECT_NE(dataset->describe().find("3 images, 2 classes; 4 other files"), std::string::npos)
      << dataset->describe();
  EXPECT_NE(said.find("4 files that are no images of a class left out, for example a/Thumbs.db"),
            std::string::npos)
      << said;
  // Images outside of the class folders, and files of no known kind in a folder without classes.
  for (const char* name : {"tree/a/1.png", "tree/2.png", "flat/1.png", "flat/clip.mp4"})
    put_file(dir / name, png_bytes(2, 2, 0));
  for (const char* folder : {"tree", "flat"}) {
    const auto rest = open_dataset(dir / folder);
    EXPECT_NE(rest->describe().find("1 images, 1 class; 1 other files"), std::string::npos)
        << rest->describe();
  }
}

TEST(FolderDatasetTest, Splits) {
  const TempDir dir;
  for (const char* name : {"wrap/train/cat/1.png", "wrap/train/dog/2.png", "wrap/test/dog/3.png",
                           "wrap/test/emu/4.png", "wrap/LICENSE"})
    put_file(dir / name, png_bytes(2, 2, 0));
  const std::string path = (dir / "wrap").string();
  const Names classes = {"cat", "dog", "emu"};
  const auto open_items = [&](const std::string& spec, const std::string& split = "") {
    const auto dataset = open_dataset(spec, split);
    EXPECT_EQ(dataset->class_names(), classes);  // an id means the same in every split
    return items_of(*dataset);
  };
  EXPECT_EQ(open_items(path), (Names{"cat/1.png", "dog/2.png"}));
  EXPECT_EQ(open_items(path, "test"), (Names{"dog/3.png", "emu/4.png"}));
  EXPECT_EQ(open_items(path + "#test"), (Names{"dog/3.png", "emu/4.png"}));
  EXPECT_EQ(open_items(path + "#train", "test"), (Names{"cat/1.png", "dog/2.png"}));  // what was typed wins
  EXPECT_EQ(open_items(path + "#test@1:"), (Names{"emu/4.png"}));
  expect_input_error([&] { open_dataset(path + "#val"); }, {"\"val\"", "test, train"});
  expect_input_error([&] { open_dataset(path + "/train", "test"); }, {"\"test\"", "no folders"});
  expect_input_error([&] { open_dataset(path + "#"); }, {"split is missing"});
}

TEST(FolderDatasetTest, ValStandsForTest) {
  const TempDir dir;
  put_file(dir / "training/c/1.png", png_bytes(2, 2, 0));
  put_file(dir / "validation/c/2.png", png_bytes(2, 2, 0));
  EXPECT_EQ(items_of(*open_dataset(dir.path(), "test")), (Names{"c/2.png"}));
  EXPECT_EQ(items_of(*open_dataset(dir.path(), "val")), (Names{"c/2.png"}));
  EXPECT_EQ(items_of(*open_dataset(dir.path())), (Names{"c/1.png"}));
}

TEST(FolderDatasetTest, OnlyTestIsTheDefault) {
  const TempDir dir;
  put_file(dir / "test/c/1.png", png_bytes(2, 2, 0));
  EXPECT_EQ(items_of(*open_dataset(dir.path())), (Names{"c/1.png"}));
  expect_input_error([&] { open_dataset(dir.path(), "train"); }, {"it has test"});
}

TEST(FolderDatasetTest, NothingThere) {
  const TempDir dir;
  expect_input_error([&] { open_dataset(dir / "none"); }, {"none", "no such file or folder"});
  expect_input_error([&] { open_dataset(dir.path()); }, {"no files"});
  put_file(dir / "notes.txt", "x");
  expect_input_error([&] { open_dataset(dir.path()); }, {"no images"});
  expect_input_error([&] { open_dataset(dir / "notes.txt"); }, {"notes.txt", "no dataset"});
}

TEST(FolderDatasetTest, LinksInARingAreLeftOut) {
  const TempDir dir, elsewhere;
  put_file(dir / "c/1.png", png_bytes(2, 2, 0)), put_file(dir / "d/2.png", png_bytes(2, 2, 0));
  put_file(elsewhere / "3.png", png_bytes(2, 2, 0));
  using std::filesystem::create_directory_symlink;
  create_directory_symlink(dir.path(), dir / "c/loop");
  create_directory_symlink("..", dir / "d/up"), create_directory_symlink(".", dir / "d/here");
  create_directory_symlink(elsewhere.path(), dir / "e");  // no ring, though
  create_directory_symlink(elsewhere.path(), elsewhere / "back");
  EXPECT_EQ(items_of(*open_dataset(dir.path())), (Names{"c/1.png", "d/2.png", "e/3.png"}));
  EXPECT_EQ(open_dataset(dir.path().string() + "/")->size(), 3);
}

TEST(DatasetSpecTest, Parses) {
  const TempDir dir;
  const auto parse = [](const std::string& text) {
    const DatasetSpec spec = parse_dataset_spec(text);
    return cat(spec.path.string(), "|", spec.split, "|", spec.begin, "|", spec.end);
  };
  EXPECT_EQ(parse("a/b"), "a/b||0|-1");
  EXPECT_EQ(parse("a/b#train"), "a/b|train|0|-1");
  EXPECT_EQ(parse("a/b@5:9"), "a/b||5|9");
  EXPECT_EQ(parse("a/b@:9"), "a/b||0|9");
  EXPECT_EQ(parse("a/b@5:"), "a/b||5|-1");
  EXPECT_EQ(parse("a#test@0:2"), "a|test|0|2");
  EXPECT_EQ(parse("a@b/c"), "a@b/c||0|-1");
  EXPECT_EQ(parse("a#b/c"), "a#b/c||0|-1");
  for (const char* bad : {"a@", "a@5", "a@x:y", "a@-1:3", "a@1:2:3", "a@99999999999999999999:"})
    expect_input_error([&] { parse_dataset_spec(bad); }, {bad, "begin:end"}, bad);
  // A path that exists is taken as it is.
  const std::string odd = (dir / "x#test@1:2").string();
  put_file(odd + "/c/1.png", png_bytes(2, 2, 0));
  EXPECT_EQ(parse(odd), odd + "||0|-1");
  EXPECT_EQ(parse(odd + "@0:1"), odd + "||0|1");
  EXPECT_EQ(open_dataset(odd + "@0:1")->size(), 1);
}

TEST(DatasetRangeTest, HalfOpenAndChecked) {
  const TempDir dir;
  testing::put_tree(dir.path(), 6);
  const std::string path = dir.path().string();
  const auto all = open_dataset(path), part = open_dataset(path + "@2:5");
  ASSERT_EQ(part->size(), 3);
  EXPECT_EQ(part->class_names(), all->class_names());
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(part->item_name(i), all->item_name(i + 2));
    EXPECT_EQ(part->label(i), all->label(i + 2));
    EXPECT_EQ(part->image(i).rgb, all->image(i + 2).rgb);
  }
  EXPECT_NE(part->describe().find("2:5"), std::string::npos);
  expect_input_error([&] { open_dataset(path + "@3:3"); }, {"3:3", "6 images"});
  expect_input_error([&] { open_dataset(path + "@0:7"); }, {"0:7"});
  expect_input_error([&] { open_dataset(path + "@6:"); }, {"6:6"});
}

TEST(TarDatasetTest, SameAsTheFolder) {
  const TempDir dir;
  std::string archive;
  for (const char* name :
       {"top/train/b/2.png", "top/train/a/1.png", "top/train/a/._1.png", "top/test/b/3.png"})
    archive += tar_entry(name, png_bytes(4, 4, static_cast<uint8_t>(name[12])));
  archive = tar_entry("top/", "", '5') + archive + tar_end();
  put_file(dir / "d.tar", archive);
  put_file(dir / "d.tar.gz", gzip(archive));
  for (const char* name : {"d.tar", "d.tar.gz"}) {
    const auto dataset = open_dataset(dir / name);
    EXPECT_EQ(items_of(*dataset), (Names{"a/1.png", "b/2.png"})) << name;
    EXPECT_EQ(dataset->image(1).rgb, testing::test_image(4, 4, '2').rgb);
    EXPECT_EQ(dataset->item_name(0), (dir / name).string() + ": top/train/a/1.png");
    EXPECT_EQ(items_of(*open_dataset((dir / name).string() + "#test@:1")), (Names{"b/3.png"}));
  }
  put_file(dir / "cut.tar.gz", gzip(archive).substr(0, 300));
  expect_input_error([&] { open_dataset(dir / "cut.tar.gz"); }, {"cut.tar.gz", "cut short"});
  put_file(dir / "no.tar", std::string(2000, 'x'));
  expect_input_error([&] { open_dataset(dir / "no.tar"); }, {"no.tar", "checksum"});
}

TEST(MnistDatasetTest, PlainAndGzip) {
  const TempDir dir;
  put_file(dir / "train-images-idx3-ubyte", testing::idx_images(7, 4));
  put_file(dir / "train-labels-idx1-ubyte.gz", gzip(testing::idx_labels(7)));
  put_file(dir / "t10k-images-idx3-ubyte.gz", gzip(testing::idx_images(5, 4)));
  put_file(dir / "t10k-labels-idx1-ubyte", testing::idx_labels(5));
  const auto train = open_dataset(dir.path());
  EXPECT_EQ(train->size(), 7);
  EXPECT_EQ(train->class_names().size(), 10u);
  EXPECT_EQ(train->label(4), 1);
  EXPECT_EQ(train->image(6).rgb, std::vector<uint8_t>(48, 6));
  EXPECT_EQ(open_dataset(dir.path(), "test")->size(), 5);
  EXPECT_EQ(open_dataset(dir / "t10k-images-idx3-ubyte.gz")->size(), 5);
  EXPECT_EQ(open_dataset((dir / "t10k-images-idx3-ubyte.gz").string() + "@1:3")->label(0), 1);
  expect_input_error([&] { open_dataset(dir.path(), "val"); }, {"\"val\""});
  std::filesystem::remove(dir / "t10k-labels-idx1-ubyte");
  expect_input_error([&] { open_dataset(dir.path(), "test"); }, {"t10k-labels-idx1-ubyte.gz", "not beside"});
}

TEST(MnistDatasetTest, WrongSizes) {
  const TempDir dir;
  const auto images = dir / "train-images-idx3-ubyte", labels = dir / "train-labels-idx1-ubyte";
  const std::string good_images = testing::idx_images(7, 4), good_labels = testing::idx_labels(7);
  const auto refuse = [&](const std::string& image_bytes, const std::string& label_bytes,
                          const char* message) {
    put_file(images, image_bytes);
    put_file(labels, label_bytes);
    expect_input_error([&] { open_dataset(images); }, {message}, message);
  };
  refuse(good_images.substr(0, good_images.size() - 1), good_labels,
         "112 bytes of values, but there are 111");
  refuse(good_images + "x", good_labels, "but there are 113");
  refuse(good_images.substr(0, 10), good_labels, "no idx file");
  refuse(good_images, testing::idx_labels(6), "7 images, but");
  refuse(good_images, good_images, "labels-idx1-ubyte: is no idx file");
  refuse(testing::idx_images(0, 4), testing::idx_labels(0), "no images");
  refuse(testing::big_endian({0x803, 1, 0xffffffff, 0xffffffff}), testing::idx_labels(1), "cut short");
  refuse(testing::big_endian({0x803, 0x10000, 0x10000, 0x80000000}), testing::idx_labels(1), "cut short");
  refuse(testing::big_endian({0x803, 7, 0, 4}), good_labels, "outside 1..");
}

TEST(CifarDatasetTest, TenAndHundred) {
  const TempDir dir;
  using L = std::vector<std::string>;
  put_file(dir / "ten/data_batch_1.bin", testing::cifar_records(L{"\x03", "\x09"}));
  put_file(dir / "ten/data_batch_2.bin", testing::cifar_records(L{"\x01"}));
  put_file(dir / "ten/test_batch.bin", testing::cifar_records(L{"\x02"}));
  const auto ten = open_dataset(dir / "ten");
  ASSERT_EQ(ten->size(), 3);
  EXPECT_EQ(ten->class_names().size(), 10u);
  EXPECT_EQ(ten->label(1), 9);
  EXPECT_EQ(ten->label(2), 1);
  EXPECT_NE(ten->item_name(2).find("data_batch_2.bin: image 0"), std::string::npos);
  const Image image = ten->image(1);
  EXPECT_EQ(image.width, 32);
  EXPECT_EQ((std::vector<uint8_t>{image.rgb[0], image.rgb[1], image.rgb[2]}),
            (std::vector<uint8_t>{1, 2, 3}));
  EXPECT_EQ(open_dataset(dir / "ten", "test")->label(0), 2);
  EXPECT_EQ(open_dataset(dir / "ten/test_batch.bin")->size(), 1);

  put_file(dir / "ten/batches.meta.txt",
           "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n");
  EXPECT_EQ(open_dataset(dir / "ten")->class_names()[3], "cat");
  put_file(
      dir / "c.tar.gz",
      gzip(tar_entry("cifar-10-batches-bin/test_batch.bin", testing::cifar_records(L{"\x05"})) + tar_end()));
  EXPECT_EQ(open_dataset(dir / "c.tar.gz")->label(0), 5);

  put_file(dir / "hundred/train.bin", testing::cifar_records(L{"\x01\x63", "\x02\x07"}));
  const auto hundred = open_dataset(dir / "hundred");
  EXPECT_EQ(hundred->class_names().size(), 100u);
  EXPECT_EQ(hundred->label(0), 99);
  EXPECT_EQ(hundred->label(1), 7);
  expect_input_error([&] { open_dataset(dir / "hundred", "test"); }, {"\"test\""});
  put_file(dir / "hundred/test_batch.bin", testing::cifar_records(L{"\x05"}));
  expect_input_error([&] { open_dataset(dir / "hundred"); }, {"both"});
}

TEST(CifarDatasetTest, DamagedFiles) {
  const TempDir dir;
  const std::string good = testing::cifar_records({"\x03", "\x09"});
  put_file(dir / "test_batch.bin", good.substr(0, good.size() - 1));
  expect_input_error([&] { open_dataset(dir.path()); }, {"test_batch.bin", "6145 bytes"});
  put_file(dir / "test_batch.bin", testing::cifar_records({"\x03", "\x0a"}));
  expect_input_error([&] { open_dataset(dir.path()); }, {"image 1", "label 10"});
  put_file(dir / "test_batch.bin", "");
  expect_input_error([&] { open_dataset(dir.path()); }, {"0 bytes"});
}

// The real archives, where they are.
TEST(SharedDataTest, TrafficSigns) {
  ADANAT_NEEDS_DATA();
  const auto dataset = open_dataset(testing::shared_data() / "traffic-signs.tar.gz");
  EXPECT_EQ(dataset->size(), 39209);
  EXPECT_EQ(dataset->class_names().size(), 43u);
  for (const int64_t i : {int64_t{0}, int64_t{20000}, int64_t{39208}}) EXPECT_EQ(dataset->image(i).width, 32);
}

TEST(SharedDataTest, Cifar10) {
  ADANAT_NEEDS_DATA();
  const auto dataset = open_dataset((testing::shared_data() / "cifar10.tar.gz").string() + "#test");
  EXPECT_EQ(dataset->size(), 10000);
  EXPECT_EQ(dataset->class_names().front(), "airplane");
  EXPECT_EQ(dataset->image(9999).height, 32);
}

TEST(SharedDataTest, Mnist) {
  ADANAT_NEEDS_DATA();
  const auto dataset = open_dataset((testing::shared_data() / "mnist").string() + "@0:9000");
  EXPECT_EQ(dataset->size(), 9000);
  EXPECT_EQ(dataset->label(0), 7);  // the well-known first test digits: 7 2 1 0 4
  EXPECT_EQ(dataset->label(4), 4);
  EXPECT_EQ(dataset->image(0).width, 28);
}

TEST(DatasetBombs, NothingBeyondThePromiseIsInflated) {
  const testing::TempDir dir;
  const std::string zeros(size_t{70} << 20, '\0');
  put_file(dir / "a/train-labels-idx1-ubyte", testing::idx_labels(7));
  put_file(dir / "a/train-images-idx3-ubyte.gz", gzip(testing::idx_images(7, 4) + zeros));
  expect_input_error([&] { open_dataset(dir / "a"); },
                     {"train-images-idx3-ubyte.gz", "more than the 128 bytes"});
  // The largest promise of all, in a file of some bytes.
  put_file(dir / "a/train-images-idx3-ubyte.gz",
           gzip(testing::big_endian({0x803, 0xffffffff, 0xffffffff, 0xffffffff}) + "abc"));
  expect_input_error([&] { open_dataset(dir / "a"); },
                     {"train-images-idx3-ubyte.gz", "cut short or damaged"});
  put_file(dir / "a/train-images-idx3-ubyte.gz", gzip(testing::big_endian({0x803, 1, 65535, 65535}) + "abc"));
  expect_input_error([&] { open_dataset(dir / "a"); }, {"its header says 4294836225 bytes", "compressed"});
  // An archive promises nothing; what no pictures shrink to is refused.
  put_file(dir / "b.tar.gz", gzip(zeros));
  expect_input_error([&] { open_dataset(dir / "b.tar.gz"); }, {"b.tar.gz", "more than the 67108864 bytes"});
}

TEST(DatasetNames, ThatCannotBeStoredAreRefused) {
  for (const char* name : {"caf\xe9", "two\nlines", "bell\a",
                           "\xc2\x9b"
                           "c1"}) {
    const testing::TempDir dir;
    put_file(dir / name / "1.png", testing::png_bytes(8, 8, 0));
    put_file(dir / "good" / "1.png", testing::png_bytes(8, 8, 0));
    expect_input_error([&] { open_dataset(dir.path()); }, {"the class \"", "rename it"}, name);
  }
  const testing::TempDir dir;
  put_file(dir / "caf\xc3\xa9" / "1.png", testing::png_bytes(8, 8, 0));
  put_file(dir / "two words" / "1.png", testing::png_bytes(8, 8, 0));
  EXPECT_EQ(open_dataset(dir.path())->class_names(), (std::vector<std::string>{"caf\xc3\xa9", "two words"}));
  put_file(dir / "bad\xff" / "x" / "1.png", testing::png_bytes(8, 8, 0));
  expect_input_error([&] { open_dataset(dir / "bad\xff"); }, {"bad?: the path is not valid UTF-8"});
}

}  // namespace
}  // namespace adanat
