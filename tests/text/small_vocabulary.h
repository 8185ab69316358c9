// A CLIP tokenizer of a few hundred tokens: every byte symbol, some merges, the two special tokens last.
#pragma once
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/text/unicode.h"

namespace adanat::testing {

using MergeList = std::vector<std::pair<std::string, std::string>>;

// Token i is tokens[i]: 256 bytes in GPT-2's alphabet by their value, the same with "</w>", what the merges
// make, fillers "filler0", ... up to `size` where it is larger, start and end.
inline std::vector<std::string> small_vocabulary(const MergeList& merges, size_t size = 0) {
  std::vector<std::string> tokens;
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    tokens.emplace_back();
    append_utf8(printable ? char32_t(byte) : next++, tokens.back());
  }
  for (size_t byte = 0; byte < 256; ++byte) tokens.push_back(tokens[byte] + "</w>");
  for (const auto& [left, right] : merges) tokens.push_back(left + right);
  for (int i = 0; tokens.size() + 2 < size; ++i) tokens.push_back("filler" + std::to_string(i));
  tokens.insert(tokens.end(), {"<|startoftext|>", "<|endoftext|>"});
  return tokens;
}

inline nlohmann::json vocabulary_json(const std::vector<std::string>& tokens) {
  nlohmann::json j;
  for (size_t i = 0; i < tokens.size(); ++i) j[tokens[i]] = i;
  return j;
}

inline std::string merges_text(const MergeList& merges) {
  std::string text = "#version: 0.2\n";
  for (const auto& [left, right] : merges) text += left + " " + right + "\n";
  return text;
}

inline void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

// vocab.json and merges.txt in `folder`, which is made.
inline void write_tokenizer(const std::filesystem::path& folder, const MergeList& merges, size_t size = 0) {
  std::filesystem::create_directories(folder);
  write_text(folder / "vocab.json", vocabulary_json(small_vocabulary(merges, size)).dump());
  write_text(folder / "merges.txt", merges_text(merges));
}

}  // namespace adanat::testing
