// Captions encoded once: what the file gives back, and which files are refused.
#include "core/text/text_features.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "support/message_of.h"
#include "support/support.h"
#include "text/small_encoder.h"

namespace adanat {
namespace {

using testing::message_of;
using testing::TempDir;
using testing::write_small_encoder;

TEST(TextFeatures, GivesBackWhatTheEncoderMakes) {
  const TempDir dir;
  write_small_encoder(dir / "clip");
  const ClipTextEncoder encoder = ClipTextEncoder::open(dir / "clip", at::kCPU);
  std::vector<std::string> texts = {"a dog", "caf\u00e9", "a cat", "a dog"};
  for (int i = 0; i < 40; ++i) texts.push_back("text " + std::to_string(i));  // more than one batch
  TextFeatures::write(dir / "f.safetensors", encoder, "hash", texts);
  const TextFeatures file = TextFeatures::open(dir / "f.safetensors");
  EXPECT_EQ(file.encoder_hash(), "hash");
  EXPECT_EQ(file.size(), 44);  // the empty text, 43 distinct ones
  EXPECT_EQ(file.tokens(), 77);
  EXPECT_EQ(file.width(), 48);
  EXPECT_EQ(file.pooled_width(), 40);
  EXPECT_TRUE(file.contains("a cat"));
  EXPECT_FALSE(file.contains("a cow"));
  const at::Tensor rows = file.rows_of(texts);
  EXPECT_EQ(rows[0].item<int64_t>(), rows[3].item<int64_t>());
  const ClipTextOutput expected = encoder.encode(texts);
  // States lie within +-4: half precision keeps them to 2e-3.
  EXPECT_CLOSE(file.states(rows).to(at::kFloat), expected.states, 2e-3);
  EXPECT_CLOSE(file.pooled(rows).to(at::kFloat), expected.pooled, 2e-3);
  // Row 0 is the empty text: what condition dropout and guidance take.
  EXPECT_EQ(file.rows_of({""}).item<int64_t>(), 0);
  EXPECT_CLOSE(file.states(at::zeros({1}, at::kLong)).to(at::kFloat), encoder.encode({""}).states, 2e-3);
  EXPECT_THROW((void)file.rows_of({"a cow"}), InputError);
  // A file of the general kind, for other readers.
  EXPECT_EQ(SafetensorsFile::open(dir / "f.safetensors").at("features").shape,
            (std::vector<int64_t>{44, 77 * 48 + 40}));
}

TEST(TextFeatures, RefusesOtherAndDamagedFiles) {
  const TempDir dir;
  const std::vector<uint16_t> features(3 * 7, 0);
  const auto refusal = [&](const Metadata& metadata, std::vector<int64_t> ends, const std::string& texts,
                           int64_t width) -> std::string {
    write_safetensors(dir / "f",
                      {{"features", DType::kF16, {3, width}, features.data(), size_t(6 * width)},
                       {"text_ends", DType::kI64, {int64_t(ends.size())}, ends.data(), 8 * ends.size()},
                       {"texts", DType::kU8, {int64_t(texts.size())}, texts.data(), texts.size()}},
                      metadata);
    return message_of([&] { TextFeatures::open(dir / "f"); });
  };
  const Metadata good = {
      {"format", "adanat-text-1"}, {"encoder", "h"}, {"tokens", "2"}, {"width", "3"}, {"pooled", "1"}};
  const auto with = [&](const char* key, const char* value) {
    Metadata changed = good;
    changed[key] = value;
    return changed;
  };
  EXPECT_EQ(refusal(good, {0, 1, 3}, "abc", 7), "no error");
  const auto says = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos ? ::testing::AssertionSuccess()
                                                : ::testing::AssertionFailure() << text;
  };
  EXPECT_TRUE(says(refusal({}, {0, 1, 3}, "abc", 7), "is no file of encoded texts"));
  EXPECT_TRUE(says(refusal(with("format", "adanat-text-2"), {0, 1, 3}, "abc", 7),
                   "has the format \"adanat-text-2\""));
  EXPECT_TRUE(says(refusal(with("width", "99999999999"), {0, 1, 3}, "abc", 7), "metadata \"width\" must be"));
  EXPECT_TRUE(says(refusal(with("tokens", "-2"), {0, 1, 3}, "abc", 7), "metadata \"tokens\" must be"));
  EXPECT_TRUE(says(refusal(good, {0, 1, 3}, "abc", 6), "must be [3, 7] for its 3 texts"));
  EXPECT_TRUE(says(refusal(good, {0, 4, 3}, "abc", 7), "\"text_ends\" holds 4 at position 1"));
  EXPECT_TRUE(says(refusal(good, {1, 2, 3}, "abc", 7), "\"text_ends\" holds 1 at position 0"));
  EXPECT_TRUE(says(refusal(good, {0, 2, 1}, "abc", 7), "\"text_ends\" holds 1 at position 2"));
  EXPECT_TRUE(says(refusal(good, {0, 1, 2}, "aa", 7), "text 2 stands there twice"));
  EXPECT_TRUE(says(refusal(good, {0, 1, 2}, "abc", 7), "goes on behind the last text"));
}

}  // namespace
}  // namespace adanat
