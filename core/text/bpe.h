// CLIP's text tokenizer: lower-cased byte-level byte-pair encoding. Free of torch.
// Source: transformers, CLIPTokenizerFast (convert_slow_tokenizer.py, CLIPConverter); its ids are ours
// (tests/side_by_side).
//
// 1. NFC, runs of white space to one space, small letters.
// 2. Words: 's 't 're 've 'm 'll 'd | letters+ | one number | (no space, letter, number)+. Spaces fall away.
// 3. The bytes of a word are symbols of the GPT-2 byte alphabet, the last one with "</w>" behind it; the pair
//    of neighbours that stands first in merges.txt is joined until no pair of them is listed.
// The special tokens written out in a text ("<|endoftext|>", any case) stand for themselves.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace adanat {

// What the tokenizer's files call its special tokens; each must be in the vocabulary.
struct BpeSpecials {
  std::string start = "<|startoftext|>";
  std::string end = "<|endoftext|>";
  std::string pad = "<|endoftext|>";  // what short texts are filled up with
  std::string unknown = "<|endoftext|>";
  // Whether `pad` written out in a text stands for the padding token, as with a folder that names it: then
  // "!" is id 0, without "</w>".
  bool pad_is_mark = true;
};

// Immutable and thread-safe.
class BpeTokenizer {
 public:
  // The files of a Hugging Face folder: vocab.json and merges.txt, or tokenizer.json alone; the special
  // tokens from tokenizer_config.json or special_tokens_map.json where they say so, else CLIP's.
  // `pad`: the token to fill up with instead ("" = the folder's); it stays an ordinary one in texts. AdaNAT's
  // text models fill up with "!", id 0.
  // InputError, naming the file: missing, too large, or not what such a file holds.
  static BpeTokenizer open(const std::filesystem::path& folder, const std::string& pad = "");
  // The same of texts; `vocab_name` and `merges_name` name them in errors. vocab: a JSON object of texts and
  // ids, each id once. merges: a line "#version..." may come first, then "LEFT RIGHT" in a line each; what
  // they join to must be in the vocabulary.
  static BpeTokenizer parse(std::string_view vocab, std::string_view merges, const BpeSpecials& specials,
                            const std::string& vocab_name, const std::string& merges_name);

  // Ids of a text, without start, end and padding. InputError: not UTF-8, or over kMaxText bytes.
  std::vector<int64_t> encode(std::string_view text) const;

  struct Padded {
    std::vector<int64_t> ids;  // `length` of them: start, the text, end, padding
    std::string cut;           // what did not fit, as words; empty = all of it did
  };
  // length >= 2. The end token always has a place.
  Padded encode_padded(std::string_view text, int64_t length) const;

  // The words of ids; each special token as it is written.
  std::string text_of(const std::vector<int64_t>& ids) const;

  int64_t start_id() const { return start_; }
  int64_t end_id() const { return end_; }
  int64_t pad_id() const { return pad_; }
  // One more than the largest id.
  int64_t id_limit() const { return id_limit_; }

  // Files and texts beyond these are refused.
  static constexpr uint64_t kMaxFile = uint64_t{32} << 20;
  static constexpr size_t kMaxText = size_t{1} << 20;
  static constexpr size_t kMaxEntries = size_t{1} << 20;

 private:
  using Vocabulary = std::unordered_map<std::string, int64_t>;
  struct Merge {
    int64_t rank, joined;
  };

  BpeTokenizer() = default;
  static BpeTokenizer build(Vocabulary vocabulary,
                            const std::vector<std::pair<std::string, std::string>>& merges,
                            const BpeSpecials& specials, const std::string& vocab_name,
                            const std::string& merges_name);
  void encode_word(std::string_view bytes, std::vector<int64_t>& out) const;
  void encode_words(std::u32string_view text, std::vector<int64_t>& out) const;

  Vocabulary vocabulary_;
  std::unordered_map<uint64_t, Merge> merges_;  // left id << 32 | right id
  std::array<int64_t, 256> inner_{}, last_{};   // ids of the byte symbols, plain and with "</w>"
  std::vector<std::pair<std::u32string, int64_t>> specials_;
  int64_t start_ = 0, end_ = 0, pad_ = 0, id_limit_ = 0;
};

}  // namespace adanat
