// What the text encoder makes of every caption of a data set, computed once and mapped by training.
// Legend: K texts, L tokens of a text, C width of the states, P width of the pooled state.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/io/safetensors.h"
#include "core/text/clip.h"

namespace adanat {

// An open file. Text 0 is the empty one. The texts' states stay on disk until they are asked for. Cheap to
// copy; const methods are safe from several threads.
//
// The file is safetensors: `features` (K, L*C + P) f16, the states and then the pooled state; `texts` u8, one
// behind the other, and `text_ends` (K) i64; metadata: format "adanat-text-1", encoder (hash), tokens L,
// width C, pooled P.
class TextFeatures {
 public:
  // InputError naming file and key: no such file, another kind, damaged.
  static TextFeatures open(const std::filesystem::path& path);
  // Encodes the empty text and the distinct ones of `texts` and writes them, atomically and without holding
  // them: a text takes 2 (L C + P) bytes. `hash`: encoder.hash(). RunError: disk full, or a state beyond f16.
  static void write(const std::filesystem::path& path, const ClipTextEncoder& encoder,
                    const std::string& hash, const std::vector<std::string>& texts);

  const std::string& encoder_hash() const { return encoder_; }
  int64_t size() const { return int64_t(ends_.size()); }  // K
  int64_t tokens() const { return tokens_; }              // L
  int64_t width() const { return width_; }                // C
  int64_t pooled_width() const { return pooled_; }        // P
  bool contains(const std::string& text) const { return rows_.contains(text); }
  // The places of texts, (n) i64. InputError naming the first that the file does not hold.
  at::Tensor rows_of(const std::vector<std::string>& texts) const;
  // rows (B) i64 in [0, K), on the CPU -> (B, L, C) f16 and (B, P) f16, copies on the CPU.
  at::Tensor states(const at::Tensor& rows) const;
  at::Tensor pooled(const at::Tensor& rows) const;

 private:
  explicit TextFeatures(SafetensorsFile file) : file_(std::move(file)) {}

  SafetensorsFile file_;
  std::string encoder_;
  int64_t tokens_ = 0, width_ = 0, pooled_ = 0;
  at::Tensor features_;
  std::vector<int64_t> ends_;
  std::unordered_map<std::string_view, int64_t> rows_;  // views into the mapped file
};

}  // namespace adanat
