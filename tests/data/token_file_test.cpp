#include "core/data/token_file.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <functional>

#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "data/files.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::expect_input_error;
using testing::TempDir;

TokenFile example() {
  TokenFile file;
  file.tokens = at::arange(3 * 6, at::kInt).view({3, 6});
  file.classes = at::arange(3, at::kLong);
  file.flipped = at::zeros({3}, at::kByte);
  file.flipped[1] = 1;
  file.grid_height = 2;
  file.grid_width = 3;
  file.vocab = 18;
  file.tokenizer_hash = "abc123";
  file.class_names = {"cat", "d\"og", "\xc3\xa9mu"};
  file.dataset = "folder: 3 images";
  return file;
}

// The parts of a token file, to be changed one at a time.
struct Raw {
  std::vector<int32_t> tokens = std::vector<int32_t>(12, 1);
  std::vector<int64_t> classes = {0, 1};
  std::vector<uint8_t> flipped = {0, 1};
  std::map<std::string, std::string> metadata = {
      {"format", "adanat-tokens-1"},    {"tokenizer_hash", "h"}, {"grid", "2x3"}, {"vocab", "4"},
      {"class_names", "[\"a\",\"b\"]"}, {"dataset", "d"}};
  void write(const std::filesystem::path& path) const {
    const auto rows = static_cast<int64_t>(tokens.size() / 6);
    write_safetensors(
        path,
        {{"tokens", DType::kI32, {rows, 6}, tokens.data(), tokens.size() * 4},
         {"classes", DType::kI64, {static_cast<int64_t>(classes.size())}, classes.data(), classes.size() * 8},
         {"flipped", DType::kU8, {static_cast<int64_t>(flipped.size())}, flipped.data(), flipped.size()}},
        metadata);
  }
};

TEST(TokenFileTest, RoundTrip) {
  const TempDir dir;
  const auto path = dir / "t.safetensors";
  const TokenFile file = example();
  write_token_file(path, file);
  EXPECT_TRUE(is_token_file(path));
  const TokenFile back = read_token_file(path);
  EXPECT_TRUE(at::equal(back.tokens, file.tokens));
  EXPECT_TRUE(at::equal(back.classes, file.classes));
  EXPECT_TRUE(at::equal(back.flipped, file.flipped));
  EXPECT_EQ(back.tokens.scalar_type(), at::kInt);
  EXPECT_EQ(back.grid_height, 2);
  EXPECT_EQ(back.grid_width, 3);
  EXPECT_EQ(back.vocab, 18);
  EXPECT_EQ(back.tokenizer_hash, file.tokenizer_hash);
  EXPECT_EQ(back.class_names, file.class_names);
  EXPECT_EQ(back.dataset, file.dataset);
  write_token_file(dir / "again", back);
  EXPECT_EQ(read_file(path), read_file(dir / "again"));
}

TEST(TokenFileTest, KeepsCaptions) {
  const TempDir dir;
  TokenFile file = example();
  file.captions = {"a cat", "", "caf\xc3\xa9 \n two lines"};
  write_token_file(dir / "t", file);
  EXPECT_EQ(read_token_file(dir / "t").captions, file.captions);
  EXPECT_TRUE(at::equal(read_token_file(dir / "t").tokens, file.tokens));
  EXPECT_EQ(read_saved_tokens(dir / "t").tokens.size(0), 3);
  file.captions.pop_back();
  EXPECT_THROW(write_token_file(dir / "u", file), RunError);
  file.captions.push_back("\xff");
  EXPECT_THROW(write_token_file(dir / "u", file), RunError);
  EXPECT_FALSE(std::filesystem::exists(dir / "u"));
}

TEST(TokenFileTest, RefusesDamagedCaptions) {
  const TempDir dir;
  const Raw raw;
  const auto refuse = [&](const std::string& texts, const std::vector<int64_t>& ends, const char* message) {
    std::vector<TensorBytes> tensors = {
        {"tokens", DType::kI32, {2, 6}, raw.tokens.data(), 48},
        {"classes", DType::kI64, {2}, raw.classes.data(), 16},
        {"flipped", DType::kU8, {2}, raw.flipped.data(), 2},
        {"captions", DType::kU8, {int64_t(texts.size())}, texts.data(), texts.size()}};
    if (!ends.empty())
      tensors.push_back({"caption_ends", DType::kI64, {int64_t(ends.size())}, ends.data(), ends.size() * 8});
    write_safetensors(dir / "t", tensors, raw.metadata);
    expect_input_error([&] { read_token_file(dir / "t"); }, {message}, message);
  };
  refuse("ab", {}, "belong together");
  refuse("ab", {1}, "has 1 entries for 2 images");
  refuse("ab", {1, 3}, "holds 3 at position 1, outside [1, 2]");
  refuse("ab", {2, 1}, "holds 1 at position 1, outside [2, 2]");
  refuse("ab", {-1, 2}, "holds -1 at position 0");
  refuse("abc", {1, 2}, "1 bytes behind the last caption");
  refuse("a\xc3", {1, 2}, "caption 1 is not valid UTF-8");
}

TEST(TokenFileTest, StridedTensorsAreWrittenInOrder) {
  const TempDir dir;
  TokenFile file = example();
  file.tokens = at::arange(3 * 6, at::kInt).view({6, 3}).t();
  write_token_file(dir / "t", file);
  EXPECT_TRUE(at::equal(read_token_file(dir / "t").tokens, file.tokens));
}

TEST(TokenFileTest, WriterRefusesContradictions) {
  const TempDir dir;
  const auto refuse = [&](const std::function<void(TokenFile&)>& change) {
    TokenFile file = example();
    change(file);
    EXPECT_THROW(write_token_file(dir / "t", file), RunError);
  };
  refuse([](TokenFile& f) { f.vocab = 17; });
  refuse([](TokenFile& f) { f.grid_width = 2; });
  refuse([](TokenFile& f) { f.class_names.pop_back(); });
  refuse([](TokenFile& f) { f.classes = at::zeros({2}, at::kLong); });
  refuse([](TokenFile& f) { f.tokens = f.tokens.to(at::kLong); });
  refuse([](TokenFile& f) { f.flipped[0] = 2; });
  refuse([](TokenFile& f) { f.class_names[0] = "\xff"; });
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(TokenFileTest, ReaderNamesWhatIsWrong) {
  const TempDir dir;
  const auto path = dir / "t.safetensors";
  Raw().write(path);
  EXPECT_EQ(read_token_file(path).vocab, 4);
  const auto refuse = [&](const std::function<void(Raw&)>& change, const char* message) {
    Raw raw;
    change(raw);
    raw.write(path);
    expect_input_error([&] { read_token_file(path); }, {path.c_str(), message}, message);
  };
  refuse([](Raw& r) { r.tokens[7] = 4; }, "\"tokens\" holds 4 at position 7, outside [0, 4)");
  refuse([](Raw& r) { r.tokens[11] = -1; }, "holds -1");
  refuse([](Raw& r) { r.classes[1] = 2; }, "\"classes\" holds 2");
  refuse([](Raw& r) { r.flipped[0] = 3; }, "\"flipped\" holds 3");
  refuse([](Raw& r) { r.classes = {0}; }, "1 entries for 2 images");
  refuse([](Raw& r) { r.flipped.push_back(0); }, "3 entries for 2 images");
  for (const char* key : {"format", "grid", "vocab", "class_names", "tokenizer_hash", "dataset"})
    refuse([&](Raw& r) { r.metadata.erase(key); }, key);
  refuse([](Raw& r) { r.metadata["format"] = "adanat-tokens-9"; }, "adanat-tokens-9");
  for (const char* grid : {"", "6", "x", "2x", "2x3x1", "2x4", "-2x-3", "3000000000x3000000000"})
    refuse([&](Raw& r) { r.metadata["grid"] = grid; }, "grid");
  for (const char* vocab : {"", "x", "0", "99999999999", "99999999999999999999"})
    refuse([&](Raw& r) { r.metadata["vocab"] = vocab; }, "vocab");
  for (const char* names : {"", "{}", "[1]", "[\"a\"", "[[\"a\"]]"})
    refuse([&](Raw& r) { r.metadata["class_names"] = names; }, "class_names");
}

TEST(TokenFileTest, OtherFilesAreNotTokenFiles) {
  const TempDir dir;
  EXPECT_FALSE(is_token_file(dir / "none"));
  EXPECT_FALSE(is_token_file(dir.path()));
  testing::put_file(dir / "text", "hello");
  EXPECT_FALSE(is_token_file(dir / "text"));
  write_safetensors(dir / "weights", {}, {{"format", "pt"}});
  EXPECT_FALSE(is_token_file(dir / "weights"));
  expect_input_error([&] { read_token_file(dir / "weights"); }, {"weights", "format"});
}

TEST(SavedTokensTest, FromEitherKind) {
  const TempDir dir;
  write_token_file(dir / "t", example());
  const SavedTokens from_file = read_saved_tokens(dir / "t");
  EXPECT_EQ(from_file.tokens.scalar_type(), at::kLong);
  EXPECT_TRUE(at::equal(from_file.tokens, example().tokens.to(at::kLong)));
  EXPECT_EQ(from_file.vocab, 18);
  EXPECT_EQ(from_file.grid_width, 3);

  std::vector<int64_t> tokens = {0, 1, 2, 3, 4, 5, 6, 7}, classes = {3, 4};
  const auto save = [&] {
    write_safetensors(dir / "s",
                      {{"tokens", DType::kI64, {2, 4}, tokens.data(), 64},
                       {"classes", DType::kI64, {2}, classes.data(), 16}},
                      {});
  };
  save();
  const SavedTokens saved = read_saved_tokens(dir / "s");
  EXPECT_TRUE(at::equal(saved.tokens, at::arange(8, at::kLong).view({2, 4})));
  EXPECT_EQ(saved.classes.const_data_ptr<int64_t>()[1], 4);
  EXPECT_FALSE(saved.vocab);
  tokens[3] = -1;
  save();
  expect_input_error([&] { read_saved_tokens(dir / "s"); }, {"holds -1"});
  write_safetensors(
      dir / "s",
      {{"tokens", DType::kI64, {8}, tokens.data(), 64}, {"classes", DType::kI64, {2}, classes.data(), 16}},
      {});
  expect_input_error([&] { read_saved_tokens(dir / "s"); }, {"1 dimensions"});
}

}  // namespace
}  // namespace adanat
