#include "core/text/bpe.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/io/atomic_file.h"
#include "core/text/unicode.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kWordEnd = "</w>";
constexpr int64_t kMaxId = int64_t{1} << 24;

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and on in their
// order.
std::array<std::string, 256> byte_alphabet() {
  std::array<std::string, 256> out;
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    append_utf8(printable ? char32_t(byte) : next++, out[byte]);
  }
  return out;
}

// Reads {"text": id, ...} as it is parsed: a vocabulary is large, and a tree of it many times larger.
class VocabularyReader : public nlohmann::json::json_sax_t {
 public:
  explicit VocabularyReader(const std::string& where) : where_(where) {}

  std::unordered_map<std::string, int64_t> found;

  bool start_object(std::size_t) override {
    if (open_) fail("holds an object inside");
    return open_ = true;
  }
  bool key(std::string& text) override {
    key_ = text;
    return true;
  }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override {
    return add(value > uint64_t(kMaxId) ? -1 : int64_t(value));
  }
  bool null() override { return refuse(); }
  bool boolean(bool) override { return refuse(); }
  bool number_float(number_float_t, const std::string&) override { return refuse(); }
  bool string(std::string&) override { return refuse(); }
  bool binary(binary_t&) override { return refuse(); }
  bool start_array(std::size_t) override { return refuse(); }
  bool end_array() override { return true; }
  bool end_object() override { return true; }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(cat("not valid JSON at byte ", position));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw InputError(cat(where_, ": ", what)); }
  bool refuse() const { fail(cat("\"", printable(key_), "\" has no id: must be {\"token\": id, ...}")); }
  bool add(int64_t id) {
    if (!open_) refuse();
    if (id < 0 || id >= kMaxId) fail(cat("\"", printable(key_), "\" must have an id of 0 to ", kMaxId - 1));
    if (found.size() >= BpeTokenizer::kMaxEntries) fail(cat("has over ", found.size(), " tokens"));
    if (!found.emplace(std::move(key_), id).second) fail(cat("a token with id ", id, " stands there twice"));
    return true;
  }

  const std::string& where_;
  std::string key_;
  bool open_ = false;
};

// A JSON file of settings without duplicates and depths to worry about: only texts are read from it.
nlohmann::json read_settings(const fs::path& file) {
  const nlohmann::json j =
      nlohmann::json::parse(read_file(file, BpeTokenizer::kMaxFile), nullptr, /*allow_exceptions=*/false);
  if (!j.is_object()) throw InputError(cat(file.string(), ": must hold one JSON object"));
  return j;
}

// "pad_token": "!" or {"content": "!", ...}.
std::optional<std::string> special_of(const nlohmann::json& settings, const char* key) {
  const auto found = settings.find(key);
  if (found == settings.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string())
    return (*found)["content"].get<std::string>();
  return std::nullopt;
}

BpeSpecials read_specials(const fs::path& folder, const std::string& pad) {
  BpeSpecials out;
  std::vector<nlohmann::json> files;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"})
    if (fs::exists(folder / name)) files.push_back(read_settings(folder / name));
  const auto choose = [&](const char* key, std::string& value) {
    for (const nlohmann::json& settings : files)
      if (const auto given = special_of(settings, key)) {
        value = *given;
        return;
      }
  };
  choose("bos_token", out.start);
  choose("eos_token", out.end);
  choose("unk_token", out.unknown);
  out.pad = out.end;
  choose("pad_token", out.pad);
  if (!pad.empty()) out.pad = pad, out.pad_is_mark = false;
  return out;
}

std::vector<std::pair<std::string, std::string>> parse_merges(std::string_view text,
                                                              const std::string& where) {
  std::vector<std::pair<std::string, std::string>> out;
  for (int64_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (row.empty() || (line == 1 && row.starts_with("#version"))) continue;
    const size_t space = row.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == row.size() ||
        row.find(' ', space + 1) != std::string_view::npos)
      throw InputError(
          cat(where, ": line ", line, " must be two symbols, LEFT RIGHT, not \"", printable(row), "\""));
    if (out.size() >= BpeTokenizer::kMaxEntries)
      throw InputError(cat(where, ": has over ", out.size(), " lines"));
    out.emplace_back(row.substr(0, space), row.substr(space + 1));
  }
  return out;
}

std::vector<std::pair<std::string, std::string>> merges_of_json(const nlohmann::json& list,
                                                                const std::string& where) {
  std::vector<std::pair<std::string, std::string>> out;
  const auto bad = [&] {
    return InputError(cat(where, ": model.merges must be a list of \"LEFT RIGHT\" or [LEFT, RIGHT]"));
  };
  if (!list.is_array() || list.size() > BpeTokenizer::kMaxEntries) throw bad();
  for (const auto& item : list) {
    if (item.is_string()) {
      auto one = parse_merges(item.get<std::string>(), where);
      if (one.size() != 1) throw bad();
      out.push_back(std::move(one[0]));
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      out.emplace_back(item[0].get<std::string>(), item[1].get<std::string>());
    } else {
      throw bad();
    }
  }
  return out;
}

uint64_t pair_key(int64_t left, int64_t right) {
  return uint64_t(left) << 32 | uint64_t(right);
}

// Length of 's 't 're 've 'm 'll 'd at the start of `text`; 0 = none of them.
size_t contraction(std::u32string_view text) {
  if (text.size() < 2 || text[0] != U'\'') return 0;
  for (const std::u32string_view tail : {U"s", U"t", U"re", U"ve", U"m", U"ll", U"d"})
    if (text.substr(1, tail.size()) == tail) return 1 + tail.size();
  return 0;
}

// Length of the word at the start of `text`, which is no space.
size_t word_length(std::u32string_view text) {
  if (const size_t length = contraction(text); length > 0) return length;
  if (is_number(text[0])) return 1;
  const bool letters = is_letter(text[0]);
  size_t length = 1;
  for (; length < text.size(); ++length) {
    const char32_t c = text[length];
    if (letters ? !is_letter(c) : is_space(c) || is_letter(c) || is_number(c)) break;
  }
  return length;
}

}  // namespace

BpeTokenizer BpeTokenizer::open(const fs::path& folder, const std::string& pad) {
  const BpeSpecials specials = read_specials(folder, pad);
  const fs::path vocab = folder / "vocab.json", merges = folder / "merges.txt",
                 whole = folder / "tokenizer.json";
  if (fs::exists(vocab) && fs::exists(merges))
    return parse(read_file(vocab, kMaxFile), read_file(merges, kMaxFile), specials, vocab.string(),
                 merges.string());
  if (!fs::exists(whole))
    throw InputError(cat(folder.string(),
                         ": holds no CLIP tokenizer: neither vocab.json with merges.txt nor "
                         "tokenizer.json; copy them from the checkpoint's folder"));
  const nlohmann::json j = read_settings(whole);
  const auto model = j.find("model");
  if (model == j.end() || !model->is_object() || !model->contains("vocab") || !model->contains("merges") ||
      !(*model)["vocab"].is_object())
    throw InputError(cat(whole.string(), ": is no byte-pair tokenizer: lacks model.vocab or model.merges"));
  Vocabulary vocabulary;
  const auto add = [&](const std::string& token, const nlohmann::json& id) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= kMaxId)
      throw InputError(
          cat(whole.string(), ": \"", printable(token), "\" must have an id of 0 to ", kMaxId - 1));
    vocabulary.emplace(token, id.get<int64_t>());
  };
  for (const auto& [token, id] : (*model)["vocab"].items()) add(token, id);
  // Special tokens may stand beside the vocabulary only.
  if (const auto added = j.find("added_tokens"); added != j.end() && added->is_array())
    for (const auto& token : *added)
      if (const auto text = special_of(nlohmann::json{{"t", token}}, "t"); text && token.contains("id"))
        add(*text, token["id"]);
  return build(std::move(vocabulary), merges_of_json((*model)["merges"], whole.string()), specials,
               whole.string(), whole.string());
}

BpeTokenizer BpeTokenizer::parse(std::string_view vocab, std::string_view merges, const BpeSpecials& specials,
                                 const std::string& vocab_name, const std::string& merges_name) {
  VocabularyReader reader(vocab_name);
  nlohmann::json::sax_parse(vocab, &reader);
  return build(std::move(reader.found), parse_merges(merges, merges_name), specials, vocab_name, merges_name);
}

BpeTokenizer BpeTokenizer::build(Vocabulary vocabulary,
                                 const std::vector<std::pair<std::string, std::string>>& merges,
                                 const BpeSpecials& specials, const std::string& vocab_name,
                                 const std::string& merges_name) {
  BpeTokenizer out;
  out.vocabulary_ = std::move(vocabulary);
  std::set<int64_t> ids;
  for (const auto& [token, id] : out.vocabulary_) {
    if (!ids.insert(id).second)
      throw InputError(cat(vocab_name, ": gives the id ", id, " twice, also to \"", printable(token), "\""));
    out.id_limit_ = std::max(out.id_limit_, id + 1);
  }
  const auto find = [&](const std::string& token) -> std::optional<int64_t> {
    const auto found = out.vocabulary_.find(token);
    return found == out.vocabulary_.end() ? std::nullopt : std::optional(found->second);
  };
  const auto special = [&](const std::string& token) {
    const auto id = find(token);
    if (!id) throw InputError(cat(vocab_name, ": lacks the token \"", printable(token), "\""));
    return *id;
  };
  out.start_ = special(specials.start), out.end_ = special(specials.end), out.pad_ = special(specials.pad);
  const int64_t unknown = special(specials.unknown);
  // Found in texts by their small letters.
  std::set<std::string> marks = {specials.start, specials.end, specials.unknown};
  if (specials.pad_is_mark) marks.insert(specials.pad);
  for (const std::string& mark : marks)
    if (!mark.empty() && is_utf8(mark))
      out.specials_.emplace_back(to_lower(to_code_points(mark)), *find(mark));
  const std::array<std::string, 256> alphabet = byte_alphabet();
  for (size_t byte = 0; byte < 256; ++byte) {
    out.inner_[byte] = find(alphabet[byte]).value_or(unknown);
    out.last_[byte] = find(alphabet[byte] + std::string(kWordEnd)).value_or(unknown);
  }
  out.merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const auto l = find(left), r = find(right), joined = find(left + right);
    if (!l || !r || !joined)
      throw InputError(cat(merges_name, ": pair ", rank + 1, ", \"", printable(left), " ", printable(right),
                           "\", joins or makes a symbol that ", vocab_name, " lacks"));
    out.merges_[pair_key(*l, *r)] = {int64_t(rank), *joined};
  }
  return out;
}

// A list of symbols with links to the neighbours, and a queue of the pairs that may be joined: n log n in the
// length of the word, however it is made.
void BpeTokenizer::encode_word(std::string_view bytes, std::vector<int64_t>& out) const {
  struct Symbol {
    int64_t id, previous, next;  // next of the last: the count
    bool gone = false;
  };
  const auto count = int64_t(bytes.size());
  std::vector<Symbol> symbols;
  symbols.reserve(bytes.size());
  for (int64_t i = 0; i < count; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[size_t(i)]);
    symbols.push_back({i + 1 < count ? inner_[byte] : last_[byte], i - 1, i + 1});
  }
  using Candidate = std::tuple<int64_t, int64_t, int64_t>;  // rank, left symbol, id they join to
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int64_t left) {
    if (left < 0 || symbols[size_t(left)].next >= count) return;
    const Symbol& symbol = symbols[size_t(left)];
    const auto found = merges_.find(pair_key(symbol.id, symbols[size_t(symbol.next)].id));
    if (found != merges_.end()) queue.emplace(found->second.rank, left, found->second.joined);
  };
  for (int64_t i = 0; i < count; ++i) offer(i);
  while (!queue.empty()) {
    const auto [rank, at, joined] = queue.top();
    queue.pop();
    Symbol& left = symbols[size_t(at)];
    if (left.gone || left.next >= count) continue;
    Symbol& right = symbols[size_t(left.next)];
    const auto still = merges_.find(pair_key(left.id, right.id));
    if (still == merges_.end() || still->second.joined != joined) continue;  // a neighbour was joined since
    left.id = joined;
    left.next = right.next;
    right.gone = true;
    if (left.next < count) symbols[size_t(left.next)].previous = at;
    offer(left.previous);
    offer(at);
  }
  for (const Symbol& symbol : symbols)
    if (!symbol.gone) out.push_back(symbol.id);
}

void BpeTokenizer::encode_words(std::u32string_view text, std::vector<int64_t>& out) const {
  std::string bytes;
  while (!text.empty()) {
    if (is_space(text[0])) {
      text.remove_prefix(1);
      continue;
    }
    const size_t length = word_length(text);
    bytes.clear();
    for (const char32_t c : text.substr(0, length)) append_utf8(c, bytes);
    encode_word(bytes, out);
    text.remove_prefix(length);
  }
}

std::vector<int64_t> BpeTokenizer::encode(std::string_view text) const {
  if (text.size() > kMaxText)
    throw InputError(cat("a text of ", text.size(), " bytes is over the limit of ", kMaxText));
  if (!is_utf8(text)) throw InputError(cat("the text \"", printable(text), "\" is not valid UTF-8"));
  const std::u32string normal = to_lower(to_code_points(compose(text)));
  std::vector<int64_t> out;
  // Special tokens cut the text before words are looked for.
  std::u32string_view rest = normal;
  while (!rest.empty()) {
    size_t at = rest.size(), length = 0;
    int64_t id = 0;
    for (const auto& [mark, mark_id] : specials_) {
      const size_t found = rest.find(mark);
      if (found < at || (found == at && found < rest.size() && mark.size() > length))
        at = found, length = mark.size(), id = mark_id;
    }
    encode_words(rest.substr(0, at), out);
    if (length > 0) out.push_back(id);
    rest.remove_prefix(at + length);
  }
  return out;
}

BpeTokenizer::Padded BpeTokenizer::encode_padded(std::string_view text, int64_t length) const {
  std::vector<int64_t> ids = encode(text);
  Padded out;
  const auto room = size_t(length - 2);
  if (ids.size() > room) {
    out.cut = text_of({ids.begin() + std::ptrdiff_t(room), ids.end()});
    ids.resize(room);
  }
  out.ids.reserve(size_t(length));
  out.ids.push_back(start_);
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  out.ids.push_back(end_);
  out.ids.resize(size_t(length), pad_);
  return out;
}

std::string BpeTokenizer::text_of(const std::vector<int64_t>& ids) const {
  std::unordered_map<int64_t, std::string_view> tokens;
  for (const auto& [token, id] : vocabulary_) tokens.emplace(id, token);
  std::unordered_map<char32_t, char> bytes;
  const std::array<std::string, 256> alphabet = byte_alphabet();
  for (size_t byte = 0; byte < 256; ++byte) bytes.emplace(to_code_points(alphabet[byte])[0], char(byte));
  std::string out;
  for (const int64_t id : ids) {
    const auto found = tokens.find(id);
    if (found == tokens.end()) throw RunError(cat("the tokenizer has no id ", id));
    std::string_view token = found->second;
    const bool last = token.ends_with(kWordEnd);
    if (last) token.remove_suffix(kWordEnd.size());
    for (const char32_t c : to_code_points(token)) {
      const auto byte = bytes.find(c);
      if (byte != bytes.end())
        out.push_back(byte->second);
      else
        append_utf8(c, out);
    }
    if (last) out.push_back(' ');
  }
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

}  // namespace adanat
