// The recorded steps of the public reference, fed with its own noise.
#include "decode_step_case.h"

namespace adanat::kernels::testing {
namespace {

using adanat::testing::golden;
using adanat::testing::input_gumbel;

class DecodeStepGolden : public OnDevice {};
ADANAT_ON_DEVICES(DecodeStepGolden);

// actions (B, 4) in the reference's order m, tau2, tau1, w.
void set_actions(DecodeStepInput& in, const at::Tensor& actions) {
  in.mask_ratio = actions.select(1, 0).contiguous();
  in.remask_temperature = actions.select(1, 1).contiguous();
  in.sampling_temperature = actions.select(1, 2).contiguous();
  in.guidance = actions.select(1, 3).contiguous();
}

TEST_P(DecodeStepGolden, AdanatTrajectory) {
  const auto& g = golden("steps.safetensors");
  for (int64_t t = 0; t < 4; ++t) {
    SCOPED_TRACE("step " + std::to_string(t));
    DecodeStepInput in = make_case(3, 16, 32);
    set_actions(in, g["adanat.actions"][t]);
    // The reference stores the conditional logits and the guided ones over tau1; the unconditional ones
    // follow.
    const at::Tensor cond = g["adanat.logits_cond"][t];
    const at::Tensor tau1 = in.sampling_temperature.view({3, 1, 1}), w = in.guidance.view({3, 1, 1});
    const at::Tensor guided = g["adanat.logits_guided_over_tau1"][t] * tau1;
    in.logits = cond;
    in.logits_uncond = at::where(w > 0, cond - (guided - cond) / w.clamp_min(1e-6), at::full_like(cond, NAN));
    in.tokens = g["adanat.ids_in"][t];
    in.token_noise = g["adanat.G1"][t];
    in.confidence_noise = g["adanat.G2"][t];
    const DecodeStepResult r = run(in);
    EXPECT_CLOSE(r.proposals, g["adanat.proposal"][t], 0);
    const at::Tensor revealed = in.tokens.ne(32);
    EXPECT_CLOSE(r.log_prob.masked_fill(revealed, 0), g["adanat.logprob"][t].masked_fill(revealed, 0), 1e-4);
    EXPECT_CLOSE(r.confidence, g["adanat.confidence"][t], 1e-4);
    EXPECT_CLOSE(r.tokens.eq(32), g["adanat.masking"][t], 0);
    EXPECT_CLOSE(r.tokens, g["adanat.ids_out"][t], 0);
  }
}

TEST_P(DecodeStepGolden, Edges) {
  const auto& g = golden("steps.safetensors");
  DecodeStepInput in = make_case(6, 16, 8);
  set_actions(in, g["edges.actions"]);
  in.logits = g["edges.logits"];
  in.tokens = g["edges.ids_in"];
  in.token_noise = at::zeros({6, 16, 8});
  in.confidence_noise = g["edges.G2"];
  const DecodeStepResult r = run(in);
  EXPECT_CLOSE(r.proposals, g["edges.proposal"], 0);
  EXPECT_CLOSE(r.confidence, g["edges.confidence"], 1e-4);
  EXPECT_CLOSE(r.tokens.eq(8), g["edges.masking"], 0);
  EXPECT_CLOSE(r.tokens, g["edges.ids_out"], 0);
}

at::Tensor next_tokens(const at::Tensor& ids_in, int64_t t) {
  return ids_in[t + 1];
}

TEST_P(DecodeStepGolden, TablesTies) {
  const auto& g = golden("steps.safetensors");
  const double ratios[3] = {0.6, 0.3, 0.0};
  for (int64_t t = 0; t < 3; ++t) {
    SCOPED_TRACE("step " + std::to_string(t));
    DecodeStepInput in = make_case(2, 256, 8);
    in.rule = RemaskRule::kMaskgit;
    in.logits = g["table_ties.rows"].index_select(0, g["table_ties.pick"].flatten()).view({2, 256, 8});
    in.tokens = g["table_ties.ids_in"][t];
    in.mask_ratio = at::full({2}, ratios[t], at::kDouble);
    in.remask_temperature.zero_();
    in.token_noise = at::zeros({2, 256, 8});
    const DecodeStepResult r = run(in);
    EXPECT_CLOSE(r.proposals, g["table_ties.proposal"][t], 0);
    EXPECT_CLOSE(r.confidence, g["table_ties.confidence"][t], 1e-4);
    if (t < 2) {
      EXPECT_CLOSE(r.tokens, next_tokens(g["table_ties.ids_in"], t), 0);
    }
    if (t == 2) {
      EXPECT_CLOSE(r.proposals, g["table_ties.final_ids"], 0);
    }
  }
}

// The logits of every 16th position are stored: the proposals there.
TEST_P(DecodeStepGolden, TableProposals) {
  const auto& g = golden("steps.safetensors");
  const at::Tensor noise = input_gumbel("steps.table_G1", {4, 2, 256, 32});
  const at::Tensor every16 = at::arange(0, 256, 16);
  for (int64_t t = 0; t < 4; ++t) {
    SCOPED_TRACE("step " + std::to_string(t));
    DecodeStepInput in = make_case(2, 16, 32);
    in.rule = RemaskRule::kMaskgit;
    in.logits = g["table.logits_guided_slice"][t];
    in.tokens = g["table.ids_in"][t].index_select(1, every16);
    in.sampling_temperature = g["table.samp_temps"][t].expand({2}).contiguous();
    in.token_noise = noise[t].index_select(1, every16);
    const DecodeStepResult r = run(in);
    EXPECT_CLOSE(r.proposals, g["table.proposal"][t].index_select(1, every16), 0);
    const at::Tensor hidden = in.tokens.eq(32);
    const at::Tensor expected = g["table.logprob"][t].index_select(1, every16);
    EXPECT_CLOSE(r.log_prob * hidden, expected.masked_fill(~hidden, 0), 1e-4);
  }
}

// Logits made so that the recorded proposal has the recorded log-probability: confidences and masks of all
// positions.
TEST_P(DecodeStepGolden, TableMasks) {
  const auto& g = golden("steps.safetensors");
  const double ratios[4] = {0.95, 0.75, 0.4, 0.0};
  for (int64_t t = 0; t < 4; ++t) {
    SCOPED_TRACE("step " + std::to_string(t));
    DecodeStepInput in = make_case(2, 256, 32);
    in.rule = RemaskRule::kMaskgit;
    const at::Tensor proposal = g["table.proposal"][t].unsqueeze(2);
    const at::Tensor p = g["table.logprob"][t].to(at::kDouble).clamp_max(-1e-9).exp().unsqueeze(2);
    const at::Tensor rest = ((1 - p) / 31).log().expand({2, 256, 32});
    in.logits = rest.scatter(2, proposal, p.log()).to(at::kFloat);
    in.token_noise = at::zeros({2, 256, 32}).scatter(2, proposal, 1000.0);
    in.confidence_noise = g["table.G2"][t];
    in.tokens = g["table.ids_in"][t];
    in.mask_ratio = at::full({2}, ratios[t], at::kDouble);
    in.remask_temperature = t < 3 ? g["table.temps"][t].expand({2}).contiguous() : at::zeros({2});
    const DecodeStepResult r = run(in);
    EXPECT_CLOSE(r.confidence, g["table.confidence"][t], 1e-4);
    EXPECT_CLOSE(r.tokens.eq(32).sum(1), t < 3 ? g["table.hidden_in"][t + 1] : at::ones({2}, at::kLong), 0);
    if (t < 3) {
      EXPECT_CLOSE(r.tokens, next_tokens(g["table.ids_in"], t), 0);
    }
  }
}

}  // namespace
}  // namespace adanat::kernels::testing
