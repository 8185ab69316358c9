// Converting public policies: which tensors act, what their settings are and where they come from.
#include "pipeline/convert_fixture.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::procedural_actor;
using testing::PthValue;
using testing::published_actor_shapes;
using testing::small_actor;
using testing::TempDir;
using testing::write_pth;

class ConvertPolicy : public testing::ConvertFixture {};

TEST_F(ConvertPolicy, TakesAPolicysSettingsFromItsNamespace) {
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 0}};
  convert(o);
  const PolicyFile policy = read_policy(o.out / "policy-T8.safetensors");
  EXPECT_EQ(policy.settings.residual, "heuristic");
  EXPECT_EQ(policy.settings.steps, 8);
  EXPECT_EQ(policy.settings.smoothing, 0);
  EXPECT_EQ(policy.settings.rule, "adanat");
  EXPECT_EQ(policy.settings.network.flat(), 16);
  EXPECT_EQ(policy.settings.network.codes, 32);
  const ModelConfig config = read_model_config(o.out);
  EXPECT_EQ(policy.settings.generator, config.files.at("generator.safetensors"));
  EXPECT_EQ(config.sampling.steps, 8);
  // policy_old acts.
  const TensorMap actor = procedural_actor(small_actor());
  for (const auto& [name, tensor] : module_state(*policy.actor))
    EXPECT_TRUE(at::equal(tensor, actor.at(name))) << name;
  fs::remove_all(o.out);

  o.policies = {{dir_ / "policy.pth", 4}};  // the command line wins
  o.policy_residual = false;
  convert(o);
  EXPECT_EQ(read_policy(o.out / "policy-T4.safetensors").settings.residual, "none");
  fs::remove_all(o.out);
  o.policies = {{dir_ / "policy.pth", 4}, {dir_ / "bare.pth", 4}};
  expect_error(o, {"bare.pth", "a second policy for 4 steps"});

  // `generate` takes the fewest steps by itself, or those of the preset.
  o.policies = {{dir_ / "policy.pth", 6}, {dir_ / "bare.pth", 4}};
  convert(o);
  EXPECT_EQ(read_model_config(o.out).sampling.steps, 4);
  fs::remove_all(o.out);
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"sampling": {"steps": 6, "table": {"guidance": 2.5}}})";
  convert(o);
  EXPECT_EQ(read_model_config(o.out).sampling.steps, 6);
  EXPECT_EQ(read_model_config(o.out).sampling.table.guidance, 2.5);
}

// A folder whose default steps no policy is for would generate by the cosine table.
TEST_F(ConvertPolicy, DefaultStepsAreThoseOfAPolicy) {
  ConvertOptions o = options();
  o.policy_residual = false, o.config = dir_ / "preset.json";
  const auto steps_with = [&](const char* preset, std::vector<int64_t> policies, bool noted) {
    std::ofstream(o.config) << preset;
    o.policies.clear();
    for (const int64_t steps : policies) o.policies.push_back({dir_ / "bare.pth", steps});
    ::testing::internal::CaptureStderr();
    convert(o);
    const std::string said = ::testing::internal::GetCapturedStderr();
    const Pipeline pipeline = Pipeline::open(o.out, at::kCPU, at::kFloat);
    EXPECT_EQ(pipeline.schedule("", 0, {})->name(), "adaptive");
    const int64_t steps = pipeline.config().sampling.steps;
    EXPECT_EQ(said, noted ? cat(o.config.string(), ": sampling.steps is 8, for which there is no policy: ",
                                "`generate` takes ", steps, " steps by itself\n")
                          : "");
    fs::remove_all(o.out);
    return steps;
  };
  const char* eight = R"({"sampling": {"steps": 8}})";
  EXPECT_EQ(steps_with(eight, {4}, true), 4);
  EXPECT_EQ(steps_with(eight, {6, 10, 4}, true), 10);
  EXPECT_EQ(steps_with(eight, {6, 8, 10}, false), 8);
  EXPECT_EQ(steps_with("{}", {4}, true), 4);
  // A published table is as good as a policy where it is for these steps, and no reason to take others.
  const auto table = [](int64_t steps) {
    return cat(R"({"sampling": {"steps": 8}, "table": )", config_to_json(search_start_table(steps)).dump(),
               "}");
  };
  EXPECT_EQ(steps_with(table(8).c_str(), {4}, false), 8);
  EXPECT_EQ(steps_with(table(9).c_str(), {4}, true), 4);
}

TEST_F(ConvertPolicy, OrdersAPolicysActionsByItsNamespace) {
  const TensorMap actor = procedural_actor(small_actor());
  PthValue::Items args = testing::policy_args(0, 6);
  const auto write = [&](const PthValue& names) {
    for (auto& [key, value] : args)
      if (key == "upd_set") value = names;
    write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  };
  write(PthValue::list({"manual_cfg", "manual_gen_ratios", "manual_samp_temp", "manual_temp"}));
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 6}};
  convert(o);
  const PolicyFile policy = read_policy(o.out / "policy-T6.safetensors");
  EXPECT_EQ(policy.settings.residual, "none");
  const TensorMap made = module_state(*policy.actor);
  const at::Tensor order = at::tensor({1, 3, 2, 0}, at::kLong);
  for (const char* name : {"linear3.weight", "linear3.bias"})
    EXPECT_TRUE(at::equal(made.at(name), actor.at(name).index_select(0, order))) << name;
  EXPECT_TRUE(at::equal(made.at("linear2.weight"), actor.at("linear2.weight")));
  fs::remove_all(o.out);
  for (const PthValue& bad :
       {PthValue::list({"manual_gen_ratios", "manual_temp"}),
        PthValue::list({"manual_cfg", "manual_cfg", "manual_samp_temp", "manual_temp"}),
        PthValue::list({"manual_cfg", "manual_gen_ratios", "manual_samp_temp", "manual_temp", "top_k"}),
        PthValue::list({"manual_cfg", "manual_gen_ratios", "manual_samp_temp", "top_k"})}) {
    write(bad);
    expect_error(o, {"policy.pth", "args.upd_set", "manual_gen_ratios"});
  }
  args = {{"heu", PthValue::of("yes")}};
  write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  expect_error(o, {"args.heu is no integer"});
  args = testing::policy_args(0, 1001);
  write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  expect_error(o, {"policy.pth", "args.gen_steps is 1001, it must be 1..1000"});
  args = {{"heu", PthValue::of(int64_t{0})}, {"gen_steps", PthValue{}}};  // None: not said
  write_pth(dir_ / "policy.pth", testing::policy_checkpoint(actor, args));
  convert(o);
  EXPECT_EQ(read_policy(o.out / "policy-T6.safetensors").settings.residual, "none");
}

TEST_F(ConvertPolicy, ABarePolicyNeedsItsSettings) {
  ConvertOptions o = options();
  o.policies = {{dir_ / "bare.pth", 8}};
  expect_error(o, {"bare.pth", "--policy-residual"});
  o.policies = {{dir_ / "bare.pth", 0}};
  o.policy_residual = true;
  expect_error(o, {"bare.pth", "how many steps", ":T"});
  const auto made = [&](const char* file, int64_t steps) {
    o.policies = {{dir_ / file, steps}};
    convert(o);
    const PolicySettings settings = read_policy(o.out / policy_file_name(steps)).settings;
    fs::remove_all(o.out);
    return settings;
  };
  // AdaGen's files: smoothed from 11 steps on.
  EXPECT_EQ(made("bare.pth", 16).smoothing, 0.8);
  EXPECT_EQ(made("bare.pth", 10).smoothing, 0);
  write_pth(dir_ / "actor.pth", PthValue::dict(procedural_actor(small_actor()), "actor."));
  EXPECT_EQ(made("actor.pth", 16).smoothing, 0);
  write_pth(dir_ / "wrapped.pth", PthValue::dict(procedural_actor(small_actor()), "module."));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(made("wrapped.pth", 11).smoothing, 0.8);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("wrapped.pth: names without \"actor.\" and more than 10 steps: taken for AdaGen's"),
            std::string::npos)
      << said;
  o.policy_residual = false;
  EXPECT_EQ(made("bare.pth", 16).smoothing, 0);
  EXPECT_EQ(made("bare.pth", 16).residual, "none");
  o.policy_residual.reset();
  o.config = dir_ / "preset.json";
  std::ofstream(o.config) << R"({"policy": {"residual": "heuristic", "smoothing": 0.5,
    "heuristic": {"remask_temperature": 4.5, "guidance": 2.5}}})";
  const PolicySettings settings = made("bare.pth", 32);
  EXPECT_EQ(settings.residual, "heuristic");
  EXPECT_EQ(settings.smoothing, 0.5);
  EXPECT_EQ(settings.heuristic, (HeuristicConfig{.remask_temperature = 4.5, .guidance = 2.5}));
  // None is a word, too; what the file says of its residual stands before the preset's.
  std::ofstream(o.config) << R"({"policy": {"residual": "heuristic", "smoothing": 0}})";
  EXPECT_EQ(made("bare.pth", 16).smoothing, 0);
  std::ofstream(o.config) << R"({"policy": {"residual": "none"}})";
  EXPECT_EQ(made("bare.pth", 8).residual, "none");
  EXPECT_EQ(made("policy.pth", 8).residual, "heuristic");
}

// The policy that acts, filled up from the one beside it; one policy of a file and no other program's.
TEST_F(ConvertPolicy, OneActorIsTakenFromAFile) {
  const TensorMap actor = procedural_actor(small_actor());
  ConvertOptions o = options();
  o.policies = {{dir_ / "policy.pth", 8}};
  PthValue checkpoint = testing::policy_checkpoint(actor, testing::policy_args(1, 8));
  std::erase_if(checkpoint.items[0].second.items,
                [](const auto& item) { return item.first == "policy_old.actor.linear2.bias"; });
  write_pth(dir_ / "policy.pth", checkpoint);
  convert(o);
  const TensorMap made = module_state(*read_policy(o.out / "policy-T8.safetensors").actor);
  EXPECT_TRUE(at::equal(made.at("linear2.weight"), actor.at("linear2.weight")));
  EXPECT_TRUE(at::equal(made.at("linear2.bias"), actor.at("linear2.bias") + 1));
  const fs::path first = dir_ / "first";
  fs::rename(o.out, first);
  o.policies = {{first / "policy-T8.safetensors", 8}};
  expect_error(o, {"policy-T8.safetensors", "a policy of this program already", "generate --policy"});
  o.policies = {{dir_ / "policy.pth", 8}};
  write_pth(dir_ / "policy.pth",
            PthValue::dict({{"a", PthValue::dict(actor, "actor.")}, {"b", PthValue::dict(actor, "actor.")}}));
  o.policy_residual = true;
  expect_error(o, {"several policies", "a.actor.linear3.weight", "b.actor.linear3.weight"});
}

TEST_F(ConvertPolicy, APolicyMustFitTheGenerator) {
  ConvertOptions o = options();
  o.policy_residual = false;
  const auto refused = [&](const ShapeMap& shapes, std::initializer_list<const char*> parts) {
    write_pth(dir_ / "p.pth", PthValue::dict(procedural_actor(shapes)));
    o.policies = {{dir_ / "p.pth", 8}};
    expect_error(o, parts);
  };
  refused(published_actor_shapes(13, 8, 4, 10, 16), {"p.pth", "width 13", "12 wide"});
  refused(published_actor_shapes(8, 8, 4, 10, 16), {"width 8", "12 wide"});
  refused(published_actor_shapes(12, 8, 4, 10, 64), {"linear1.weight reads 64", "4x4", "gives 16"});
  refused(published_actor_shapes(12, 8, 4, 10, 16, 3), {"linear3.bias has shape [3]", "[4]"});
  ShapeMap shapes = small_actor();
  shapes.erase("dw_conv.bias"), shapes["dw_conv2.bias"] = {3};
  refused(shapes, {"lacks dw_conv.bias", "holds dw_conv2.bias"});
  refused({{"linear3.weight", {4, 8}}},
          {"p.pth: lacks adaLN1.adaLN_modulation.1.bias, ", ", linear3.bias, pw_conv.bias, pw_conv.weight, ",
           "t_embedder.mlp.{0,2}.bias, t_embedder.mlp.{0,2}.weight; is it the file of another part, or a "});
  shapes = small_actor();
  shapes.erase("x_embedder.weight"), shapes.erase("linear1.weight"), shapes.erase("linear2.bias");
  refused(shapes, {"lacks linear1.weight, linear2.bias, x_embedder.weight; is it"});
  refused({{"critic.linear3.weight", {1, 8}}}, {"is no policy"});
  o.policies = {{dir_ / "gen.safetensors", 8}};
  expect_error(o, {"gen.safetensors", "is no policy"});
}

TEST(ConvertArguments, APolicyIsSplitAtTheLastColon) {
  const TempDir dir;
  EXPECT_EQ(parse_policy_argument("a.pth:8").file, "a.pth");
  EXPECT_EQ(parse_policy_argument("a.pth:8").steps, 8);
  EXPECT_EQ(parse_policy_argument("a:b:c.pth:16").file, "a:b:c.pth");
  EXPECT_EQ(parse_policy_argument("a.pth").steps, 0);
  const std::string odd = (dir / "x:y.pth").string();
  EXPECT_THROW(parse_policy_argument(odd), InputError);
  std::ofstream(odd) << "x";
  EXPECT_EQ(parse_policy_argument(odd).file, odd);
  EXPECT_EQ(parse_policy_argument(odd).steps, 0);
  for (const char* bad :
       {"a.pth:0", "a.pth:1001", "a.pth:99999999999999999999", "a.pth:", "a.pth:x", "a.pth:-4"})
    EXPECT_THROW(parse_policy_argument(bad), InputError) << bad;
}

}  // namespace
}  // namespace adanat
