// Every image once, in order: sizes, broken items, what is done to each batch.
#include "core/data/sequential.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "core/base/log.h"
#include "core/base/parallel.h"
#include "core/data/dataset.h"
#include "core/io/atomic_file.h"
#include "data/files.h"
#include "support/support.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::expect_input_error;
using testing::png_bytes;
using testing::put_file;
using testing::TempDir;
using testing::test_image;

void write_images(const fs::path& folder, int count, int side) {
  fs::create_directories(folder);
  for (int i = 0; i < count; ++i)
    write_png(folder / cat("i", i, ".png"), test_image(side, side, uint8_t(i * 9)));
}

TEST(SequentialReader, OneSizeUnlessTheProtocolResizesEachImage) {
  const TempDir dir;
  write_images(dir / "a", 5, 24);
  write_png(dir / "a" / "j.png", test_image(20, 24));
  const auto data = open_dataset(dir / "a");
  const auto count = [&](SequentialOptions options) {
    SequentialReader reader(*data, options);
    int64_t n = 0;
    while (const auto batch = reader.next()) n += batch->images.size(0);
    return n;
  };
  expect_input_error([&] { count({.batch_size = 2, .size_hint = ", crop them"}); },
                     {"j.png", "20x24", "24x24, crop them"});
  EXPECT_EQ(count({.batch_size = 4, .crop = 16}), 6);
  EXPECT_EQ(count({.batch_size = 4, .pillow_299 = true}), 6);
}

TEST(SequentialReader, PixelsAndLabelsAreThoseOfTheirItems) {
  const TempDir dir;
  for (const auto& [folder, name] : std::vector<std::pair<const char*, const char*>>{
           {"a", "0"}, {"a", "1"}, {"b", "0"}, {"b", "1"}, {"c", "0"}}) {
    fs::create_directories(dir / folder);
    write_png(dir / folder / cat(name, ".png"), test_image(18, 12, uint8_t(folder[0] * name[0])));
  }
  write_file_atomic(dir / "a" / "1.png", "no image");
  const auto data = open_dataset(dir.path());
  SequentialReader reader(*data, {.skip_broken = true});
  const auto batch = reader.next();
  ASSERT_EQ(batch->items, (std::vector<int64_t>{0, 2, 3, 4}));
  ASSERT_EQ(batch->images.sizes(), (at::IntArrayRef{4, 3, 12, 18}));
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t item = batch->items[size_t(i)];
    EXPECT_EQ(batch->labels[i].item<int64_t>(), data->label(item));
    const Image image = data->image(item);
    for (int64_t c = 0; c < 3; ++c)
      EXPECT_EQ(batch->images[i][c][5][7].item<uint8_t>(), image.rgb[size_t((5 * 18 + 7) * 3 + c)]);
  }
}

TEST(SequentialReader, TheFirstFiveBrokenImagesAreNamed) {
  const TempDir dir;
  write_images(dir / "a", 9, 16);
  for (int i = 1; i < 9; ++i) write_file_atomic(dir / "a" / cat("i", i, ".png"), "no image");
  const auto data = open_dataset(dir / "a");
  ::testing::internal::CaptureStderr();
  SequentialReader reader(*data, {.batch_size = 2, .skip_broken = true});
  while (reader.next()) {
  }
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 5) << said;
  EXPECT_NE(said.find("i5.png"), std::string::npos) << said;
  EXPECT_EQ(reader.skipped(), 8);
}

TEST(SequentialReader, BrokenImagesStopOrAreCounted) {
  const TempDir dir;
  write_images(dir / "a", 9, 16);
  write_file_atomic(dir / "a" / "i4.png", "no image");
  const auto data = open_dataset(dir / "a");
  SequentialReader strict(*data, {.batch_size = 4, .broken_hint = " (leave it out)"});
  strict.next();
  expect_input_error([&] { strict.next(); }, {"i4.png", " (leave it out)"});
  SequentialReader lenient(*data, {.batch_size = 4, .skip_broken = true});
  std::vector<int64_t> items;
  while (const auto batch = lenient.next())
    items.insert(items.end(), batch->items.begin(), batch->items.end());
  EXPECT_EQ(items, (std::vector<int64_t>{0, 1, 2, 3, 5, 6, 7, 8}));
  EXPECT_EQ(lenient.skipped(), 1);
  for (int i = 0; i < 9; ++i) write_file_atomic(dir / "a" / cat("i", i, ".png"), "no image");
  SequentialReader none(*data, {.batch_size = 2, .skip_broken = true});
  expect_input_error([&] { none.next(); }, {"none of its images"});
}

// Whole batches of broken items, before, between and behind the good ones.
TEST(SequentialReader, GoesOnBehindBrokenBatches) {
  const TempDir dir;
  for (const char* name : {"a/1", "a/2", "a/3", "b/5", "b/6", "b/7", "c/9"}) put_file(dir / name, "broken");
  for (const char* name : {"b/4.png", "c/8.png"}) put_file(dir / name, png_bytes(4, 4, 0));
  const auto read = [&](const std::string& folder, int64_t batch) {
    const auto dataset = open_dataset(folder);
    SequentialReader reader(*dataset, {.batch_size = batch, .crop = 4, .skip_broken = true});
    int64_t images = 0;
    while (const auto next = reader.next()) images += next->labels.size(0);
    EXPECT_FALSE(reader.next().has_value());
    return images;
  };
  for (const int64_t batch : {1, 2, 64}) EXPECT_EQ(read(dir.path().string(), batch), 2) << batch;
  put_file(dir / "none/d/1", "broken"), put_file(dir / "none/d/2", "broken");
  for (const int64_t batch : {1, 64})
    expect_input_error([&] { read((dir / "none").string(), batch); }, {"none of its images can be read"});
}

// -t bounds decoding too: as many threads as LibTorch had when the reader was made, whoever decodes.
TEST(SequentialReader, DecodesOnAsManyThreadsAsLibTorchUses) {
  struct Watched : ImageDataset {
    int64_t size() const override { return 64; }
    Image image(int64_t) const override {
      {
        const std::lock_guard guard(lock);
        seen.insert(std::this_thread::get_id());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      return {1, 1, {0, 0, 0}};
    }
    int64_t label(int64_t) const override { return 0; }
    const std::vector<std::string>& class_names() const override { return names; }
    std::string describe() const override { return "watched"; }
    std::string item_name(int64_t) const override { return "item"; }
    std::vector<std::string> names = {"a"};
    mutable std::mutex lock;
    mutable std::set<std::thread::id> seen;
  };
  const int before = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    const Watched data;
    SequentialReader reader(data, {.batch_size = 64});
    EXPECT_EQ(reader.next()->images.size(0), 64);
    EXPECT_LE(data.seen.size(), size_t(threads));
    EXPECT_GE(data.seen.size(), size_t(threads > 1 ? 2 : 1));
  }
  at::set_num_threads(before);
}

TEST(ForEachInParallel, DoesEachOnce) {
  for (const int64_t threads : {1, 2, 7, 100}) {
    std::vector<std::atomic<int>> done(40);
    for_each_in_parallel(40, threads, [&](int64_t i) { ++done[size_t(i)]; });
    for (const auto& count : done) EXPECT_EQ(count, 1);
  }
  for_each_in_parallel(0, 4, [](int64_t) { FAIL(); });
}

TEST(ForEachInParallel, ThrowsWhatWasThrownFirstAndBeginsNoMore) {
  for (const int64_t threads : {1, 4}) {
    std::atomic<int> begun = 0;
    expect_input_error(
        [&] {
          for_each_in_parallel(5000, threads, [&](int64_t i) {
            ++begun;
            if (i == 0) throw InputError("no room");
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          });
        },
        {"no room"});
    EXPECT_LT(begun, 5000);
  }
}

}  // namespace
}  // namespace adanat
