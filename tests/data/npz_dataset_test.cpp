// Sample batches as the ADM evaluator reads them.
#include <gtest/gtest.h>

#include "core/data/dataset.h"
#include "core/io/npy.h"
#include "io/bytes.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::expect_input_error;

struct Batch {
  std::vector<uint8_t> pixels;
  std::vector<int64_t> labels;
};

// `count` images of 5x4 whose first byte is the index.
Batch make_batch(int64_t count) {
  Batch out;
  for (int64_t i = 0; i < count; ++i) {
    for (int p = 0; p < 4 * 5 * 3; ++p) out.pixels.push_back(uint8_t(i + p));
    out.labels.push_back(i % 3);
  }
  return out;
}

void write_batch(const std::filesystem::path& path, const Batch& b, bool labels, bool deflate = false,
                 int64_t channels = 3) {
  const auto count = int64_t(b.labels.size());
  std::vector<TensorBytes> arrays{
      {"arr_0", DType::kU8, {count, 4, 5, channels}, b.pixels.data(), size_t(count * 20 * channels)}};
  if (labels) arrays.push_back({"arr_1", DType::kI64, {count}, b.labels.data(), b.labels.size() * 8});
  write_npz(path, arrays, deflate);
}

TEST(NpzDataset, ImagesLabelsAndRanges) {
  const testing::TempDir dir;
  for (const bool deflate : {false, true}) {
    const auto path = dir / (deflate ? "b.npz" : "a.npz");
    write_batch(path, make_batch(150), true, deflate);
    const auto data = open_dataset(path);
    ASSERT_EQ(data->size(), 150);
    EXPECT_EQ(data->class_names(), (std::vector<std::string>{"0", "1", "2"}));
    for (const int64_t i : {0, 149, 77, 3}) {
      const Image image = data->image(i);
      EXPECT_EQ(image.width, 5);
      EXPECT_EQ(image.height, 4);
      EXPECT_EQ(image.rgb[0], i);
      EXPECT_EQ(image.rgb[59], uint8_t(i + 59));
      EXPECT_EQ(data->label(i), i % 3);
    }
    EXPECT_NE(data->item_name(7).find("image 7"), std::string::npos);
    EXPECT_EQ(open_dataset(path.string() + "@10:20")->image(0).rgb[0], 10);
  }
  write_batch(dir / "c.npz", make_batch(2), false);
  EXPECT_EQ(open_dataset(dir / "c.npz")->class_names(), std::vector<std::string>{"all"});
}

TEST(NpzDataset, Errors) {
  const testing::TempDir dir;
  Batch b = make_batch(4);
  write_batch(dir / "grey.npz", b, false, false, 1);
  expect_input_error([&] { open_dataset(dir / "grey.npz"); }, {"grey.npz", "arr_0", "(N, height, width, 3)"});
  write_batch(dir / "none.npz", Batch{}, false);
  expect_input_error([&] { open_dataset(dir / "none.npz"); }, {"none.npz", "no image"});
  b.labels[2] = -5;
  write_batch(dir / "label.npz", b, true);
  expect_input_error([&] { open_dataset(dir / "label.npz"); }, {"label.npz", "arr_1", "-5"});
  const double mu[2] = {1, 2};
  write_npz(dir / "stats.npz", {{"mu", DType::kF64, {2}, mu, sizeof mu}});
  expect_input_error([&] { open_dataset(dir / "stats.npz"); }, {"stats.npz", "arr_0", "mu"});
  write_file_atomic(dir / "text.npz", "no zip");
  expect_input_error([&] { open_dataset(dir / "text.npz"); }, {"text.npz"});
  write_batch(dir / "ok.npz", make_batch(2), false);
  expect_input_error([&] { open_dataset(dir / "ok.npz", "test"); }, {"ok.npz", "split"});
}

}  // namespace
}  // namespace adanat
