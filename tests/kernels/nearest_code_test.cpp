#include "kernels/nearest_code.h"

#include "decode_step_case.h"
#include "kernels/nearest_code.cuh"

namespace adanat::kernels::testing {
namespace {

using adanat::testing::golden;

class NearestCodeTest : public OnDevice {
 protected:
  NearestCode nearest(const at::Tensor& x, const at::Tensor& codebook) const {
    const at::Device device(GetParam());
    const NearestCode r = nearest_code(x.to(device), codebook.to(device));
    return {r.ids.cpu(), r.distance.cpu()};
  }
};
ADANAT_ON_DEVICES(NearestCodeTest);

at::Tensor all_distances(const at::Tensor& x, const at::Tensor& codebook) {  // float64, (M, V)
  return (x.to(at::kDouble).unsqueeze(1) - codebook.to(at::kDouble).unsqueeze(0)).square().sum(2);
}

TEST_P(NearestCodeTest, EqualsBruteForceInFloat64) {
  for (int64_t rows : {1, 31, 33, 257}) {
    for (int64_t vocab : {1, 31, 64, 257, 1024}) {
      for (int64_t size : {1, 3, 32, 65}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(vocab) + " x " + std::to_string(size));
        const at::Tensor x = input_float("nearest.x", {rows, size}, 2.0);
        const at::Tensor codebook = input_float("nearest.codes", {vocab, size}, 2.0);
        const NearestCode r = nearest(x, codebook);
        const at::Tensor d = all_distances(x, codebook);
        const auto [smallest, ids] = d.min(1);
        if (GetParam() == at::kCPU) {
          EXPECT_CLOSE(r.ids, ids, 0);
        } else {
          const at::Tensor chosen = d.gather(1, r.ids.unsqueeze(1)).squeeze(1);
          EXPECT_CLOSE(chosen, smallest, 1e-5);
        }
        // Sums of squares up to 65 numbers long, in float32: a few units of the last place of the largest.
        EXPECT_CLOSE(r.distance, smallest.to(at::kFloat), 1e-4 + 1e-6 * smallest.max().item<double>());
      }
    }
  }
}

// Codes far from the origin and close to each other: |c|^2/2 - x.c loses every digit that tells them apart.
TEST_P(NearestCodeTest, SurvivesCancellation) {
  const at::Tensor offset = at::full({1, 64}, 1000.0, at::kFloat);
  const at::Tensor codebook = offset + input_float("nearest.near", {128, 64}, 0.5);
  const at::Tensor x = offset + input_float("nearest.near_x", {200, 64}, 0.5);
  const NearestCode r = nearest(x, codebook);
  const at::Tensor d = all_distances(x, codebook);
  const auto [smallest, ids] = d.min(1);
  EXPECT_CLOSE(r.ids, ids, 0);
  EXPECT_CLOSE(r.distance, smallest.to(at::kFloat), 1e-4);
  const at::Tensor sieve = codebook.square().sum(1) / 2 - x.mm(codebook.t());
  EXPECT_GT(sieve.argmin(1).ne(ids).sum().item<int64_t>(), 0) << "the case is too easy to show anything";
}

TEST_P(NearestCodeTest, TiesGoToTheLowerId) {
  const at::Tensor codes = input_float("nearest.codes", {5, 16}, 2.0);
  const at::Tensor codebook = codes.index_select(0, ids({4, 2, 2, 0, 0, 1, 3, 3, 4}));
  const at::Tensor expected = ids({3, 5, 1, 6, 0});
  EXPECT_CLOSE(nearest(codes, codebook).ids, expected, 0);
  EXPECT_CLOSE(nearest(codes, codebook).distance, at::zeros({5}), 0);
  // equally far, not equal: 0 between -1 and +1
  EXPECT_CLOSE(nearest(at::zeros({1, 1}), floats({2.f, 1.f, -1.f}).unsqueeze(1)).ids, ids({1}), 0);
}

TEST_P(NearestCodeTest, Golden) {
  const auto& g = golden("vqgan.safetensors");
  const at::Tensor z = g["z"].permute({0, 2, 3, 1}).reshape({32, 32});  // (2, 32, 4, 4)
  const at::Tensor codebook = adanat::testing::procedural_weight("quantize.embedding.weight", {64, 32});
  const NearestCode r = nearest(z, codebook);
  EXPECT_CLOSE(r.ids, g["ids"].reshape({32}), 0);
  EXPECT_CLOSE(r.distance, g["nearest_distance"].reshape({32}), 1e-4);
}

TEST_P(NearestCodeTest, StridesAndEmptySizes) {
  const at::Tensor x = input_float("nearest.x", {33, 20}, 2.0),
                   codebook = input_float("nearest.codes", {17, 20}, 2.0);
  const NearestCode plain = nearest(x, codebook);
  EXPECT_CLOSE(nearest(x.t().contiguous().t(), codebook.t().contiguous().t()).ids, plain.ids, 0);
  EXPECT_EQ(nearest(x.narrow(0, 0, 0), codebook).ids.numel(), 0);
  EXPECT_CLOSE(nearest(x.narrow(1, 0, 0), codebook.narrow(1, 0, 0)).ids, at::zeros({33}, at::kLong), 0);
}

TEST(NearestCodeThreads, SameResultInBlocksAndThreads) {
  const at::Tensor x = input_float("nearest.x", {5000, 8}, 2.0),
                   codebook = input_float("nearest.codes", {1000, 8}, 2.0);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const NearestCode one = nearest_code(x, codebook);
  at::set_num_threads(2);
  const NearestCode two = nearest_code(x, codebook);
  at::set_num_threads(before);
  EXPECT_CLOSE(one.ids, two.ids, 0);
  EXPECT_CLOSE(one.distance, two.distance, 0);
  EXPECT_CLOSE(one.ids.narrow(0, 4000, 7), nearest_code(x.narrow(0, 4000, 7), codebook).ids, 0);
}

TEST(NearestCodeErrors, NameTheInput) {
  const at::Tensor x = at::zeros({3, 4}), codebook = at::zeros({5, 4});
  const auto message = [](const at::Tensor& a, const at::Tensor& b) -> std::string {
    try {
      nearest_code(a, b);
    } catch (const c10::Error& e) {
      return e.what_without_backtrace();
    }
    return "no error";
  };
  EXPECT_NE(message(x[0], codebook).find("x must be (M, C) float32"), std::string::npos);
  EXPECT_NE(message(x.to(at::kDouble), codebook).find("Double"), std::string::npos);
  EXPECT_NE(message(x, codebook.narrow(0, 0, 0)).find("V >= 1"), std::string::npos);
  EXPECT_NE(message(x, codebook.narrow(1, 0, 3)).find("last sizes differ"), std::string::npos);
  at::Tensor bad = x.clone();
  bad[2][1].fill_(NAN);
  EXPECT_NE(message(bad, codebook).find("row 2 of x"), std::string::npos);
  at::Tensor bad_code = codebook.clone();
  bad_code[4][0].fill_(INFINITY);
  EXPECT_NE(message(x, bad_code).find("code 4"), std::string::npos);
  EXPECT_EQ(nearest_code(x.to(at::kMeta), codebook.to(at::kMeta)).ids.sizes(), (at::IntArrayRef{3}));
}

// The kernel's merge, on the host.
TEST(NearestCodeDevice, TheNearerWinsAndTiesGoDown) {
  NearestPartial best;
  take_nearer(best, NAN, 9);
  EXPECT_EQ(best.distance, kInfinity);
  take_nearer(best, 2.0f, 7);
  take_nearer(best, 2.0f, 3);
  take_nearer(best, 2.0f, 5);
  EXPECT_EQ(best.id, 3);
  take_nearer(best, 1.0f, 8);
  EXPECT_EQ(best.id, 8);
}

}  // namespace
}  // namespace adanat::kernels::testing
