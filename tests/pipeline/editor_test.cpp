// Whole edits on a small model.
#include "apps/pipeline/editor.h"

#include <ATen/ATen.h>

#include "core/sampling/observers.h"
#include "kernels/philox.h"
#include "pipeline/small_model.h"
#include "policy/policy_schedule.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::TempDir;

Image random_image(int width, int height, uint64_t seed) {
  Image out{width, height, std::vector<uint8_t>(size_t(width * height * 3))};
  for (size_t i = 0; i < out.rgb.size(); ++i)
    out.rgb[i] = uint8_t(kernels::philox4x32_10({uint32_t(i), 0, 0, 0}, seed).x >> 24);
  return out;
}

class Edits : public ::testing::Test {
 protected:
  Edits() : image_(random_image(16, 16, 4)) {
    testing::write_small_model(dir_ / "m");
    pipeline_.emplace(Pipeline::open(dir_ / "m", at::kCPU, at::kFloat));
  }
  Editor editor(const Box& box, double strength = 1) {
    EditRequest request;
    request.box = box, request.strength = strength;
    return Editor(*pipeline_, image_, request);
  }
  BatchRequest request(const Editor& editor, int64_t first, int64_t count) {
    BatchRequest out{std::vector<int64_t>(size_t(count), 1), 5, first};
    out.start = editor.start(5, first, count);
    return out;
  }
  TempDir dir_;
  Image image_;
  std::optional<Pipeline> pipeline_;
};

TEST_F(Edits, KeepTheTokensOfThePicture) {
  const Editor edit = editor({3, 4, 5, 4});
  const at::Tensor planes =
      at::from_blob(image_.rgb.data(), {1, 16, 16, 3}, at::kByte).permute({0, 3, 1, 2}).to(at::kFloat) / 255;
  const at::Tensor own = pipeline_->tokenizer().encode(planes)[0];
  EXPECT_TRUE(at::equal(edit.tokens(), own));
  const at::Tensor start = edit.start(5, 0, 2);
  for (int64_t p = 0; p < 16; ++p)
    for (int64_t b = 0; b < 2; ++b)
      EXPECT_EQ(start[b][p].item<int64_t>(), p == 4 || p == 5 ? 32 : own[p].item<int64_t>()) << p;
  for (const char* schedule : {"cosine", "linear", "halton"}) {
    TokensObserver steps;
    const BatchResult made =
        pipeline_->generate(request(edit, 0, 2), *pipeline_->schedule(schedule, 3, {}), {&steps});
    for (int64_t p = 0; p < 16; ++p) {
      if (p == 4 || p == 5) continue;
      EXPECT_TRUE((made.tokens.select(1, p) == own[p]).all().item<bool>()) << schedule << p;
      EXPECT_TRUE((steps.tokens().select(2, p) == own[p]).all().item<bool>()) << schedule << p;
    }
    EXPECT_TRUE((made.tokens < 32).all().item<bool>());
  }
}

TEST_F(Edits, DoNotDependOnTheBatch) {
  const Editor edit = editor({0, 0, 16, 12}, 0.6);
  const auto schedule = pipeline_->schedule("cosine", 3, {});
  const at::Tensor whole = pipeline_->generate(request(edit, 10, 5), *schedule).tokens;
  EXPECT_TRUE(at::equal(whole.narrow(0, 3, 2), pipeline_->generate(request(edit, 13, 2), *schedule).tokens));
  EXPECT_FALSE(at::equal(whole[0], whole[1]));
}

// All variants of a region start alike, so the generator sees that start once; a share of the tokens is
// another choice for each.
TEST_F(Edits, OfOneRegionShareStepZero) {
  const auto schedule = pipeline_->schedule("cosine", 3, TableOptions{.guidance = 1});
  const auto rows = [&](const Editor& edit) {
    const int64_t before = pipeline_->generator().rows_computed();
    pipeline_->generate(request(edit, 0, 5), *schedule);
    return pipeline_->generator().rows_computed() - before;
  };
  EXPECT_EQ(rows(editor({0, 0, 8, 8})), 1 + 1 + 2 * (5 + 5));
  EXPECT_EQ(rows(editor({0, 0, 16, 8}, 0.5)), 3 * (5 + 5));
}

TEST_F(Edits, OfEverythingAreGeneration) {
  const Editor edit = editor({0, 0, 16, 16});
  const auto schedule = pipeline_->schedule("cosine", 3, {});
  const BatchRequest plain{{1, 1}, 5, 7};
  EXPECT_TRUE(at::equal(pipeline_->generate(request(edit, 7, 2), *schedule).tokens,
                        pipeline_->generate(plain, *schedule).tokens));
}

TEST_F(Edits, OfNothingAreThePictureAsTheTokenizerHasIt) {
  const Editor edit = editor({0, 0, 16, 16}, 0);
  for (const char* schedule : {"cosine", "halton"}) {
    const BatchResult made = pipeline_->generate(request(edit, 0, 2), *pipeline_->schedule(schedule, 3, {}));
    EXPECT_TRUE((made.tokens == edit.tokens()).all().item<bool>());
    EXPECT_TRUE(at::equal(made.images, pipeline_->decode(edit.tokens().repeat({2, 1}))));
    edit.paste_back(made.images, 5, 0);
    EXPECT_TRUE(at::equal(made.images[1].permute({1, 2, 0}).contiguous().view({-1}),
                          at::from_blob(image_.rgb.data(), {16 * 16 * 3}, at::kByte)));
  }
}

// The pixels that come back are those of the tokens that were kept: of the same seed and image.
TEST_F(Edits, PasteBackWhatTheStartKept) {
  const Editor edit = editor({0, 0, 16, 16}, 0.5);
  const at::Tensor picture =
      at::from_blob(image_.rgb.data(), {16, 16, 3}, at::kByte).permute({2, 0, 1}).contiguous();
  const Image noise = random_image(16, 16 * 3, 8);
  for (const int64_t seed : {5, 6}) {
    const at::Tensor start = edit.start(seed, 3, 3);
    at::Tensor images =
        at::from_blob(const_cast<uint8_t*>(noise.rgb.data()), {3, 3, 16, 16}, at::kByte).clone();
    edit.paste_back(images, seed, 3);
    for (int64_t b = 0; b < 3; ++b)
      for (int64_t p = 0; p < 16; ++p) {
        const auto cell = [&](const at::Tensor& of) {
          return of.narrow(1, p / 4 * 4, 4).narrow(2, p % 4 * 4, 4);
        };
        EXPECT_EQ(at::equal(cell(images[b]), cell(picture)), start[b][p].item<int64_t>() != 32)
            << b << " " << p;
      }
  }
  EXPECT_FALSE(at::equal(edit.start(5, 3, 3), edit.start(6, 3, 3)));
}

// A policy decides from the state it finds: the known tokens, not an empty image.
TEST_F(Edits, APolicySeesTheKnownTokens) {
  PolicySettings settings;
  settings.steps = 3;
  settings.network.input_width = 32, settings.network.codes = 32;
  settings.network.grid_height = settings.network.grid_width = 4;
  settings.network.hidden = 8, settings.network.channels = 4, settings.network.mlp = 12;
  PolicyNetwork actor(settings.network, 4);
  testing::fill_procedural(*actor, "actor.");
  write_policy(dir_ / "m/policy-T3.safetensors", settings, module_state(*actor));
  const auto schedule = pipeline_->schedule("adaptive", 3, {});
  const auto actions_of = [&](const Editor& edit) {
    TraceObserver trace(32);
    const BatchResult made = pipeline_->generate(request(edit, 0, 2), *schedule, {&trace});
    for (int64_t p = 8; p < 16; ++p)
      EXPECT_TRUE((made.tokens.select(1, p) == edit.tokens()[p]).all().item<bool>()) << p;
    EXPECT_EQ(trace.revealed()[2][0].item<int64_t>(), 16);
    return trace.actions();
  };
  const at::Tensor first = actions_of(editor({0, 0, 16, 8}));
  image_ = random_image(16, 16, 99);
  const at::Tensor other = actions_of(editor({0, 0, 16, 8}));
  TraceObserver plain(32);
  pipeline_->generate({{1, 1}, 5, 0}, *schedule, {&plain});
  EXPECT_FALSE(at::equal(first[0], other[0]));
  EXPECT_FALSE(at::equal(first[0], plain.actions()[0]));
}

}  // namespace
}  // namespace adanat
