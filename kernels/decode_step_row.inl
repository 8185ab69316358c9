// Included once per instruction set, inside a namespace of its own (see decode_step_row.cpp).
//
// The loops are plain and left to the compiler's vectoriser. What fixes the bits in all versions: every sum
// runs in kLanes partial sums that are added in one order, nothing is contracted, and log and exp are our
// own.

constexpr int kLanes = 32;
using Lanes = float[kLanes];

template <class T>
static void load_guided(const RowInput& row, float* __restrict__ guided) {
  const auto* __restrict__ cond = static_cast<const typename T::Stored*>(row.cond);
  const auto* __restrict__ uncond = static_cast<const typename T::Stored*>(row.uncond);
  const int64_t vocab = row.vocab;
  if (uncond == nullptr) {
    for (int64_t v = 0; v < vocab; ++v) guided[v] = T::load(cond[v]);
    return;
  }
  const float w = row.guidance;
  for (int64_t v = 0; v < vocab; ++v) guided[v] = guide(T::load(cond[v]), T::load(uncond[v]), w);
}

static void philox_noise(const RowInput& row, float* __restrict__ noise) {
  const uint32_t position = row.position, image = row.image, step = row.step;
  const uint64_t seed = row.seed;
  constexpr int kBlock = 64;  // counters per round, 256 codes
  uint32_t bits[4 * kBlock];
  const int64_t padded = row_scratch_size(row.vocab) / 2;
  for (int64_t first = 0; first < padded; first += 4 * kBlock) {
    const int count =
        static_cast<int>(padded - first < 4 * kBlock ? padded - first : 4 * kBlock);  // a multiple of 64
    for (int i = 0; i < count / 4; ++i) {
      const Philox4 words = draw(seed, static_cast<uint32_t>(first / 4) + static_cast<uint32_t>(i), position,
                                 image, step, Stream::kToken);
      bits[4 * i] = words.x;
      bits[4 * i + 1] = words.y;
      bits[4 * i + 2] = words.z;
      bits[4 * i + 3] = words.w;
    }
    for (int i = 0; i < count; ++i) noise[first + i] = gumbel(bits[i]);
  }
}

static float largest_of(const float* __restrict__ values, int64_t padded) {
  Lanes best;
  for (int l = 0; l < kLanes; ++l) best[l] = -kInfinity;
  for (int64_t v = 0; v < padded; v += kLanes)
    for (int l = 0; l < kLanes; ++l) best[l] = values[v + l] > best[l] ? values[v + l] : best[l];
  float largest = -kInfinity;
  for (int l = 0; l < kLanes; ++l) largest = best[l] > largest ? best[l] : largest;
  return largest;
}

static bool all_below_infinity(const float* __restrict__ values, int64_t padded) {
  uint32_t bad[kLanes] = {};
  for (int64_t v = 0; v < padded; v += kLanes)
    for (int l = 0; l < kLanes; ++l) bad[l] |= values[v + l] < kInfinity ? 0u : 1u;  // NaN compares false
  uint32_t any = 0;
  for (int l = 0; l < kLanes; ++l) any |= bad[l];
  return any == 0;
}

static float sum_exp(const float* __restrict__ values, int64_t padded, float largest) {
  Lanes sum = {};
  for (int64_t v = 0; v < padded; v += kLanes)
    for (int l = 0; l < kLanes; ++l) sum[l] += exp_nonpositive_rn(values[v + l] - largest);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

// The lower id on ties. `largest` is one of the values.
static int64_t first_equal(const float* __restrict__ values, int64_t vocab, float largest) {
  int64_t v = 0;
  for (; v + kLanes <= vocab; v += kLanes) {
    uint32_t hit = 0;
    for (int l = 0; l < kLanes; ++l) hit |= values[v + l] == largest ? 1u : 0u;
    if (hit != 0) break;
  }
  while (v < vocab && values[v] != largest) ++v;
  return v;
}

static RowDraw draw_row(const RowInput& row, float* scratch) {
  const int64_t vocab = row.vocab, padded = row_scratch_size(vocab) / 2;
  float* __restrict__ guided = scratch;
  float* __restrict__ score = scratch + padded;
  switch (row.type) {
    case LogitType::kFloat32:
      load_guided<Float32>(row, guided);
      break;
    case LogitType::kBFloat16:
      load_guided<BFloat16>(row, guided);
      break;
    case LogitType::kFloat16:
      load_guided<Float16>(row, guided);
      break;
  }
  for (int64_t v = vocab; v < padded; ++v) guided[v] = -kInfinity;
  const float largest = largest_of(guided, padded);
  if (largest == -kInfinity || !all_below_infinity(guided, padded)) return {-1, 0.0f};

  int64_t id;
  if (row.temperature <= kGreedyTemperature) {
    id = first_equal(guided, vocab, largest);
  } else {
    if (row.token_noise != nullptr) {
      for (int64_t v = 0; v < vocab; ++v) score[v] = row.token_noise[v];
      for (int64_t v = vocab; v < padded; ++v) score[v] = 0.0f;
    } else {
      philox_noise(row, score);
    }
    const float temperature = row.temperature;
    for (int64_t v = 0; v < padded; ++v) score[v] = guided[v] / temperature + score[v];
    id = first_equal(score, vocab, largest_of(score, padded));
    if (id == vocab) return {-1, 0.0f};  // the explicit noise was NaN
  }
  // The pads add exp(-87) each, far below the last bit of a sum that is at least 1.
  return {id, guided[id] - largest - log_rn(sum_exp(guided, padded, largest))};
}
