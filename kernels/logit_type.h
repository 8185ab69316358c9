#pragma once
// The dtypes that logits come in, read as float; host and device, free of torch and of cuda_fp16.h.
#include <cstdint>

#include "kernels/float_math.h"

namespace adanat::kernels {

enum class LogitType { kFloat32, kBFloat16, kFloat16 };

struct Float32 {
  using Stored = float;
  static ADANAT_HD float load(float x) { return x; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static ADANAT_HD float load(uint16_t x) { return bits_float(static_cast<uint32_t>(x) << 16); }
};

struct Float16 {
  using Stored = uint16_t;
  static ADANAT_HD float load(uint16_t x) {
    const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fffu) << 13;
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
    const float scaled =
        mul_rn(bits_float(magnitude), 0x1p112f);  // exponent bias 15 to 127, exact for subnormals too
    const uint32_t bits =
        scaled >= 65536.0f ? (magnitude | 0x7f800000u) : float_bits(scaled);  // infinity and NaN
    return bits_float(bits | sign);
  }
};

}  // namespace adanat::kernels
