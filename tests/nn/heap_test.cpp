#include "core/nn/heap.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>
#include <vector>

namespace adanat {
namespace {

TEST(RangeAllocator, TakesTheLowestPlaceThatFits) {
  RangeAllocator range(100);
  EXPECT_EQ(range.take(30), 0);
  EXPECT_EQ(range.take(20), 30);
  EXPECT_EQ(range.take(50), 50);
  EXPECT_EQ(range.take(1), std::nullopt);
  range.give_back(0);
  range.give_back(50);
  EXPECT_EQ(range.take(40), 50);  // not into the 30 at the beginning
  EXPECT_EQ(range.take(10), 0);
  EXPECT_EQ(range.take(20), 10);
}

TEST(RangeAllocator, FreeNeighboursAreOnePart) {
  // In every order of giving three blocks back.
  for (const std::vector<size_t>& order : std::vector<std::vector<size_t>>{
           {0, 10, 20}, {0, 20, 10}, {10, 0, 20}, {10, 20, 0}, {20, 0, 10}, {20, 10, 0}}) {
    RangeAllocator range(30);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(range.take(10));
    for (const size_t offset : order) range.give_back(offset);
    EXPECT_EQ(range.take(30), 0);
  }
}

TEST(RangeAllocator, EmptyRangeGivesNothing) {
  RangeAllocator range(0);
  EXPECT_EQ(range.take(1), std::nullopt);
}

TEST(RangeAllocator, BlocksNeverOverlap) {
  constexpr size_t kSize = 4000;
  RangeAllocator range(kSize);
  std::mt19937 random(3);
  std::map<size_t, size_t> taken;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0 && !taken.empty()) {
      const auto block = std::next(taken.begin(), long(random() % taken.size()));
      range.give_back(block->first);
      taken.erase(block);
      continue;
    }
    const size_t size = 1 + random() % 97;
    size_t lowest = 0;  // the end of the blocks that leave no room before the next
    for (const auto& [offset, length] : taken) {
      if (offset - lowest >= size) break;
      lowest = offset + length;
    }
    const auto offset = range.take(size);
    if (kSize - lowest < size) {
      EXPECT_EQ(offset, std::nullopt);
    } else {
      ASSERT_EQ(offset, lowest);
      taken.emplace(*offset, size);
    }
  }
  for (const auto& [offset, size] : taken) range.give_back(offset);
  EXPECT_EQ(range.take(kSize), 0);
}

class TensorHeapTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { keep_freed_memory(); }
};

TEST_F(TensorHeapTest, TensorsAreWholeAndAlignedWhateverTheirSize) {
  std::vector<at::Tensor> tensors;
  const std::vector<int64_t> sizes = {0, 1, 63, 131071, 131072, 131073, 1 << 20, (1 << 22) + 7};
  for (size_t i = 0; i < sizes.size(); ++i)
    tensors.push_back(at::full({sizes[i]}, int64_t(i) + 1, at::TensorOptions().dtype(at::kByte)));
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensors[i].data_ptr()) % 64, 0U) << sizes[i];
    EXPECT_TRUE((tensors[i] == int64_t(i) + 1).all().item<bool>()) << sizes[i];
  }
}

TEST_F(TensorHeapTest, FreedPlaceServesTheNextTensor) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "skipped: under a sanitizer tensors come from malloc";
#endif
  const auto bytes = at::TensorOptions().dtype(at::kByte);
  at::Tensor first = at::empty({1 << 20}, bytes);
  const at::Tensor behind = at::empty({1 << 20}, bytes);
  const auto* const place = static_cast<const std::byte*>(first.data_ptr());
  EXPECT_GT(static_cast<const std::byte*>(behind.data_ptr()), place);
  first.reset();
  const at::Tensor half = at::empty({1 << 19}, bytes), rest = at::empty({1 << 18}, bytes);
  EXPECT_EQ(half.data_ptr(), place);
  EXPECT_LT(rest.data_ptr(), behind.data_ptr());
}

TEST_F(TensorHeapTest, WhatNoMachineHasIsRefused) {
  EXPECT_ANY_THROW(at::empty({int64_t{1} << 60}, at::TensorOptions().dtype(at::kByte)));
}

TEST_F(TensorHeapTest, ThreadsDoNotGetInEachOthersWay) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t, &wrong] {
      for (int i = 0; i < 60; ++i) {
        const at::Tensor a = at::full({(1 << 18) + i * 1000}, t, at::TensorOptions().dtype(at::kByte));
        const at::Tensor b = at::full({1 << 17}, t, at::TensorOptions().dtype(at::kByte));
        if (!(a == t).all().item<bool>() || !(b == t).all().item<bool>()) ++wrong[size_t(t)];
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

}  // namespace
}  // namespace adanat
