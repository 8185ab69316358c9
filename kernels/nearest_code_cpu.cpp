#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/nearest_code_impl.h"

namespace adanat::kernels {
namespace {

double squared_distance(const float* a, const float* b, int64_t size) {
  double sum[4] = {};  // four chains: the additions of one would wait for each other
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    for (int64_t l = 0; l < 4; ++l) {
      const double d = static_cast<double>(a[i + l]) - static_cast<double>(b[i + l]);
      sum[l] += d * d;
    }
  }
  for (; i < size; ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum[0] += d * d;
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

double squared_norm(const float* a, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(a[i]);
  return sum;
}

std::tuple<at::Tensor, at::Tensor> nearest_code_cpu(const at::Tensor& x_in, const at::Tensor& codebook_in) {
  check_nearest_code(x_in, codebook_in);
  NearestCode out = empty_nearest_code(x_in);
  const at::Tensor x = x_in.contiguous(), codebook = codebook_in.contiguous();
  const int64_t rows = x.size(0), vocab = codebook.size(0), size = x.size(1);
  const float* points = x.const_data_ptr<float>();
  const float* codes = codebook.const_data_ptr<float>();
  int64_t* ids = out.ids.mutable_data_ptr<int64_t>();
  float* distance = out.distance.mutable_data_ptr<float>();

  std::vector<float> half_norm(static_cast<size_t>(vocab));
  double largest_norm = 0;
  for (int64_t v = 0; v < vocab; ++v) {
    const double norm = squared_norm(codes + v * size, size);
    TORCH_CHECK(std::isfinite(static_cast<float>(norm)), "nearest_code: code ", v,
                " of the codebook is NaN, infinite or too large");
    half_norm[static_cast<size_t>(v)] = static_cast<float>(0.5 * norm);
    largest_norm = std::max(largest_norm, norm);
  }

  const int64_t block = std::clamp<int64_t>((int64_t{1} << 20) / vocab, 16, 4096);  // about 4 MiB of products
  const at::Tensor codebook_t = codebook.t();
  std::atomic<int64_t> first_bad{rows};
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    const at::Tensor products = at::mm(x.narrow(0, first, count), codebook_t);
    const float* dots = products.const_data_ptr<float>();
    at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      std::vector<float> score(static_cast<size_t>(vocab));
      for (int64_t r = begin; r < end; ++r) {
        const float* point = points + (first + r) * size;
        const double norm = squared_norm(point, size);
        if (!std::isfinite(static_cast<float>(norm))) {
          int64_t seen = first_bad.load();
          while (first + r < seen && !first_bad.compare_exchange_weak(seen, first + r)) {
          }
          continue;
        }
        for (int64_t v = 0; v < vocab; ++v)
          score[static_cast<size_t>(v)] = half_norm[static_cast<size_t>(v)] - dots[r * vocab + v];
        const float smallest = *std::min_element(score.begin(), score.end());
        // A float32 dot product of any summation order errs by at most C * 2^-24 |x||c| (first order), the
        // rest by a few roundings of numbers no larger than |x||c| + |c|^2/2. Two scores are compared: twice
        // that.
        const double unit = std::ldexp(1.0, -24);
        const double scale = std::sqrt(norm * largest_norm) + 0.5 * largest_norm;
        const double bound = smallest + 2.0 * (static_cast<double>(size) + 4.0) * unit * scale * 1.01;
        int64_t best = 0;
        double best_distance = std::numeric_limits<double>::infinity();
        for (int64_t v = 0; v < vocab; ++v) {
          if (!(score[static_cast<size_t>(v)] <= bound)) continue;
          const double d = squared_distance(point, codes + v * size, size);
          if (d < best_distance) {
            best_distance = d;
            best = v;
          }
        }
        ids[first + r] = best;
        distance[first + r] = static_cast<float>(best_distance);
      }
    });
  }
  TORCH_CHECK(first_bad.load() == rows, "nearest_code: row ", first_bad.load(),
              " of x is NaN, infinite or too large");
  return {out.ids, out.distance};
}

}  // namespace
}  // namespace adanat::kernels

TORCH_LIBRARY_IMPL(adanat, CPU, m) {
  m.impl("nearest_code", TORCH_FN(adanat::kernels::nearest_code_cpu));
}
