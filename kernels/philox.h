#pragma once
// Noise as a function of its coordinates (Philox4x32-10, Salmon et al., SC'11): same bits on host and device.
//
// key = seed; counter = (code / 4, position, image index, step | stream << 16); word = code mod 4.
// So a draw depends on nothing else: not on the batch, the order, the process, the block size or the device.
// Ranges: image index < 2^32, step < 2^16, stream < 2^16. Draws without a code (stream 1) use code 0.
#include <cstdint>

#include "kernels/float_math.h"

namespace adanat::kernels {

enum class Stream : uint32_t {
  kToken = 0,        // Gumbel noise of the proposals: one per (position, code)
  kConfidence = 1,   // Gumbel noise of the confidences: one per position, code 0
  kExploration = 2,  // the policy's exploration noise
  kData = 3,         // labels and data order
  kEdit = 4,         // which tokens an edit of less than full strength makes anew: one per position, code 0
};

struct Philox4 {
  uint32_t x, y, z, w;
};

ADANAT_HD Philox4 philox4x32_10(Philox4 counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * counter.x, p1 = 0xCD9E8D57ull * counter.z;
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter.y ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter.w ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// The four words at counter (a, b, c, step | stream << 16).
ADANAT_HD Philox4 draw(uint64_t seed, uint32_t a, uint32_t b, uint32_t c, uint32_t step, Stream stream) {
  return philox4x32_10({a, b, c, step | static_cast<uint32_t>(stream) << 16}, seed);
}

// Uniform, strictly inside (0, 1): 2^-24 ... 1 - 2^-24 in steps of 2^-23. 23 bits, not 24: with 24 the
// largest value rounds to 1.0f and its Gumbel noise is infinite, once per 2^24 draws.
ADANAT_HD float unit_open(uint32_t bits) {
  return mul_rn(add_rn(static_cast<float>(static_cast<int32_t>(bits >> 9)), 0.5f), 0x1p-23f);
}

// Gumbel(0, 1) = -log(-log(u)), in [-2.82, 16.64].
ADANAT_HD float gumbel(uint32_t bits) {
  return -log_rn(-log_rn(unit_open(bits)));
}

// Uniform index in [0, n), n >= 1, by multiply and shift; the bias is below n / 2^32.
ADANAT_HD uint32_t bounded(uint32_t bits, uint32_t n) {
  return static_cast<uint32_t>((static_cast<uint64_t>(bits) * n) >> 32);
}

// Gumbel noise of the confidence at one position.
ADANAT_HD float confidence_gumbel(uint64_t seed, uint32_t position, uint32_t image, uint32_t step) {
  return gumbel(draw(seed, 0, position, image, step, Stream::kConfidence).x);
}

}  // namespace adanat::kernels
