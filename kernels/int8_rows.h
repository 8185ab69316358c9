#pragma once
// The loops around an int8 matrix product: float rows into int8, int32 sums back into floats.
//
// Symmetric: value = scale * q, q in [-127, 127], one scale per row of activations and one per column (output
// channel) of the product. A scale of its own for every row means that what else is in the batch does not
// change an image. The sums are exact integers, and everything here is single IEEE operations in a fixed
// order: equal inputs give equal bits in all instruction sets, thread counts and libraries.
//
// Not operators: they work on raw rows, and only core/nn/linear.cpp calls them.
#include <cstdint>

#include "kernels/isa.h"

namespace adanat::kernels {

struct Int8Rows {
  // row (columns) -> q (columns); returns its scale, max|row| / 127. A row of zeros gives scale 0. A row with
  // a NaN or an infinity gives scale NaN, so that it shows in what is computed from it.
  float (*quantize)(const float* row, int64_t columns, int8_t* q);
  // out[j] = sum[j] * row_scale * column_scale[j] (+ bias[j] unless null)
  void (*dequantize)(const int32_t* sum, int64_t columns, float row_scale, const float* column_scale,
                     const float* bias, float* out);
  // The same, then the exact GELU x (1 + erf(x / sqrt 2)) / 2, absolute error below 1e-6 max(1, |x|).
  void (*dequantize_gelu)(const int32_t* sum, int64_t columns, float row_scale, const float* column_scale,
                          const float* bias, float* out);
};

const Int8Rows& int8_rows(Isa isa);

// Whether this CPU multiplies int8 in one instruction (VNNI). Without it the libraries fall back to chains of
// instructions that may saturate.
bool has_int8_products();

}  // namespace adanat::kernels
