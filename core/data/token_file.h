// Token files: what `adanat tokenize` writes and generator training reads (docs/command-line.md, tokenize),
// as safetensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace adanat {

struct TokenFile {
  at::Tensor tokens;   // (M, N) i32, 0 <= id < vocab, N = grid_height*grid_width
  at::Tensor classes;  // (M) i64, 0 <= class < class_names.size() (any value >= 0 if there are no names)
  at::Tensor flipped;  // (M) u8: 1 where the row is of the mirrored image
  std::vector<std::string> captions;  // M texts (UTF-8), or none
  int64_t grid_height = 0, grid_width = 0, vocab = 0;
  std::string tokenizer_hash;
  std::vector<std::string> class_names;
  std::string dataset;  // describe() of the images
};
// Metadata keys: format ("adanat-tokens-1"), tokenizer_hash, grid ("16x16", height first), vocab, class_names
// (JSON array), dataset. Captions, where there are any, are two more tensors: `captions` u8, all of them one
// behind the other, and `caption_ends` (M) i64, where each ends.

// The tensors own their memory. Everything said above is checked; InputError names the file, the key and both
// sides.
TokenFile read_token_file(const std::filesystem::path& path);
// Checks the same (RunError), then writes atomically.
void write_token_file(const std::filesystem::path& path, const TokenFile& file);
// True for a safetensors file whose metadata says that it is a token file; false for anything else, also if
// unreadable.
bool is_token_file(const std::filesystem::path& path);

// Tokens to decode into images, from a token file or from what `generate --save-tokens` wrote (`tokens` int64
// (n, N), `classes` int64 (n)).
struct SavedTokens {
  at::Tensor tokens;             // (n, N) i64, every id >= 0
  at::Tensor classes;            // (n) i64
  std::optional<int64_t> vocab;  // of a token file; ids are below it
  std::optional<int64_t> grid_height, grid_width;
  std::string tokenizer_hash;  // empty if not recorded
};
SavedTokens read_saved_tokens(const std::filesystem::path& path);

}  // namespace adanat
