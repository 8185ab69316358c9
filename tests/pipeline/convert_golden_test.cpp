// Files of the published layouts through `convert`: the numbers of the reference come out
// (tests/golden/data).
#include <ATen/ATen.h>
#include <ATen/TensorIndexing.h>

#include "apps/pipeline/convert.h"
#include "apps/pipeline/pipeline.h"
#include "core/nn/module_state.h"
#include "policy/policy_schedule.h"
#include "support/checkpoints.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using at::indexing::None;
using at::indexing::Slice;
using testing::golden;
using testing::procedural_weights;
using testing::PthValue;
using testing::TempDir;
using testing::write_pth;

class ConvertGolden : public ::testing::Test {
 protected:
  // Converts the generator (heads from the config) and a tiny tokenizer of as many codes.
  ConvertOptions write_sources(const GeneratorConfig& config, std::vector<int64_t> multipliers = {1, 1, 2}) {
    write_pth(dir_ / "nnet_ema.pth", PthValue::dict(procedural_weights(generator_shapes(config))));
    write_pth(dir_ / "vqgan.ckpt",
              PthValue::dict(procedural_weights(
                  tokenizer_shapes(testing::tiny_tokenizer_config(config.codes, std::move(multipliers))))));
    ConvertOptions o;
    o.generator = dir_ / "nnet_ema.pth", o.tokenizer = dir_ / "vqgan.ckpt", o.heads = config.heads;
    o.out = dir_ / "out";
    return o;
  }
  const at::NoGradGuard no_grad_;
  TempDir dir_;
};

// Tolerances and margins: tests/golden/data/README.md.
TEST_F(ConvertGolden, ClassGenerator) {
  const auto& g = golden("uvit_class.safetensors");
  const ConvertOptions o = write_sources(testing::uvit_class_config());
  convert(o);
  Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
  const at::Tensor features =
      pipeline.generator().features(g["train.masked_ids"], g["train.context"].view({-1}));
  EXPECT_CLOSE(features, g["features"], 1e-4);
  EXPECT_CLOSE(pipeline.generator().logits(features), g["logits"], 5e-5);
}

// Sampling temperature 0 and no guidance, one step: the reference's choices for every class.
TEST_F(ConvertGolden, GreedyTokensAreTheReferences) {
  const auto& g = golden("uvit_class.safetensors");
  const ConvertOptions o = write_sources(testing::uvit_class_config());
  convert(o);
  Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
  ScheduleTable table;
  table.steps = 1;
  table.mask_ratio = table.remask_temperature = table.sampling_temperature = table.guidance = {0};
  const auto schedule = make_table_schedule("greedy", table);
  const at::Tensor logits = g["allmask.logits"].narrow(0, 0, 10);  // row 10 is the empty class
  const auto best = logits.topk(2);
  ASSERT_GT((std::get<0>(best).select(2, 0) - std::get<0>(best).select(2, 1)).min().item<float>(), 1e-4);
  std::vector<int64_t> classes;
  for (int64_t c = 0; c < 10; ++c) classes.push_back(c);
  EXPECT_TRUE(at::equal(pipeline.generate({classes, 5, 0}, *schedule).tokens, logits.argmax(2)));
}

TEST_F(ConvertGolden, TextGenerator) {
  const auto& g = golden("uvit_text.safetensors");
  GeneratorConfig config = testing::uvit_class_config();
  config.condition = "text", config.text_width = 48;
  const ConvertOptions o = write_sources(config);
  convert(o);
  Metadata metadata;
  const TensorMap weights = read_tensors(o.out / "generator.safetensors", &metadata);
  const auto made = config_from_json<GeneratorConfig>(parse_json(metadata.at("config"), "config"), "config");
  EXPECT_EQ(made.condition, "text");
  EXPECT_EQ(made.text_width, 48);
  EXPECT_EQ(made.text_tokens, 77);
  Generator net(made);
  load_module_state(*net, weights, "generator.safetensors");
  net->eval();
  const at::Tensor features = net->features(g["ids"], g["context"]);
  EXPECT_CLOSE(features, g["features"], 5e-5);
  EXPECT_CLOSE(net->logits(features), g["logits"], 5e-5);
}

// AdaNAT-L whole: 194 million parameters from a .pth. Its heads are known.
TEST_F(ConvertGolden, LargeGenerator) {
  const auto& g = golden("uvit_large.safetensors");
  ConvertOptions o = write_sources(GeneratorConfig{}, {1, 1, 1, 1, 2});
  o.heads = 0;
  o.config = testing::source_dir() / "configs/public/adanat-l-256.json";
  convert(o);
  fs::remove(o.generator);
  const ModelConfig config = read_model_config(o.out);
  Generator net = open_generator(o.out, config, at::kCPU, at::kFloat);
  EXPECT_EQ(parameter_count(*net), 193'655'297);
  const at::Tensor features = net->features(g["ids"], g["context"].view({-1}));
  EXPECT_CLOSE(features.index({Slice(), Slice(0, None, 16), Slice(0, None, 12)}), g["features_slice"], 1e-4);
  const at::Tensor logits = net->logits(features);
  EXPECT_CLOSE(logits.index({Slice(), Slice(0, None, 16), Slice(0, None, 16)}), g["logits_slice"], 2e-4);
  const at::Tensor sure = g["argmax_margin"] > 4e-4;
  EXPECT_TRUE(at::equal(logits.argmax(2).masked_select(sure), g["argmax"].masked_select(sure)));
}

// The public tokenizer's layout, in open-muse's spelling under "state_dict".
TEST_F(ConvertGolden, F16Tokenizer) {
  const auto& g = golden("vqgan_f16.safetensors");
  TokenizerConfig config;
  config.shortcut_from = "hidden";
  TensorMap muse;
  for (const auto& [name, tensor] : procedural_weights(tokenizer_shapes(config))) {
    std::string other = name;
    for (const auto& [from, to] : {std::pair{"mid.block_1", "mid.0"}, {"mid.block_2", "mid.1"}})
      if (const size_t at = other.find(from); at != std::string::npos) other.replace(at, 11, to);
    if (const size_t at = other.find("upsample.conv"); at != std::string::npos)
      other.replace(at, 13, "upsample_conv");
    muse.emplace(other, tensor);
  }
  ConvertOptions o;
  o.tokenizer = dir_ / "vq.bin", o.out = dir_ / "out";
  write_pth(o.tokenizer, PthValue::dict({{"state_dict", PthValue::dict(muse)}}));
  convert(o);
  const ModelConfig model = read_model_config(o.out);
  EXPECT_EQ(model.tokenizer, config);
  Tokenizer tokenizer = open_tokenizer(o.out, model, at::kCPU);
  EXPECT_EQ(parameter_count(*tokenizer), 54515587);
  const at::Tensor image = testing::input_u("vqgan_f16.image", {1, 3, 64, 64});
  EXPECT_CLOSE(tokenizer->latents(image).slice(1, 0, 256, 16), g["z_slice"], 1e-4);
  EXPECT_CLOSE(tokenizer->encode(image), g["ids"], 0);
  const at::Tensor decoded = tokenizer->decode(g["codes"].view({1, 16}));
  EXPECT_CLOSE(decoded.slice(2, 0, 64, 2).slice(3, 0, 64, 2), g["decoded_slice"], 2e-4);
}

// A policy file as training leaves it, 768 wide: its network's outputs and its actions.
TEST_F(ConvertGolden, PublishedPolicy) {
  const auto& g = golden("policy.safetensors");
  GeneratorConfig config;  // as wide as AdaNAT-L, and as shallow as can be
  config.depth = 0, config.codes = 16, config.classes = 2;
  ConvertOptions o = write_sources(config, {1, 1});
  const TensorMap actor =
      testing::procedural_actor(testing::published_actor_shapes(768, 512, 128, 1024, 128 * 8 * 8));
  testing::write_legacy_pth(dir_ / "ckpt_1000.pth",
                            testing::policy_checkpoint(actor, testing::policy_args(1, 8)));
  write_pth(dir_ / "actor.pth", PthValue::dict(actor, "actor."));
  for (const bool heuristic : {true, false}) {
    SCOPED_TRACE(heuristic);
    o.policies = {{heuristic ? dir_ / "ckpt_1000.pth" : dir_ / "actor.pth", 8}};
    if (!heuristic) o.policy_residual = false;
    convert(o);
    const PolicyFile policy = read_policy(o.out / "policy-T8.safetensors");
    EXPECT_EQ(parameter_count(*policy.actor), 11'876'484);
    const PolicySchedule schedule(policy.settings, policy.actor, 8, at::kCPU);
    const at::Tensor features = testing::input_float("policy.feat768", {8, 256, 768}, 1.7);
    const auto state = schedule.begin(1, at::kCPU);
    // Row t of the golden outputs is step t; the residual is the golden one in float64.
    const at::Tensor residual = golden("actions.safetensors")["T8.residual_f64"];
    for (int64_t t = 0; t < 8; ++t) {
      const Action action = schedule.next(state.get(), t, features.narrow(0, t, 1));
      at::Tensor raw = g["actor.c768.out"][t].to(at::kDouble);
      if (heuristic) raw = raw + residual[t];
      const at::Tensor expected = at::cat({raw.narrow(0, 0, 1).sigmoid(), at::softplus(raw.narrow(0, 1, 3))});
      const at::Tensor made = at::cat(
          {action.mask_ratio, action.remask_temperature, action.sampling_temperature, action.guidance});
      EXPECT_CLOSE(made, expected.to(at::kFloat), 5e-5);
    }
    fs::remove_all(o.out);
  }
}

// AdaGen's policy for 16 steps: from raw outputs that a constant network makes to the reference's actions of
// 0.
TEST_F(ConvertGolden, AdagensActionsOfZero) {
  const ConvertOptions base = write_sources(testing::uvit_class_config());
  TensorMap actor;
  for (const auto& [name, shape] : testing::published_actor_shapes(64, 8, 4, 10, 16))
    actor.emplace(name, at::zeros(shape));
  write_pth(dir_ / "maskgit_policy.pth", PthValue::dict(actor));
  for (const int64_t steps : {8, 16}) {
    ConvertOptions o = base;
    o.policies = {{dir_ / "maskgit_policy.pth", steps}};
    o.policy_residual = true;
    convert(o);
    Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
    const auto schedule = pipeline.schedule("adaptive", steps, {});
    const auto state = schedule->begin(1, at::kCPU);
    const at::Tensor expected =
        golden("actions.safetensors")[steps == 16 ? "adagen.T16.action_of_zero"
                                                  : "adagen.T8_unsmoothed.action_of_zero"];
    for (int64_t t = 0; t < steps; ++t) {
      const Action action = schedule->next(state.get(), t, at::zeros({1, 16, 64}));
      EXPECT_CLOSE(at::cat({action.mask_ratio, action.remask_temperature, action.sampling_temperature,
                            action.guidance})
                       .to(at::kFloat),
                   expected[t], 2e-5);
    }
    fs::remove_all(o.out);
  }
}

}  // namespace
}  // namespace adanat
