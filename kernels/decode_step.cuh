#pragma once
// decode_step on a GPU, free of torch: raw pointers in, results out. The functions of one row are host code
// too, so a machine without a GPU can run them (tests/kernels/decode_step_device_test.cpp).
//
// Two kernels. draw_rows: one warp per row; lane l takes the codes 4q..4q+3 of the quads q = l, l+32, ...,
// one Philox call each, and keeps an online log-sum-exp and the best score; 32 partials are merged by
// shuffles. remask_samples: one block per sample; each position counts the confidences before its own
// (decode_step_rules.h), which needs no sort: N^2 comparisons from shared memory.
#include <cstdint>

#include "kernels/decode_step_rules.h"
#include "kernels/logit_type.h"
#include "kernels/philox.h"

namespace adanat::kernels {

// A (B, N, V) tensor whose last stride is 1. Strides in elements.
struct RowView {
  const void* data = nullptr;
  int64_t batch_stride = 0, position_stride = 0;
};

struct DecodeStepArgs {
  int64_t batch = 0, positions = 0, vocab = 0;
  LogitType type = LogitType::kFloat32;
  int64_t rule = 0;                   // RemaskRule
  RowView cond, uncond, token_noise;  // uncond.data and token_noise.data may be null
  const int64_t* tokens = nullptr;
  const float* mask_ratio_f32 = nullptr;  // one of the two
  const double* mask_ratio_f64 = nullptr;
  const float *remask_temperature = nullptr, *sampling_temperature = nullptr, *guidance = nullptr;
  const int64_t *seed = nullptr, *image_index = nullptr, *step = nullptr, *hidden_at_start = nullptr;
  const int64_t* priority = nullptr;
  const float* confidence_noise = nullptr;  // may be null
  int64_t *out_tokens = nullptr, *out_proposals = nullptr;
  float *out_confidence = nullptr, *out_log_prob = nullptr;
};

constexpr int64_t kRuleMaskgit = 1, kRuleOrder = 2;

ADANAT_HD float quiet_nan() {
  return bits_float(0x7fc00000u);
}

// What a lane knows of its part of a row.
struct RowPartial {
  float largest = -kInfinity;  // of the guided logits
  float sum = 0.0f;            // of exp(guided - largest)
  float score = -kInfinity;    // best guided / tau1 + noise
  float guided = -kInfinity;   // at the best score
  int32_t id = 0x7fffffff;     // of the best score
  bool bad = false;            // NaN or +inf seen
};

ADANAT_HD void take_best(RowPartial& into, float score, float guided, int32_t id) {
  if (score > into.score || (score == into.score && id < into.id)) {
    into.score = score;
    into.guided = guided;
    into.id = id;
  }
}

ADANAT_HD void take_sum(RowPartial& into, float largest, float sum) {
  if (largest == -kInfinity) return;
  if (largest > into.largest) {
    into.sum = into.largest == -kInfinity
                   ? sum
                   : add_rn(mul_rn(into.sum, exp_nonpositive_rn(sub_rn(into.largest, largest))), sum);
    into.largest = largest;
  } else {
    into.sum = add_rn(into.sum, mul_rn(sum, exp_nonpositive_rn(sub_rn(largest, into.largest))));
  }
}

ADANAT_HD RowPartial merge(RowPartial a, const RowPartial& b) {
  take_sum(a, b.largest, b.sum);
  take_best(a, b.score, b.guided, b.id);
  a.bad = a.bad || b.bad;
  return a;
}

// The codes 4 quad .. 4 quad + 3 of row (b, n).
template <class T>
ADANAT_HD void take_quad(const DecodeStepArgs& a, int64_t b, int64_t n, int64_t quad, RowPartial& into) {
  using Stored = typename T::Stored;
  const float w = a.guidance[b], temperature = a.sampling_temperature[b];
  const bool greedy = !(temperature > kGreedyTemperature);  // NaN too
  const bool guided_row = a.uncond.data != nullptr && w != 0.0f;
  const Stored* cond =
      static_cast<const Stored*>(a.cond.data) + b * a.cond.batch_stride + n * a.cond.position_stride;
  const Stored* uncond = guided_row ? static_cast<const Stored*>(a.uncond.data) + b * a.uncond.batch_stride +
                                          n * a.uncond.position_stride
                                    : nullptr;
  const float* noise = a.token_noise.data != nullptr
                           ? static_cast<const float*>(a.token_noise.data) + b * a.token_noise.batch_stride +
                                 n * a.token_noise.position_stride
                           : nullptr;
  uint32_t word[4] = {0, 0, 0, 0};
  if (!greedy && noise == nullptr) {
    const Philox4 words = draw(static_cast<uint64_t>(a.seed[b]), static_cast<uint32_t>(quad),
                               static_cast<uint32_t>(n), static_cast<uint32_t>(a.image_index[b]),
                               static_cast<uint32_t>(a.step[0]) & 0xffffu, Stream::kToken);
    word[0] = words.x;
    word[1] = words.y;
    word[2] = words.z;
    word[3] = words.w;
  }
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    const int64_t v = 4 * quad + i;
    if (v >= a.vocab) break;
    float g = T::load(cond[v]);
    if (guided_row) g = guide(g, T::load(uncond[v]), w);
    if (!(g < kInfinity)) {
      into.bad = true;
      continue;
    }
    take_sum(into, g, 1.0f);
    const float score =
        greedy ? g : add_rn(div_rn(g, temperature), noise != nullptr ? noise[v] : gumbel(word[i]));
    take_best(into, score, g, static_cast<int32_t>(v));
  }
}

// Writes proposal, log-probability and confidence of a hidden row from the whole row's partial.
ADANAT_HD void finish_row(const DecodeStepArgs& a, int64_t b, int64_t n, const RowPartial& row) {
  const int64_t at = b * a.positions + n;
  if (row.bad || row.largest == -kInfinity || row.id >= a.vocab) {  // the marker of decode_step.h
    a.out_proposals[at] = a.vocab;
    a.out_log_prob[at] = quiet_nan();
    a.out_confidence[at] = quiet_nan();
    return;
  }
  const float log_prob = sub_rn(sub_rn(row.guided, row.largest), log_rn(row.sum));
  a.out_proposals[at] = row.id;
  a.out_log_prob[at] = log_prob;
  if (a.rule == kRuleOrder) {
    a.out_confidence[at] = -static_cast<float>(a.priority[n]);
    return;
  }
  const float noise = a.confidence_noise != nullptr
                          ? a.confidence_noise[at]
                          : confidence_gumbel(static_cast<uint64_t>(a.seed[b]), static_cast<uint32_t>(n),
                                              static_cast<uint32_t>(a.image_index[b]),
                                              static_cast<uint32_t>(a.step[0]) & 0xffffu);
  a.out_confidence[at] = add_rn(log_prob, mul_rn(a.remask_temperature[b], noise));
}

ADANAT_HD void keep_revealed(const DecodeStepArgs& a, int64_t b, int64_t n) {
  const int64_t at = b * a.positions + n;
  a.out_proposals[at] = a.tokens[at];
  a.out_log_prob[at] = 0.0f;
  a.out_confidence[at] = kInfinity;
}

// The largest count of confidences before one's own with which a position stays masked; -1: none does.
ADANAT_HD int64_t remask_bound(const DecodeStepArgs& a, int64_t b, int64_t hidden) {
  const int64_t start = a.hidden_at_start[b];
  if (a.rule == kRuleMaskgit) {
    const double m =
        a.mask_ratio_f64 != nullptr ? a.mask_ratio_f64[b] : static_cast<double>(a.mask_ratio_f32[b]);
    return maskgit_bound(m, start, hidden);
  }
  const float m = a.mask_ratio_f32 != nullptr ? a.mask_ratio_f32[b] : static_cast<float>(a.mask_ratio_f64[b]);
  return strict_bound(m, start, a.positions);
}

ADANAT_HD bool comes_before(const DecodeStepArgs& a, float other, float own) {
  return a.rule == kRuleMaskgit ? other < own : other <= own;
}

#ifdef __CUDACC__

constexpr int kWarp = 32, kRowsPerBlock = 4, kRemaskThreads = 256;

template <class T>
__global__ void draw_rows(const DecodeStepArgs a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.y;
  if (row >= a.batch * a.positions)
    return;  // a whole warp leaves at once: the full shuffle masks below are safe
  const int64_t b = row / a.positions, n = row % a.positions;
  if (a.tokens[row] != a.vocab) {
    if (threadIdx.x == 0) keep_revealed(a, b, n);
    return;  // uniform in the warp, too
  }
  RowPartial mine;
  for (int64_t quad = threadIdx.x; 4 * quad < a.vocab; quad += kWarp) take_quad<T>(a, b, n, quad, mine);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    RowPartial other;
    other.largest = __shfl_xor_sync(~0u, mine.largest, offset);
    other.sum = __shfl_xor_sync(~0u, mine.sum, offset);
    other.score = __shfl_xor_sync(~0u, mine.score, offset);
    other.guided = __shfl_xor_sync(~0u, mine.guided, offset);
    other.id = __shfl_xor_sync(~0u, mine.id, offset);
    other.bad = __shfl_xor_sync(~0u, static_cast<int>(mine.bad), offset) != 0;
    mine = merge(mine, other);
  }
  if (threadIdx.x == 0) finish_row(a, b, n, mine);
}

__global__ void remask_samples(const DecodeStepArgs a) {
  __shared__ float tile[kRemaskThreads];
  __shared__ int64_t bound;
  const int64_t b = blockIdx.x;
  const float* confidence = a.out_confidence + b * a.positions;

  int64_t hidden = 0;
  for (int64_t first = 0; first < a.positions; first += kRemaskThreads) {
    const int64_t i = first + threadIdx.x;
    hidden += __syncthreads_count(i < a.positions && a.tokens[b * a.positions + i] == a.vocab);
  }
  if (threadIdx.x == 0) bound = remask_bound(a, b, hidden);
  __syncthreads();

  for (int64_t mine = 0; mine < a.positions; mine += kRemaskThreads) {
    const int64_t i = mine + threadIdx.x;
    const float own = i < a.positions ? confidence[i] : 0.0f;
    int64_t before = 0;
    for (int64_t first = 0; first < a.positions; first += kRemaskThreads) {
      __syncthreads();  // the tile of the round before is still being read
      if (first + threadIdx.x < a.positions) tile[threadIdx.x] = confidence[first + threadIdx.x];
      __syncthreads();
      const int64_t left = a.positions - first;
      const int count = left < kRemaskThreads ? static_cast<int>(left) : kRemaskThreads;
      for (int j = 0; j < count; ++j) before += comes_before(a, tile[j], own) ? 1 : 0;
    }
    if (i < a.positions) {
      const int64_t at = b * a.positions + i;
      // A marker (NaN) has the proposal V, which reads as masked either way.
      const bool masked = own < kInfinity && before <= bound;
      a.out_tokens[at] = masked ? a.vocab : a.out_proposals[at];
    }
  }
}

#endif  // __CUDACC__

}  // namespace adanat::kernels
