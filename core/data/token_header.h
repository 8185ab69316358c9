// What a token file says about itself, without its tensors. Free of torch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/io/safetensors.h"

namespace adanat {

inline constexpr const char* kTokenFormat = "adanat-tokens-1";

// See core/data/token_file.h for the metadata keys.
struct TokenHeader {
  int64_t grid_height = 0, grid_width = 0,
          vocab = 0;  // as written; token_file.h checks them against the tensors
  std::string tokenizer_hash;
  std::vector<std::string> class_names;
  std::string dataset;
};

// True if the metadata says that this is a token file, of whatever version.
bool says_token_file(const SafetensorsFile& file);
// InputError naming the file and the key: no token file, another version, a key that is missing or does not
// read as it should.
TokenHeader read_token_header(const SafetensorsFile& file);

}  // namespace adanat
