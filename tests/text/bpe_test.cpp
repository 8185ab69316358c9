// CLIP's tokenizer on a vocabulary that the test makes; side by side with the original in tests/side_by_side.
#include "core/text/bpe.h"

#include <gtest/gtest.h>

#include <chrono>

#include "core/base/error.h"
#include "support/message_of.h"
#include "support/support.h"
#include "text/small_vocabulary.h"

namespace adanat {
namespace {

using testing::MergeList;
using testing::merges_text;
using testing::message_of;
using testing::small_vocabulary;
using testing::TempDir;
using testing::vocabulary_json;
using testing::write_text;
using testing::write_tokenizer;

const MergeList kMerges = {{"c", "a"}, {"ca", "t</w>"}, {"a", "t</w>"}, {"d", "o"}, {"do", "g</w>"}};

BpeTokenizer make(const MergeList& merges, const BpeSpecials& specials = {}) {
  return BpeTokenizer::parse(vocabulary_json(small_vocabulary(merges)).dump(), merges_text(merges), specials,
                             "vocab.json", "merges.txt");
}

// The tokens of a text.
std::vector<std::string> tokens(const std::string& text, const MergeList& merges = kMerges,
                                const BpeSpecials& specials = {}) {
  const std::vector<std::string> vocabulary = small_vocabulary(merges);
  std::vector<std::string> out;
  for (const int64_t id : make(merges, specials).encode(text)) out.push_back(vocabulary[size_t(id)]);
  return out;
}

using Tokens = std::vector<std::string>;

// The words of a text with a space between: which symbols carry a "</w>".
std::string words(const std::string& text) {
  static const BpeTokenizer tokenizer = make(kMerges);
  return tokenizer.text_of(tokenizer.encode(text));
}

TEST(Bpe, MergesSymbolsOfWords) {
  EXPECT_EQ(tokens("a CAT"), (Tokens{"a</w>", "cat</w>"}));
  EXPECT_EQ(tokens("at cats dog"), (Tokens{"at</w>", "ca", "t", "s</w>", "dog</w>"}));
  EXPECT_EQ(tokens(""), Tokens{});
  EXPECT_EQ(tokens(" \t\r\n\u3000"), Tokens{});
  // Bytes that print nothing have letters of their own: 0x00 is U+0100; c3 a9 (e acute) are Latin-1 letters.
  EXPECT_EQ(tokens(std::string("\0", 1)), (Tokens{"\u0100</w>"}));
  EXPECT_EQ(tokens("\u00e9"), (Tokens{"\u00c3", "\u00a9</w>"}));
}

TEST(Bpe, TheEarlierMergeWins) {
  EXPECT_EQ(tokens("abc", {{"b", "c</w>"}, {"a", "b"}}), (Tokens{"a", "bc</w>"}));
  EXPECT_EQ(tokens("abc", {{"a", "b"}, {"b", "c</w>"}}), (Tokens{"ab", "c</w>"}));
  // Equal ranks from the left; what was joined is not joined again by a pair that is gone.
  EXPECT_EQ(tokens("aaaaa", {{"a", "a"}}), (Tokens{"aa", "aa", "a</w>"}));
  EXPECT_EQ(tokens("aaaaaa", {{"a", "a"}, {"aa", "aa"}, {"a", "a</w>"}}), (Tokens{"aaaa", "aa</w>"}));
  // The neighbour of a pair that was to be joined is another by now, and that pair has a rank of its own.
  EXPECT_EQ(tokens("abcd", {{"b", "c"}, {"a", "b"}, {"a", "bc"}}), (Tokens{"abc", "d</w>"}));
  // A pair that stands there twice has its last rank.
  EXPECT_EQ(tokens("abcd", {{"a", "b"}, {"b", "c"}, {"a", "b"}}), (Tokens{"a", "bc", "d</w>"}));
}

TEST(Bpe, CutsTextIntoWords) {
  EXPECT_EQ(words("It's the dog's, they'll WE'VE I'd i'm you're don't"),
            "it 's the dog 's , they 'll we 've i 'd i 'm you 're don 't");
  EXPECT_EQ(words("'salt !'s ''s 'x '"), "'s alt !' s '' s ' x '");
  EXPECT_EQ(words("a1b22 3.14"), "a 1 b 2 2 3 . 1 4");
  EXPECT_EQ(words("\u0663\u00bd\u2167\u3007"),
            "\u0663 \u00bd \u2177 \u3007");  // Nd, No, Nl (lower-cased), Nl
  EXPECT_EQ(words("snake_case a-b (c)!?"), "snake _ case a - b ( c )!?");
}

TEST(Bpe, LettersOfEveryScriptMakeWords) {
  EXPECT_EQ(words("\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!"),
            "\u043f\u0440\u0438\u0432\u0435\u0442 , \u043c\u0438\u0440 !");
  EXPECT_EQ(words("\u4e2d\u6587\u5b57 \u65e5\u672c\u8a9e"), "\u4e2d\u6587\u5b57 \u65e5\u672c\u8a9e");
  EXPECT_EQ(words("\U00020000\U00010400"),
            "\U00020000\U00010428");  // CJK extension B; Deseret has small letters
  EXPECT_EQ(words("\u0627\u0644\u0639\u0631\u0628\u064a\u0629"),
            "\u0627\u0644\u0639\u0631\u0628\u064a\u0629");
  // Vowel signs and viramas are marks, neither letters nor numbers.
  EXPECT_EQ(words("\u0939\u093f\u0928\u094d"), "\u0939 \u093f \u0928 \u094d");
  // A family: letters nowhere, one word.
  EXPECT_EQ(words("\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea"),
            "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea");
}

TEST(Bpe, ComposesAndLowersAsUnicodeSays) {
  EXPECT_EQ(words("e\u0301E\u0301"), "\u00e9\u00e9");            // composed, then lowered: one word
  EXPECT_EQ(words("x\u0301"), "x \u0301");                       // nothing to compose to
  EXPECT_EQ(words("a\u0323\u0302"), "\u1ead");                   // marks in their order
  EXPECT_EQ(words("a\u0302\u0323"), "\u1ead");                   // and out of it
  EXPECT_EQ(words("\u1112\u1161\u11ab"), "\ud55c");              // Hangul by arithmetic
  EXPECT_EQ(words("\u212b\u2126"), "\u00e5\u03c9");              // Angstrom and Ohm signs are letters
  EXPECT_EQ(words("\ufb01\u00b2"), "\ufb01 \u00b2");             // compatibility forms stay
  EXPECT_EQ(words("\u0130I"), "i \u0307 i");                     // a mark between two letters
  EXPECT_EQ(words("\u03a3\u0391\u03a3"), "\u03c3\u03b1\u03c3");  // no final sigma
  EXPECT_EQ(words("\u1e9e\u00df\u01c5"), "\u00df\u00df\u01c6");
}

TEST(Bpe, SpacesAreThoseOfUnicode) {
  EXPECT_EQ(words("a\u00a0b\u2003c\u3000d\u0085e\u2028f\u1680g"), "a b c d e f g");
  // No spaces: information separators, the zero-width space, the word joiner, the byte order mark.
  EXPECT_EQ(words("a\x1c"
                  "b\u200b"
                  "c\u2060"
                  "d\ufeff"
                  "e"),
            "a \x1c b \u200b c \u2060 d \ufeff e");
}

TEST(Bpe, SpecialTokensStandForThemselves) {
  EXPECT_EQ(tokens("cat<|endoftext|>dog <|STARTOFTEXT|>"),
            (Tokens{"cat</w>", "<|endoftext|>", "dog</w>", "<|startoftext|>"}));
  EXPECT_EQ(words("<|endoftext|"), "<| endoftext |");
  // A folder that fills up with "!" makes it a special token; told to fill up with it, it stays a word.
  EXPECT_EQ(tokens("dog!", kMerges, {.pad = "!"}), (Tokens{"dog</w>", "!"}));
  EXPECT_EQ(tokens("dog!", kMerges, {.pad = "!", .pad_is_mark = false}), (Tokens{"dog</w>", "!</w>"}));
  // Of two that begin at one place the longer one.
  EXPECT_EQ(tokens("cat</w>ca!", kMerges, {.pad = "ca", .unknown = "cat</w>"}),
            (Tokens{"cat</w>", "ca", "!</w>"}));
}

TEST(Bpe, PadsAndCuts) {
  const BpeTokenizer tokenizer = make(kMerges);
  const int64_t start = tokenizer.start_id(), end = tokenizer.end_id();
  EXPECT_EQ(start, 517);
  EXPECT_EQ(end, 518);
  EXPECT_EQ(tokenizer.id_limit(), 519);
  const int64_t cat = 513, dog = 516;
  EXPECT_EQ(tokenizer.encode_padded("cat", 5).ids, (std::vector<int64_t>{start, cat, end, end, end}));
  EXPECT_EQ(tokenizer.encode_padded("", 77).ids.size(), 77u);
  const BpeTokenizer::Padded exact = tokenizer.encode_padded("cat dog cat", 5);
  EXPECT_EQ(exact.ids, (std::vector<int64_t>{start, cat, dog, cat, end}));
  EXPECT_EQ(exact.cut, "");
  const BpeTokenizer::Padded over = tokenizer.encode_padded("cat dog cat dog at", 5);
  EXPECT_EQ(over.ids, (std::vector<int64_t>{start, cat, dog, cat, end}));
  EXPECT_EQ(over.cut, "dog at");
  const BpeTokenizer padded = make(kMerges, {.pad = "!", .pad_is_mark = false});
  EXPECT_EQ(padded.encode_padded("dog", 5).ids, (std::vector<int64_t>{start, dog, end, '!', '!'}));
}

TEST(Bpe, LongWordsTakeNoLonger) {
  MergeList merges = {{"a", "a"}};
  for (int i = 1; i < 12; ++i) merges.emplace_back(std::string(1u << i, 'a'), std::string(1u << i, 'a'));
  const BpeTokenizer tokenizer = make(merges);
  const auto began = std::chrono::steady_clock::now();
  // 2^19 - 1 letters merge, the last one ("a</w>") does not: 2048 + ... + 1.
  EXPECT_EQ(tokenizer.encode(std::string(1u << 19, 'a')).size(), (1u << 19) / 4096 - 1 + 12 + 1);
  // Joining pairs by rescanning the word would take hours.
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(20));
}

TEST(Bpe, ReadsFolders) {
  const TempDir dir;
  write_tokenizer(dir.path(), kMerges);
  EXPECT_EQ(BpeTokenizer::open(dir.path()).encode("cat"), (std::vector<int64_t>{513}));
  EXPECT_EQ(BpeTokenizer::open(dir.path()).pad_id(), 518);
  EXPECT_EQ(BpeTokenizer::open(dir.path(), "!").pad_id(), '!');
  EXPECT_EQ(BpeTokenizer::open(dir.path(), "!").encode("!"), (std::vector<int64_t>{256 + '!'}));
  std::string merges = merges_text(kMerges);
  for (size_t at = 0; (at = merges.find('\n', at)) != std::string::npos; at += 2)
    merges.replace(at, 1, "\r\n");
  const std::string vocab = vocabulary_json(small_vocabulary(kMerges)).dump();
  EXPECT_EQ(BpeTokenizer::parse(vocab, merges, {}, "v", "m").encode("cat"), (std::vector<int64_t>{513}));
  write_text(dir / "special_tokens_map.json", R"({"eos_token": "#"})");
  EXPECT_EQ(BpeTokenizer::open(dir.path()).end_id(), '#');
  EXPECT_EQ(BpeTokenizer::open(dir.path()).pad_id(), '#');
  write_text(dir / "special_tokens_map.json",
             R"({"pad_token": {"content": "#"}, "bos_token": "<|endoftext|>"})");
  EXPECT_EQ(BpeTokenizer::open(dir.path()).pad_id(), '#');
  EXPECT_EQ(BpeTokenizer::open(dir.path()).start_id(), 518);
  write_text(dir / "tokenizer_config.json", R"({"pad_token": "!", "bos_token": null})");
  EXPECT_EQ(BpeTokenizer::open(dir.path()).pad_id(), '!');
  // tokenizer.json alone, with merges in both spellings and the special tokens beside the vocabulary.
  std::vector<std::string> vocabulary = small_vocabulary(kMerges);
  vocabulary.resize(vocabulary.size() - 2);
  const nlohmann::json whole = {
      {"model",
       {{"type", "BPE"}, {"vocab", vocabulary_json(vocabulary)}, {"merges", {"c a", {"ca", "t</w>"}}}}},
      {"added_tokens",
       {{{"id", 517}, {"content", "<|startoftext|>"}}, {{"id", 518}, {"content", "<|endoftext|>"}}}}};
  const TempDir other;
  write_text(other / "tokenizer.json", whole.dump());
  EXPECT_EQ(BpeTokenizer::open(other.path()).encode_padded("cat at", 6).ids,
            (std::vector<int64_t>{517, 513, 'a', 256 + 't', 518, 518}));
}

TEST(Bpe, RefusesTextsThatAreNone) {
  const BpeTokenizer tokenizer = make(kMerges);
  EXPECT_THROW((void)tokenizer.encode("a\xff"), InputError);
  EXPECT_THROW((void)tokenizer.encode(std::string(BpeTokenizer::kMaxText + 1, ' ')), InputError);
}

struct BadFiles {
  const char* name;
  std::string vocab, merges, message;
  BpeSpecials specials = {};
};

class BadBpe : public ::testing::TestWithParam<BadFiles> {};

TEST_P(BadBpe, IsRefusedInOneLine) {
  const std::string what = message_of([&] {
    BpeTokenizer::parse(GetParam().vocab, GetParam().merges, GetParam().specials, "v.json", "m.txt");
  });
  EXPECT_NE(what.find(GetParam().message), std::string::npos) << what;
  EXPECT_EQ(what.find('\n'), std::string::npos) << what;
}

const std::string kGood = R"({"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4})";

INSTANTIATE_TEST_SUITE_P(
    Files, BadBpe,
    ::testing::Values(BadFiles{"NoJson", "{\"a\": 0", "", "v.json: not valid JSON at byte"},
                      BadFiles{"AList", "[1, 2]", "", "v.json: \"\" has no id"},
                      BadFiles{"Nested", R"({"a": {"b": 1}})", "", "holds an object inside"},
                      BadFiles{"Deep", std::string(100000, '['), "", "has no id"},
                      BadFiles{"TextId", R"({"a": "0"})", "", "\"a\" has no id"},
                      BadFiles{"Fraction", R"({"a": 0.5})", "", "\"a\" has no id"},
                      BadFiles{"Negative", R"({"a": -1})", "", "\"a\" must have an id of 0 to"},
                      BadFiles{"Huge", R"({"a": 18446744073709551615})", "", "\"a\" must have an id of 0 to"},
                      BadFiles{"TokenTwice", R"({"a": 0, "a": 1})", "", "stands there twice"},
                      BadFiles{"IdTwice", R"({"a": 0, "b": 0})", "", "gives the id 0 twice"},
                      BadFiles{"NoSpecials", R"({"a": 0})", "", "lacks the token \"<|startoftext|>\""},
                      BadFiles{"NoPad", kGood, "", "lacks the token \"!\"", {.pad = "!"}},
                      BadFiles{"NotUtf8", "{\"\xff\": 0}", "", "not valid JSON"},
                      BadFiles{"Empty", "", "", "not valid JSON"},
                      BadFiles{"OneSymbol", kGood, "a b\nab\n",
                               "m.txt: line 2 must be two symbols, LEFT RIGHT, not \"ab\""},
                      BadFiles{"ThreeSymbols", kGood, "#version: 1\na b a",
                               "m.txt: line 2 must be two symbols"},
                      BadFiles{"BreakInside", kGood, "a\tb\r\r\n", "not \"a?b?\""},
                      BadFiles{"VersionBelow", kGood, "a b\n#version x", "m.txt: pair 2"},
                      BadFiles{"UnknownSymbol", kGood, "a c",
                               "m.txt: pair 1, \"a c\", joins or makes a symbol that v.json lacks"},
                      BadFiles{"UnknownProduct", kGood, "b a", "m.txt: pair 1"}),
    [](const auto& info) { return info.param.name; });

TEST(Bpe, RefusesFoldersThatHoldNone) {
  const TempDir dir;
  const auto message = [&] { return message_of([&] { BpeTokenizer::open(dir.path()); }); };
  EXPECT_NE(message().find("holds no CLIP tokenizer"), std::string::npos) << message();
  write_text(dir / "tokenizer.json", R"({"model": {"vocab": {"a": -5}, "merges": []}})");
  EXPECT_NE(message().find("\"a\" must have an id"), std::string::npos) << message();
  write_text(dir / "tokenizer.json", R"({"model": {"vocab": {}, "merges": ["a b\nc d"]}})");
  EXPECT_NE(message().find("model.merges must be a list"), std::string::npos) << message();
  write_text(dir / "tokenizer.json", "[]");
  EXPECT_NE(message().find("must hold one JSON object"), std::string::npos) << message();
}

}  // namespace
}  // namespace adanat
