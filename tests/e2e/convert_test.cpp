// `adanat convert` as a person runs it: public layouts in, images out; hostile files leave nothing behind.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/base/config.h"
#include "core/generator/transformer.h"
#include "core/nn/module_state.h"
#include "e2e/program.h"
#include "support/checkpoints.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;
using testing::adanat_run;
using testing::procedural_weights;
using testing::PthValue;
using testing::TempDir;
using testing::write_pth;

class ConvertCommand : public ::testing::Test {
 protected:
  ConvertCommand() {
    write_pth(dir_ / "nnet_ema.pth",
              PthValue::dict(procedural_weights(generator_shapes(testing::uvit_class_config()))));
    write_pth(dir_ / "vqgan.ckpt",
              PthValue::dict({{"state_dict", PthValue::dict(procedural_weights(
                                                 tokenizer_shapes(testing::tiny_tokenizer_config(32))))}}));
    write_pth(dir_ / "ckpt_1000.pth",
              testing::policy_checkpoint(
                  testing::procedural_actor(testing::published_actor_shapes(64, 8, 4, 10, 16)),
                  testing::policy_args(1, 4)));
  }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::string sources() const {
    return "--generator " + path("nnet_ema.pth") + " --tokenizer " + path("vqgan.ckpt") + " --heads 4";
  }
  testing::Outcome run(const std::string& arguments) { return adanat_run(dir_, arguments); }
  // Nothing of --out: neither under its name nor under a temporary one.
  void expect_nothing_left() {
    for (const auto& entry : fs::directory_iterator(dir_.path()))
      EXPECT_EQ(entry.path().filename().string().find("model"), std::string::npos) << entry.path();
  }
  TempDir dir_;
};

TEST_F(ConvertCommand, MakesAFolderThatGenerates) {
  std::ofstream(dir_ / "names.txt") << "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n";
  const auto made = run("convert " + sources() + " --policy " + path("ckpt_1000.pth") + ":4 --class-names " +
                        path("names.txt") + " --out " + path("model"));
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(made.out, "");
  EXPECT_NE(made.err.find("left out: "), std::string::npos) << made.err;  // critics, optimizer, ...
  EXPECT_NE(made.err.find("discriminator.heads.0.cls.bias"), std::string::npos) << made.err;
  EXPECT_NE(made.err.find("model.policy_old.critic.t_embedder.mlp.{0,2}.weight"), std::string::npos)
      << made.err;
  EXPECT_EQ(made.err.find(" more\n"), std::string::npos) << made.err;
  const auto info = run("info --verify --json " + path("model"));
  ASSERT_EQ(info.status, 0) << info.err;
  const Json j = Json::parse(info.out);
  EXPECT_EQ(j.at("name"), "model");
  EXPECT_EQ(j.at("generator").at("heads"), 4);
  EXPECT_EQ(j.at("sampling").at("steps"), 4);
  EXPECT_TRUE(j.at("files").contains("policy-T4.safetensors"));
  const auto image =
      run("generate -m " + path("model") + " -o " + path("x.png") + " -c b --trace " + path("t.json"));
  ASSERT_EQ(image.status, 0) << image.err;
  const Json trace = read_json_file(path("t.json"));
  EXPECT_EQ(trace.at("steps"), 4);
  EXPECT_EQ(trace.at("samples")[0].at("class"), 1);
  const auto quiet = run("convert --quiet " + sources() + " --out " + path("again"));
  EXPECT_EQ(quiet.status, 0);
  EXPECT_EQ(quiet.err, "");
}

// Guidance of 1e-4 saves its rows, and whoever has the published table in mind is told.
TEST_F(ConvertCommand, APublishedTablesSmallGuidanceIsExplained) {
  Json preset = read_json_file((testing::source_dir() / "configs/public/autonat-l-256.json").string());
  preset["generator"] = Json::object(), preset["image_size"] = 0;
  std::ofstream(dir_ / "preset.json") << preset.dump();
  const auto converted =
      run("convert " + sources() + " --config " + path("preset.json") + " --out " + path("model"));
  ASSERT_EQ(converted.status, 0) << converted.err;
  const auto said = [&](const std::string& flags) {
    const auto made = run("generate -m " + path("model") + " -o " + path("x.png") + flags);
    EXPECT_EQ(made.status, 0) << made.err;
    return made.err;
  };
  const std::string wanted = "guidance below 0.001 counts as none, at 3 of 8 steps\n";
  EXPECT_NE(said("").find("schedule adaptive: " + wanted), std::string::npos);
  EXPECT_NE(said(" --schedule autonat").find("schedule autonat: " + wanted), std::string::npos);
  EXPECT_EQ(said(" --quiet"), "");
  EXPECT_EQ(said(" --schedule cosine").find("counts as none"), std::string::npos);
}

// Greedy, four steps, no noise: against the method's equations written out here, on a network filled in
// memory.
TEST_F(ConvertCommand, GreedyTokensAreTheMethods) {
  ASSERT_EQ(run("convert " + sources() + " --out " + path("model")).status, 0);
  const std::vector<double> ratios = {0.8, 0.5, 0.3, 0.1}, guidance = {0, 0.5, 1, 1.5};
  std::ofstream(dir_ / "greedy.json") << Json{
      {"steps", 4},
      {"mask_ratio", ratios},
      {"remask_temperature", {0, 0, 0, 0}},
      {"sampling_temperature", {0, 0, 0, 0}},
      {"guidance", guidance},
      {"rule", "adanat"}}.dump();
  const auto made = run("generate -m " + path("model") + " -n 10 -o " + path("x.png") + " --schedule " +
                        path("greedy.json") + " --save-tokens " + path("tokens.safetensors"));
  ASSERT_EQ(made.status, 0) << made.err;
  const TensorMap saved = read_tensors(dir_ / "tokens.safetensors");

  const at::NoGradGuard no_grad;
  Generator net = testing::procedural_generator(testing::uvit_class_config());
  const int64_t mask = 32;
  const at::Tensor classes = at::arange(10), none = at::full({10}, 10, at::kLong);
  at::Tensor tokens = at::full({10, 16}, mask, at::kLong), proposal;
  double closest = 1;  // how near any decision is to another one
  for (size_t t = 0; t < 4; ++t) {
    const at::Tensor cond = net->logits(net->features(tokens, classes));
    const at::Tensor logits = cond + guidance[t] * (cond - net->logits(net->features(tokens, none)));
    const at::Tensor hidden = tokens == mask;
    const auto best = logits.topk(2);
    closest = std::min(closest, (std::get<0>(best).select(2, 0) - std::get<0>(best).select(2, 1))
                                    .masked_select(hidden)
                                    .min()
                                    .item<double>());
    proposal = at::where(hidden, logits.argmax(2), tokens);
    const at::Tensor score = logits.log_softmax(2)
                                 .gather(2, proposal.unsqueeze(2))
                                 .squeeze(2)
                                 .masked_fill(~hidden, std::numeric_limits<double>::infinity());
    const auto k = std::min<int64_t>(int64_t(std::floor(16 * float(ratios[t]))), 15);
    const at::Tensor sorted = std::get<0>(score.sort(1));
    if (k > 0) {
      const at::Tensor gap = sorted.select(1, k) - sorted.select(1, k - 1);
      closest = std::min(closest, gap.min().item<double>());
    }
    tokens = proposal.masked_fill(score < sorted.select(1, k).unsqueeze(1), mask);
    EXPECT_TRUE(t == 3 || at::equal(saved.at("steps")[int64_t(t)], tokens)) << "step " << t;
  }
  ASSERT_GT(closest, 1e-4);  // logits agree to 1e-5: no decision hangs on rounding
  EXPECT_TRUE(at::equal(saved.at("tokens"), proposal));
}

// The worst of the golden files; tests/pipeline has them all, in every role.
TEST_F(ConvertCommand, HostileAndDamagedFilesLeaveNothing) {
  for (const char* name : {"hostile_zip", "hostile_legacy", "hostile_eval", "truncated_zip_half",
                           "truncated_legacy_tail", "bitflip_zip_pickle", "size_huge", "text"}) {
    const std::string file = fs::absolute(testing::golden_dir() / "checkpoints" / cat(name, ".pth")).string();
    const auto refused =
        run("convert --generator " + file + " --tokenizer " + path("vqgan.ckpt") + " --out " + path("model"));
    EXPECT_TRUE(testing::is_one_line_error(refused, 2, name)) << name << ": " << refused.err;
    expect_nothing_left();
    EXPECT_FALSE(fs::exists("pwned"));
  }
}

TEST_F(ConvertCommand, CutAndFlippedFilesLeaveNothing) {
  const std::string whole = read_file(dir_ / "nnet_ema.pth");
  const auto refused = [&](const std::string& bytes) {
    write_file_atomic(dir_ / "bad.pth", bytes);
    const auto outcome = run("convert --heads 4 --generator " + path("bad.pth") + " --tokenizer " +
                             path("vqgan.ckpt") + " --out " + path("model"));
    EXPECT_TRUE(testing::is_one_line_error(outcome, 2, "bad.pth")) << outcome.err;
    expect_nothing_left();
  };
  for (const size_t size : {size_t{0}, size_t{1}, whole.size() / 3, whole.size() - 1})
    refused(whole.substr(0, size));
  for (const size_t at : {whole.size() / 2, size_t{1000}}) {
    std::string flipped = whole;
    flipped[at] ^= 16;
    refused(flipped);
  }
}

TEST_F(ConvertCommand, UsageErrorsSayWhatToDo) {
  const auto refused = [&](const std::string& arguments, const std::string& part) {
    const auto outcome = run("convert " + arguments);
    EXPECT_TRUE(testing::is_one_line_error(outcome, 2, part)) << arguments << ": " << outcome.err;
    expect_nothing_left();
  };
  const std::string out = " --out " + path("model");
  refused("", "is required");
  refused(sources(), "--out");
  refused("--generator " + path("nnet_ema.pth") + out, "--tokenizer");
  refused(sources() + " --dtype int8" + out, "--dtype int8: must be float32, float16 or bfloat16");
  refused(sources() + " --policy-residual maybe --policy x:4" + out, "--policy-residual maybe");
  refused(sources() + " --policy-residual on" + out, "--policy");
  refused(sources() + " --policy " + path("ckpt_1000.pth") + ":0" + out, "1..1000");
  refused(sources() + " --policy " + path("missing.pth") + ":4" + out, "missing.pth");
  refused(sources() + " --heads 0" + out, "--heads");
  refused("--generator " + path("nnet_ema.pth") + " --tokenizer " + path("vqgan.ckpt") + " --heads 5" + out,
          "multiple of heads (5)");
  refused("--generator " + path("nnet_ema.pth") + " --tokenizer " + path("vqgan.ckpt") + out, "--heads");
  refused(sources() + " --config " + path("missing.json") + out, "missing.json");
  refused(sources() + " --out " + dir_.path().string(), "exists already");
  refused(sources() + " --out /dev/null/x", "/dev/null/x");
  const auto warned = run("convert " + sources() + " --policy " + path("ckpt_1000.pth") +
                          ":6 --policy-residual off --out " + path("warned"));
  EXPECT_EQ(warned.status, 0) << warned.err;
  EXPECT_NE(warned.err.find("trained for 4 steps, is stored for 6"), std::string::npos) << warned.err;
  EXPECT_NE(warned.err.find("trained with heu 1, --policy-residual off is taken"), std::string::npos)
      << warned.err;
  // A file of weights is no folder to start from; a prompt is no file.
  const auto started = run("train generator --init " + path("nnet_ema.pth") + " -m " + path("warned") +
                           " --data x.safetensors --out " + path("run"));
  EXPECT_TRUE(testing::is_one_line_error(started, 2, "nnet_ema.pth: is no model folder but a file; "))
      << started.err;
  EXPECT_NE(started.err.find("convert it first (`adanat convert`)"), std::string::npos) << started.err;
  const auto prompt = run("generate -m " + path("warned") + " -o x.png -p \"$(printf '\\377')\"");
  EXPECT_TRUE(
      testing::is_one_line_error(prompt, 2, "argument 7 (?) is not valid UTF-8; type it in UTF-8, or"))
      << prompt.err;
  const auto help = run("convert --help");
  EXPECT_EQ(help.status, 0);
  for (const char* part :
       {"--generator", "--policy-residual", "configs/public/adanat-l-256.json", "Examples:"})
    EXPECT_NE(help.out.find(part), std::string::npos) << part;
}

}  // namespace
}  // namespace adanat
