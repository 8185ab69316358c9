// The loops of int8_rows.h; included once per instruction set by int8_rows.cpp. No include of its own, and no
// function of the standard library that could be emitted for the wrong set.

inline float quantize(const float* row, int64_t columns, int8_t* q) {
  // Bits of |x| are ordered as the values are, and those of NaN and infinity lie above all others.
  uint32_t most = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const uint32_t bits = float_bits(row[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  const float largest = bits_float(most);
  // 1/x of a denormal would be infinite; rows that small are zeros.
  const bool zero = largest < 1e-30f;
  const float scale = zero ? 0.0f : largest / 127.0f, inverse = zero ? 0.0f : 127.0f / largest;
  if (most >= 0x7f800000u) {
    std::memset(q, 0, size_t(columns));
    return bits_float(0x7fc00000u);
  }
  // Adding 1.5 * 2^23 rounds to the nearest integer (ties to even) and leaves it in the low bits.
  for (int64_t i = 0; i < columns; ++i) {
    const float shifted = row[i] * inverse + 12582912.0f;
    q[i] = int8_t(int32_t(float_bits(shifted)) - int32_t(float_bits(12582912.0f)));
  }
  return scale;
}

inline void dequantize(const int32_t* sum, int64_t columns, float row_scale, const float* column_scale,
                       const float* bias, float* out) {
  if (bias == nullptr) {
    for (int64_t j = 0; j < columns; ++j) out[j] = float(sum[j]) * (row_scale * column_scale[j]);
  } else {
    for (int64_t j = 0; j < columns; ++j) out[j] = float(sum[j]) * (row_scale * column_scale[j]) + bias[j];
  }
}

// erf as a quotient of polynomials in x^2; beyond 4 it is 1 in float.
inline float erf_of(float x) {
  x = x > 4.0f ? 4.0f : x < -4.0f ? -4.0f : x;
  const float s = x * x;
  float p = -2.72614225801306e-10f;
  p = p * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  float r = -1.45660718464996e-05f;
  r = r * s - 2.13374055278905e-04f;
  r = r * s - 1.68282697438203e-03f;
  r = r * s - 7.37332916720468e-03f;
  r = r * s - 1.42647390514189e-02f;
  return x * p / r;
}

inline void dequantize_gelu(const int32_t* sum, int64_t columns, float row_scale, const float* column_scale,
                            const float* bias, float* out) {
  dequantize(sum, columns, row_scale, column_scale, bias, out);
  for (int64_t j = 0; j < columns; ++j)
    out[j] = 0.5f * out[j] * (1.0f + erf_of(out[j] * 0.70710678118654752f));
}

inline constexpr Int8Rows kRows = {quantize, dequantize, dequantize_gelu};
