#pragma once
// Float arithmetic with the same bits on every host and device.
//
// A seed has to give the same noise on a CPU without FMA, on one with AVX-512 and on a GPU. libm and CUDA's
// logf differ in the last bits and a compiler may contract a*b+c, so the noise uses only the operations
// below: IEEE single operations, each rounded once. Host code must be compiled with -ffp-contract=off (target
// adanat_flags does). No function here branches: loops over them vectorise.
#include <cstdint>
#ifndef __CUDA_ARCH__
#include <cstring>
#endif

#ifdef __CUDACC__
#define ADANAT_HD __host__ __device__ __forceinline__
#else
// Never emitted out of line: one object file is compiled for several instruction sets.
#define ADANAT_HD inline __attribute__((always_inline))
#endif

namespace adanat::kernels {

#ifdef __CUDA_ARCH__
ADANAT_HD float mul_rn(float a, float b) {
  return __fmul_rn(a, b);
}
ADANAT_HD float add_rn(float a, float b) {
  return __fadd_rn(a, b);
}
ADANAT_HD float sub_rn(float a, float b) {
  return __fsub_rn(a, b);
}
ADANAT_HD float div_rn(float a, float b) {
  return __fdiv_rn(a, b);
}
ADANAT_HD uint32_t float_bits(float x) {
  return __float_as_uint(x);
}
ADANAT_HD float bits_float(uint32_t x) {
  return __uint_as_float(x);
}
#else
ADANAT_HD float mul_rn(float a, float b) {
  return a * b;
}
ADANAT_HD float add_rn(float a, float b) {
  return a + b;
}
ADANAT_HD float sub_rn(float a, float b) {
  return a - b;
}
ADANAT_HD float div_rn(float a, float b) {
  return a / b;
}
ADANAT_HD uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
ADANAT_HD float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
#endif

constexpr float kInfinity = __builtin_huge_valf();

// a * b + c, rounded twice on purpose.
ADANAT_HD float mul_add_rn(float a, float b, float c) {
  return add_rn(mul_rn(a, b), c);
}

// Natural logarithm of a positive, normal, finite x. Other arguments give no useful value and no trap.
// x = 2^e * m with m in [sqrt(1/2), sqrt(2)); log m = f - f^2/2 + f^3 P(f), f = m - 1, so the relative error
// stays small near x = 1 too. Polynomial and split of ln 2: Cephes logf. Largest error over all 2^23 uniforms
// of the noise: 0.81 units in the last place; of -log(-log(u)): 1e-6 (measured in
// tests/kernels/philox_test.cpp).
ADANAT_HD float log_rn(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t offset = float_bits(x) - kSqrtHalf;
  const float e = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = sub_rn(bits_float((offset & 0x007fffffu) + kSqrtHalf), 1.0f);
  const float z = mul_rn(f, f);
  float p = 7.0376836292e-2f;
  p = mul_add_rn(p, f, -1.1514610310e-1f);
  p = mul_add_rn(p, f, 1.1676998740e-1f);
  p = mul_add_rn(p, f, -1.2420140846e-1f);
  p = mul_add_rn(p, f, 1.4249322787e-1f);
  p = mul_add_rn(p, f, -1.6668057665e-1f);
  p = mul_add_rn(p, f, 2.0000714765e-1f);
  p = mul_add_rn(p, f, -2.4999993993e-1f);
  p = mul_add_rn(p, f, 3.3333331174e-1f);
  float y = mul_rn(mul_rn(p, f), z);
  y = mul_add_rn(e, -2.12194440e-4f, y);
  y = sub_rn(y, mul_rn(0.5f, z));
  return mul_add_rn(e, 0.693359375f, add_rn(f, y));
}

// exp(x) for x <= 0 (Cephes expf). Arguments below -87, and -inf, count as -87: 1.6e-38. exp(0) is exactly 1.
ADANAT_HD float exp_nonpositive_rn(float x) {
  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits.
  constexpr float kRound = 12582912.0f;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = mul_add_rn(x, 1.44269504088896341f, kRound);
  const float n = sub_rn(shifted, kRound);
  float r = mul_add_rn(n, -0.693359375f, x);
  r = mul_add_rn(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = mul_add_rn(p, r, 1.3981999507e-3f);
  p = mul_add_rn(p, r, 8.3334519073e-3f);
  p = mul_add_rn(p, r, 4.1665795894e-2f);
  p = mul_add_rn(p, r, 1.6666665459e-1f);
  p = mul_add_rn(p, r, 5.0000001201e-1f);
  const float y = add_rn(mul_add_rn(p, mul_rn(r, r), r), 1.0f);
  return mul_rn(y, bits_float((float_bits(shifted) - float_bits(kRound) + 127u) << 23));
}

}  // namespace adanat::kernels
