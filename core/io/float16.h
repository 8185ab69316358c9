// The 16-bit floating-point types as numbers. Free of torch.
#pragma once
#include <bit>
#include <cstdint>

namespace adanat {

// IEEE 754 binary16; exact for every bit pattern (subnormal numbers, infinities, NaN stay what they are).
inline float float_from_half(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// bfloat16: the upper half of a float.
inline float float_from_bfloat16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

}  // namespace adanat
