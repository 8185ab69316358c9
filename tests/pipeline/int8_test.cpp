// How much int8 and bfloat16 change what is drawn: the share of equal tokens under the same noise.
#include <ATen/ATen.h>

#include "apps/pipeline/pipeline.h"
#include "core/generator/inference.h"
#include "core/nn/linear.h"
#include "support/support.h"

namespace adanat {
namespace {

struct Agreement {
  double drawn;  // share of equal ids among those drawn in one step from the same tokens
  double whole;  // share of equal tokens at the end of whole generations
};

struct Recorder : SamplerObserver {
  std::vector<at::Tensor> before;
  void on_step(const StepView& view) override { before.push_back(view.tokens_before.clone()); }
};

// One step that draws every hidden position of `tokens`.
at::Tensor draw(GeneratorImpl& net, SamplerStart start, const at::Tensor& tokens, double guidance) {
  start.tokens = tokens, start.same_tokens = false;
  return sample(net, start, *make_table_schedule("once", cosine_table(1, {.guidance = guidance})));
}

Agreement agreement(GeneratorImpl& exact, GeneratorImpl& other, int64_t count, double guidance) {
  const at::Tensor classes = at::arange(count) % exact.config().classes;
  const SamplerStart start = plain_start(exact, classes, 1, at::arange(count));
  const auto schedule = make_table_schedule("cosine", cosine_table(8, {.guidance = guidance}));
  Recorder recorder;
  const at::Tensor wanted = sample(exact, start, *schedule, {&recorder});
  int64_t drawn = 0, equal = 0;
  for (const int64_t step : {0, 3, 6}) {
    const at::Tensor& tokens = recorder.before[size_t(step)];
    const at::Tensor hidden = tokens == exact.mask_id();
    const at::Tensor same = draw(exact, start, tokens, guidance) == draw(other, start, tokens, guidance);
    drawn += hidden.sum().item<int64_t>();
    equal += (hidden & same).sum().item<int64_t>();
  }
  const double whole = (sample(other, start, *schedule) == wanted).to(at::kDouble).mean().item<double>();
  return {double(equal) / double(drawn), whole};
}

// Measured shares stand in docs/performance.md (0.982 to 0.995); the bounds leave a margin for other
// machines' float32 and bfloat16.
void expect_agreement(const std::string& what, const std::function<Generator(at::ScalarType)>& open,
                      int64_t count, double guidance, double least_int8, double least_bfloat16) {
  Generator exact = open(at::kFloat), half = open(at::kBFloat16);
  const Agreement b = agreement(*exact, *half, count, guidance);
  std::printf("%s bfloat16: %.4f of the draws, %.4f of the tokens\n", what.c_str(), b.drawn, b.whole);
  EXPECT_GE(b.drawn, least_bfloat16) << what;
  if (!int8_supported()) return;
  Generator eight = open(at::kChar);
  const Agreement a = agreement(*exact, *eight, count, guidance);
  std::printf("%s int8: %.4f of the draws, %.4f of the tokens\n", what.c_str(), a.drawn, a.whole);
  EXPECT_GE(a.drawn, least_int8) << what;
}

TEST(Agreement, OfTheBundledModels) {
  for (const char* name : {"mnist", "signs"}) {
    const auto folder = testing::source_dir() / "models" / name;
    const ModelConfig config = read_model_config(folder);
    expect_agreement(
        name, [&](at::ScalarType dtype) { return open_generator(folder, config, at::kCPU, dtype); }, 8,
        config.sampling.table.guidance, 0.97, 0.98);
  }
}

// Weights that no training has tamed.
TEST(Agreement, OfProceduralWeights) {
  expect_agreement(
      "procedural",
      [](at::ScalarType dtype) {
        Generator net(GeneratorConfig{.width = 64,
                                      .depth = 4,
                                      .heads = 4,
                                      .codes = 32,
                                      .grid_height = 8,
                                      .grid_width = 8,
                                      .classes = 10});
        testing::fill_procedural(*net);
        prepare_generator(*net, at::kCPU, dtype);
        return net;
      },
      16, 1, 0.97, 0.98);
}

// int8 sums are exact and every row has its own scale: an image is the same in any batch, as in float32.
TEST(Agreement, Int8ImagesDoNotDependOnTheBatch) {
  if (!int8_supported()) GTEST_SKIP() << "no int8 products on this CPU";
  Pipeline pipeline = Pipeline::open(testing::source_dir() / "models/mnist", at::kCPU, at::kChar);
  const auto schedule = pipeline.schedule("cosine", 4, pipeline.config().sampling.table);
  const at::Tensor five = pipeline.generate_tokens({{0, 1, 2, 3, 4}, 7, 20}, *schedule);
  EXPECT_TRUE(at::equal(five[3], pipeline.generate_tokens({{3}, 7, 23}, *schedule)[0]));
}

// Head and embeddings stay float; every Linear of the blocks does not.
TEST(Agreement, Int8IsWhereItIsSaidToBe) {
  if (!int8_supported()) GTEST_SKIP() << "no int8 products on this CPU";
  Generator net(GeneratorConfig{
      .width = 32, .depth = 4, .heads = 2, .codes = 16, .grid_height = 4, .grid_width = 4, .classes = 3});
  prepare_generator(*net, at::kCPU, at::kChar);
  int64_t count = 0;
  for (const auto& item : net->named_parameters()) {
    const std::string& name = item.key();
    const bool linear = name.ends_with(".weight") && name.find("block") != std::string::npos &&
                        name.find(".norm") == std::string::npos;
    EXPECT_EQ(item.value().scalar_type(), linear ? at::kChar : at::kFloat) << name;
    count += linear;
  }
  EXPECT_EQ(count, 5 * 4 + 2);
}

}  // namespace
}  // namespace adanat
