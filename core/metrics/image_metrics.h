// How well a tokenizer gives images back, and how much of its codebook it uses.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace adanat {

// Peak signal-to-noise ratio in dB of images a, b (B, C, H, W) in [0, 1], any float type -> (B) f64.
// 10 log10(1 / mean square difference); +inf for equal images. RunError if the shapes differ.
at::Tensor psnr(const at::Tensor& a, const at::Tensor& b);

// Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004) of a, b (B, C, H, W) in [0, 1] -> (B) f64, at
// most 1. 11x11 Gaussian window, sigma 1.5, K1 0.01, K2 0.03, data range 1, biased window moments; mean over
// all windows that lie wholly inside, then over channels. RunError if the shapes differ or a side is
// under 11.
at::Tensor ssim(const at::Tensor& a, const at::Tensor& b);

// How often each code 0..V-1 was used. Not thread-safe.
class CodeHistogram {
 public:
  explicit CodeHistogram(int64_t codes);
  // ids int64 of any shape and device. RunError for an id outside 0..V-1.
  void add(const at::Tensor& ids);
  const at::Tensor& counts() const { return counts_; }  // (V) i64
  // Share of codes used at least once, 0..1.
  double usage() const;
  // exp of the entropy of the code frequencies: V if all are used equally, 1 if one is used alone, 0 if
  // nothing was added.
  double perplexity() const;

 private:
  at::Tensor counts_;
};

}  // namespace adanat
