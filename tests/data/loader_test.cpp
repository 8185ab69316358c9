#include "core/data/loader.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/flip.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "core/data/data_order.h"
#include "core/io/resample.h"
#include "data/files.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::expect_input_error;

// `size` images of 6 x 5 made on demand; the items in `broken` cannot be read. Counts decodes.
class FakeDataset : public ImageDataset {
 public:
  explicit FakeDataset(int64_t size, std::set<int64_t> broken = {})
      : size_(size), broken_(std::move(broken)) {}
  int64_t size() const override { return size_; }
  int64_t label(int64_t i) const override { return i % 4; }
  Image image(int64_t i) const override {
    ++decodes;
    if (broken_.contains(i)) throw InputError(item_name(i) + ": broken on purpose");
    return testing::test_image(6, 5, static_cast<uint8_t>(i));
  }
  std::string item_name(int64_t i) const override { return "item " + std::to_string(i); }
  const std::vector<std::string>& class_names() const override { return names_; }
  std::string describe() const override { return "fake"; }
  mutable std::atomic<int64_t> decodes{0};

 private:
  int64_t size_;
  std::set<int64_t> broken_;
  std::vector<std::string> names_ = {"a", "b", "c", "d"};
};

std::vector<int64_t> to_vector(const at::Tensor& tensor) {
  const int64_t* data = tensor.const_data_ptr<int64_t>();
  return {data, data + tensor.numel()};
}

bool same(const Batch& a, const Batch& b) {
  return at::equal(a.images, b.images) && at::equal(a.labels, b.labels) && at::equal(a.indices, b.indices) &&
         at::equal(a.flipped, b.flipped);
}

LoaderOptions options_of(int64_t batch_size, int64_t threads = 0) {
  LoaderOptions options;
  options.batch_size = batch_size;
  options.image_size = 4;
  options.threads = threads;
  options.seed = 11;
  return options;
}

TEST(DataOrderTest, IsAPermutationOfItsArguments) {
  auto order = epoch_order(5, 0, 1000);
  EXPECT_EQ(order, epoch_order(5, 0, 1000));
  EXPECT_NE(order, epoch_order(5, 1, 1000));
  EXPECT_NE(order, epoch_order(6, 0, 1000));
  // Written down so that a run of today can be resumed by the program of tomorrow.
  const auto small = epoch_order(42, 3, 8);
  EXPECT_EQ(small, (std::vector<int64_t>{7, 5, 4, 2, 1, 6, 0, 3}));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 1000; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

// Every item is equally likely at every place: chi-square over first places, 99.9 % quantile of 15 degrees
// is 37.7.
TEST(DataOrderTest, IsUniform) {
  std::map<int64_t, int> first, last, flips;
  for (int64_t epoch = 0; epoch < 8000; ++epoch) {
    const auto order = epoch_order(1, epoch, 16);
    ++first[order.front()];
    ++last[order.back()];
    ++flips[is_flipped(1, epoch, 7)];
  }
  for (const auto& counts : {first, last}) {
    double chi_square = 0;
    for (const auto& [item, count] : counts) chi_square += (count - 500.0) * (count - 500.0) / 500.0;
    EXPECT_LT(chi_square, 37.7);
  }
  EXPECT_NEAR(flips[1], 4000, 200);
}

TEST(LoaderTest, BatchHoldsWhatItsIndicesSay) {
  const auto dataset = std::make_shared<FakeDataset>(20);
  LoaderOptions options = options_of(5, 2);
  options.flip = true;
  Loader loader(dataset, options);
  EXPECT_EQ(loader.batches_per_epoch(), 4);
  int64_t flipped = 0;
  for (int64_t step = 0; step < 12; ++step) {
    const Batch batch = loader.batch(step);
    ASSERT_EQ(batch.images.sizes(), (std::vector<int64_t>{5, 3, 4, 4}));
    EXPECT_EQ(batch.images.scalar_type(), at::kByte);
    for (int64_t row = 0; row < 5; ++row) {
      const int64_t item = batch.indices.const_data_ptr<int64_t>()[row];
      EXPECT_EQ(batch.labels.const_data_ptr<int64_t>()[row], item % 4);
      Image expected = adm_center_crop(testing::test_image(6, 5, static_cast<uint8_t>(item)), 4);
      if (batch.flipped.const_data_ptr<uint8_t>()[row] != 0) expected = flip_horizontal(expected), ++flipped;
      const uint8_t* planes = batch.images.const_data_ptr<uint8_t>() + row * 48;
      for (size_t p = 0; p < 16; ++p)
        for (size_t c = 0; c < 3; ++c) ASSERT_EQ(planes[c * 16 + p], expected.rgb[p * 3 + c]);
    }
  }
  EXPECT_GT(flipped, 10);
  EXPECT_LT(flipped, 50);
}

TEST(LoaderTest, AnEpochVisitsEveryItemOnce) {
  Loader loader(std::make_shared<FakeDataset>(21), options_of(3, 1));
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> seen;
    for (int64_t step = 0; step < 7; ++step)
      for (const int64_t i : to_vector(loader.batch(epoch * 7 + step).indices)) seen.push_back(i);
    EXPECT_EQ(seen, epoch_order(11, epoch, 21));
  }
}

TEST(LoaderTest, SameForAnyNumberOfThreadsAndCaching) {
  std::vector<Batch> expected;
  for (const int64_t threads : {0, 1, 2, 5})
    for (const bool cache : {true, false})
      for (const int64_t prefetch : {0, 1, 9}) {
        LoaderOptions options = options_of(4, threads);
        options.flip = true;
        options.cache_decoded = cache;
        options.prefetch = prefetch;
        Loader loader(std::make_shared<FakeDataset>(18, std::set<int64_t>{3, 4, 17}), options);
        for (int64_t step = 0; step < 15; ++step) {
          const Batch batch = loader.batch(step);
          if (expected.size() <= static_cast<size_t>(step)) expected.push_back(batch);
          EXPECT_TRUE(same(batch, expected[static_cast<size_t>(step)]))
              << "step " << step << " threads " << threads << " cache " << cache << " prefetch " << prefetch;
        }
      }
}

TEST(LoaderTest, ResumesAtAnyStepAndJumps) {
  const auto dataset = std::make_shared<FakeDataset>(30);
  LoaderOptions options = options_of(4, 2);
  options.flip = true;
  std::vector<Batch> all;
  {
    Loader loader(dataset, options);
    for (int64_t step = 0; step < 40; ++step) all.push_back(loader.batch(step));
  }
  for (const int64_t start : {1, 6, 7, 20, 39}) {
    Loader loader(dataset, options);
    for (int64_t step = start; step < 40; ++step)
      ASSERT_TRUE(same(loader.batch(step), all[static_cast<size_t>(step)])) << start << " " << step;
  }
  Loader loader(dataset, options);
  for (const int64_t step : {5, 5, 2, 30, 0, 1, 39, 38})
    ASSERT_TRUE(same(loader.batch(step), all[static_cast<size_t>(step)])) << step;
}

TEST(LoaderTest, RanksShareAStep) {
  const auto dataset = std::make_shared<FakeDataset>(26);
  Loader whole(dataset, options_of(6));
  std::vector<std::unique_ptr<Loader>> ranks;
  for (int64_t rank = 0; rank < 3; ++rank) {
    LoaderOptions options = options_of(2, 1);
    options.rank = rank;
    options.world_size = 3;
    ranks.push_back(std::make_unique<Loader>(dataset, options));
    EXPECT_EQ(ranks.back()->batches_per_epoch(), whole.batches_per_epoch());
  }
  for (int64_t step = 0; step < 9; ++step) {
    std::vector<int64_t> together;
    for (auto& rank : ranks)
      for (const int64_t i : to_vector(rank->batch(step).indices)) together.push_back(i);
    EXPECT_EQ(together, to_vector(whole.batch(step).indices));
  }
}

TEST(LoaderTest, WithoutShufflingInFileOrderAndShortAtTheEnd) {
  LoaderOptions options = options_of(4, 1);
  options.shuffle = false;
  options.drop_last = false;
  Loader loader(std::make_shared<FakeDataset>(10), options);
  EXPECT_EQ(loader.batches_per_epoch(), 3);
  EXPECT_EQ(to_vector(loader.batch(1).indices), (std::vector<int64_t>{4, 5, 6, 7}));
  EXPECT_EQ(to_vector(loader.batch(2).indices), (std::vector<int64_t>{8, 9}));
  EXPECT_EQ(to_vector(loader.batch(3).indices), (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(LoaderTest, BrokenItemsAreReplacedCountedAndNamedOnce) {
  LoaderOptions options = options_of(4, 2);
  options.shuffle = false;
  ::testing::internal::CaptureStderr();
  {
    Loader loader(std::make_shared<FakeDataset>(12, std::set<int64_t>{1, 2, 11}), options);
    EXPECT_EQ(to_vector(loader.batch(0).indices), (std::vector<int64_t>{0, 3, 3, 3}));
    EXPECT_EQ(to_vector(loader.batch(2).indices),
              (std::vector<int64_t>{8, 9, 10, 0}));  // past the end: from the start
    for (int64_t step = 3; step < 9; ++step) loader.batch(step);
    EXPECT_EQ(loader.skipped(), 3);
  }
  const std::string log = ::testing::internal::GetCapturedStderr();
  for (const char* part : {"item 1:", "item 2:", "item 11:"}) {
    EXPECT_NE(log.find(part), std::string::npos) << log;
    EXPECT_EQ(log.find(part), log.rfind(part)) << log;
  }
}

TEST(LoaderTest, ManyBrokenItemsDoNotFloodTheLog) {
  std::set<int64_t> broken;
  for (int64_t i = 0; i < 90; ++i) broken.insert(i);
  ::testing::internal::CaptureStderr();
  Loader loader(std::make_shared<FakeDataset>(100, broken), options_of(10));
  for (int64_t step = 0; step < 20; ++step)
    for (const int64_t i : to_vector(loader.batch(step).indices)) EXPECT_GE(i, 90);
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(loader.skipped(), 90);
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 6) << log;
}

TEST(LoaderTest, AllBrokenIsAnError) {
  ::testing::internal::CaptureStderr();
  for (const int64_t threads : {0, 2}) {
    Loader loader(std::make_shared<FakeDataset>(3, std::set<int64_t>{0, 1, 2}), options_of(2, threads));
    expect_input_error([&] { loader.batch(0); }, {"fake", "not one of the 3 images", "item 0"});
    expect_input_error([&] { loader.batch(1); }, {"not one"});
  }
  ::testing::internal::GetCapturedStderr();
}

TEST(LoaderTest, CachingDecodesOnce) {
  for (const bool cache : {true, false}) {
    const auto dataset = std::make_shared<FakeDataset>(12);
    LoaderOptions options = options_of(4);
    options.cache_decoded = cache;
    Loader loader(dataset, options);
    for (int64_t step = 0; step < 9; ++step) loader.batch(step);
    EXPECT_EQ(dataset->decodes, cache ? 12 : 36);
  }
  // One byte too few for all of them: nothing is kept.
  const auto dataset = std::make_shared<FakeDataset>(12);
  LoaderOptions options = options_of(4);
  options.cache_bytes = 12 * 48 - 1;
  Loader loader(dataset, options);
  for (int64_t step = 0; step < 9; ++step) loader.batch(step);
  EXPECT_EQ(dataset->decodes, 36);
}

TEST(LoaderTest, DecodesAheadAndMeasuresItsWaits) {
  const auto dataset = std::make_shared<FakeDataset>(40);
  LoaderOptions options = options_of(4, 1);
  options.prefetch = 3;
  Loader loader(dataset, options);
  loader.batch(0);
  for (int i = 0; i < 500 && dataset->decodes < 16; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(dataset->decodes, 16);  // step 0 and the three after it, not more
  EXPECT_GT(loader.wait_seconds(), 0);
}

TEST(LoaderTest, LeavesWhileWorkIsQueued) {
  for (int i = 0; i < 20; ++i) {
    LoaderOptions options = options_of(10, 3);
    options.prefetch = 50;
    Loader loader(std::make_shared<FakeDataset>(100), options);
    loader.batch(i);
  }
}

TEST(LoaderTest, ImpossibleOptions) {
  const auto dataset = std::make_shared<FakeDataset>(10);
  LoaderOptions large = options_of(11);
  expect_input_error([&] { Loader(dataset, large); }, {"fewer images", "a smaller one (--set batch_size=N)"});
  large.batch_key = "discriminator_batch";
  expect_input_error([&] { Loader(dataset, large); }, {"(--set discriminator_batch=N)"});
  LoaderOptions options = options_of(4);
  options.world_size = 3;
  expect_input_error([&] { Loader(dataset, options); }, {"3 ranks"});
  EXPECT_THROW(Loader(dataset, options_of(0)), RunError);
  options = options_of(1);
  options.rank = 1;
  EXPECT_THROW(Loader(dataset, options), RunError);
  Loader loader(dataset, options_of(1));
  EXPECT_THROW(loader.batch(-1), RunError);
}

TEST(LoaderTest, RealFilesWithBrokenOnesAmongThem) {
  const testing::TempDir dir;
  testing::put_tree(dir.path(), 10);
  testing::put_file(dir / "odd/05.png", "no image at all");
  testing::put_file(dir / "odd/07.png", testing::png_bytes(8, 8, 1).substr(0, 60));
  ::testing::internal::CaptureStderr();
  Loader loader(open_dataset(dir.path()), options_of(5, 2));
  for (int64_t step = 0; step < 4; ++step) loader.batch(step);
  EXPECT_EQ(loader.skipped(), 2);
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find((dir / "odd/07.png").string()), std::string::npos) << log;
}

}  // namespace
}  // namespace adanat
