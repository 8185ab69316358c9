// The transformer against the recorded reference (tests/golden/data/README.md: uvit_class, uvit_text,
// uvit_large).
#include "core/generator/transformer.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "core/generator/generator_recipe.h"
#include "core/generator/masking.h"
#include "core/generator/shapes.h"
#include "core/nn/module_state.h"
#include "support/small_generator.h"

namespace adanat {
namespace {

using testing::fill_procedural;
using testing::golden;

GeneratorConfig small_config(const std::string& condition) {
  GeneratorConfig config = testing::uvit_class_config();
  config.condition = condition, config.text_width = 48, config.text_tokens = 77, config.dropout = 0.1;
  return config;
}

Generator small_generator(const std::string& condition) {
  Generator net(small_config(condition));
  fill_procedural(*net);
  net->eval();
  return net;
}

TEST(Transformer, ClassConditionalMatchesReference) {
  const auto& g = golden("uvit_class.safetensors");
  Generator net = small_generator("class");
  const at::NoGradGuard no_grad;
  const at::Tensor features = net->features(g["train.masked_ids"], g["train.context"].view({-1}));
  EXPECT_CLOSE(features, g["features"], 1e-4);
  EXPECT_CLOSE(net->logits(features), g["logits"], 5e-5);
  const at::Tensor all = net->features(at::full({11, 16}, 32, at::kLong), at::arange(11));
  EXPECT_CLOSE(all, g["allmask.features"], 1e-4);
  EXPECT_CLOSE(net->logits(all), g["allmask.logits"], 5e-5);
  EXPECT_EQ(net->rows_computed(), 4 + 11);
}

TEST(Transformer, TextConditionalMatchesReference) {
  const auto& g = golden("uvit_text.safetensors");
  Generator net = small_generator("text");
  const at::NoGradGuard no_grad;
  const at::Tensor features = net->features(g["ids"], g["context"]);
  EXPECT_CLOSE(features, g["features"], 5e-5);
  EXPECT_CLOSE(net->logits(features), g["logits"], 5e-5);
}

TEST(Transformer, TrainingMaskIsTheReferences) {
  const auto& g = golden("uvit_class.safetensors");
  const at::Tensor hidden = hide_positions(g["train.ratio"], g["train.rand"]);
  EXPECT_TRUE(at::equal(hidden, g["train.labels"] != -1));
  EXPECT_TRUE(at::equal(g["train.x0"].masked_fill(hidden, 32), g["train.masked_ids"]));
}

TEST(Transformer, LossAndGradientsMatchReference) {
  const auto& g = golden("uvit_class.safetensors");
  Generator net = small_generator("class");
  const at::Tensor hidden = g["train.labels"] != -1, classes = g["train.context"].view({-1});
  {
    const at::NoGradGuard no_grad;
    EXPECT_CLOSE(masked_token_loss(*net, g["train.x0"], hidden, classes, 0), g["loss_no_smoothing"], 2e-6);
  }
  const at::Tensor loss = masked_token_loss(*net, g["train.x0"], hidden, classes, 0.1);
  EXPECT_CLOSE(loss, g["loss"], 2e-6);
  loss.backward();
  int compared = 0;
  for (const auto& item : net->named_parameters()) {
    const auto it = g.tensors.find("grad." + item.key());
    if (it == g.tensors.end()) continue;
    EXPECT_TRUE(testing::close(item.value().grad(), it->second, 1e-5)) << item.key();
    ++compared;
  }
  EXPECT_EQ(compared, 21);
  const auto norms = nlohmann::json::parse(g.metadata.at("grad_norms"));
  for (const auto& item : net->named_parameters())
    EXPECT_NEAR(item.value().grad().norm().item<double>(), norms.at(item.key()).get<double>(), 1e-4)
        << item.key();
  // The tied head is detached: codes that are not in the input get no gradient at all.
  const at::Tensor word_grad = net->named_parameters()["token_emb.word_embeddings.weight"].grad();
  for (int64_t id = 0; id < 33; ++id) {
    if (!(g["train.masked_ids"] == id).any().item<bool>()) {
      EXPECT_EQ(word_grad[id].abs().max().item<float>(), 0) << id;
    }
  }
}

TEST(Transformer, LargeMatchesReference) {
  const auto& g = golden("uvit_large.safetensors");
  Generator net(GeneratorConfig{});
  EXPECT_EQ(parameter_count(*net), 193'655'297);
  fill_procedural(*net);
  net->eval();
  const at::NoGradGuard no_grad;
  using at::indexing::Slice;
  const at::Tensor features = net->features(g["ids"], g["context"].view({-1}));
  EXPECT_CLOSE(features.index({Slice(), Slice(0, at::indexing::None, 16), Slice(0, at::indexing::None, 12)}),
               g["features_slice"], 1e-4);
  const at::Tensor logits = net->logits(features);
  EXPECT_CLOSE(logits.index({Slice(), Slice(0, at::indexing::None, 16), Slice(0, at::indexing::None, 16)}),
               g["logits_slice"], 2e-4);
  EXPECT_CLOSE(logits.mean(2), g["logits_position_mean"], 2e-4);
  EXPECT_CLOSE(logits.amax(2), g["logits_position_max"], 2e-4);
  const at::Tensor sure = g["argmax_margin"] > 4e-4;
  EXPECT_TRUE(at::equal(logits.argmax(2).masked_select(sure), g["argmax"].masked_select(sure)));
}

TEST(Transformer, HeadOnSomeRowsEqualsHeadOnAll) {
  Generator net = small_generator("class");
  const at::NoGradGuard no_grad;
  const at::Tensor features = testing::input_float("head.features", {3, 16, 64}, 1.0);
  const at::Tensor rows = at::tensor({1, 5, 40}, at::kLong);
  EXPECT_CLOSE(net->logits(features.view({-1, 64}).index_select(0, rows)),
               net->logits(features).view({-1, 32}).index_select(0, rows), 1e-5);
}

TEST(Transformer, RefusesImpossibleConfigs) {
  for (auto change :
       {+[](GeneratorConfig& c) { c.heads = 5; }, +[](GeneratorConfig& c) { c.depth = 3; },
        +[](GeneratorConfig& c) { c.condition = "image"; }, +[](GeneratorConfig& c) { c.codes = 0; }}) {
    GeneratorConfig config = small_config("class");
    change(config);
    EXPECT_THROW(Generator{config}, InputError);
  }
}

TEST(Masking, LawsHaveTheirMeans) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  generator.set_current_seed(3);
  const int64_t n = 200'000;
  // Standard errors at n = 200,000 are below 0.001.
  EXPECT_NEAR(draw_mask_ratios("beta", 12, 3, n, generator).mean().item<double>(), 0.8, 0.003);
  EXPECT_NEAR(draw_mask_ratios("cosine", 12, 3, n, generator).mean().item<double>(), 2 / M_PI, 0.003);
  EXPECT_NEAR(draw_mask_ratios("mixed", 12, 3, n, generator).mean().item<double>(), (0.8 + 2 / M_PI) / 2,
              0.003);
}

TEST(Generator, ItsShapesFollowFromItsConfig) {
  for (const char* condition : {"class", "text"}) {
    const GeneratorConfig config{.width = 24,
                                 .depth = 4,
                                 .heads = 3,
                                 .codes = 10,
                                 .grid_height = 3,
                                 .grid_width = 5,
                                 .condition = condition,
                                 .classes = 7,
                                 .text_width = 11,
                                 .text_tokens = 2};
    ShapeMap registered;
    for (const auto& [name, tensor] : module_state(*Generator(config)))
      registered[name] = tensor.sizes().vec();
    EXPECT_EQ(generator_shapes(config), registered) << condition;
  }
}

}  // namespace
}  // namespace adanat
