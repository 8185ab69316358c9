// The functions of the CUDA kernel, run on the host in the kernel's own order: 32 lanes, then the butterfly
// of shuffles.
#include "decode_step_case.h"
#include "kernels/decode_step.cuh"
#include "kernels/decode_step.h"

namespace adanat::kernels::testing {
namespace {

// The kernel cannot include the operator's header; its numbers are the same.
static_assert(kRuleMaskgit == int64_t(RemaskRule::kMaskgit) && kRuleOrder == int64_t(RemaskRule::kOrder));

template <class T>
void draw_row_as_a_warp(const DecodeStepArgs& a, int64_t b, int64_t n) {
  RowPartial lanes[32];
  for (int64_t lane = 0; lane < 32; ++lane)
    for (int64_t quad = lane; 4 * quad < a.vocab; quad += 32) take_quad<T>(a, b, n, quad, lanes[lane]);
  for (int offset = 16; offset > 0; offset /= 2) {
    RowPartial before[32];
    std::copy(lanes, lanes + 32, before);
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = merge(before[lane], before[lane ^ offset]);
  }
  for (int lane = 1; lane < 32; ++lane) ASSERT_EQ(lanes[lane].id, lanes[0].id);  // the butterfly must agree
  finish_row(a, b, n, lanes[0]);
}

RowView view_of(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}

DecodeStepResult device_functions_on_host(const DecodeStepInput& in) {
  DecodeStepArgs a;
  a.batch = in.logits.size(0);
  a.positions = in.logits.size(1);
  a.vocab = in.logits.size(2);
  a.rule = static_cast<int64_t>(in.rule);
  a.cond = view_of(in.logits);
  if (in.logits_uncond) a.uncond = view_of(*in.logits_uncond);
  if (in.token_noise) a.token_noise = view_of(*in.token_noise);
  a.tokens = in.tokens.const_data_ptr<int64_t>();
  if (in.mask_ratio.scalar_type() == at::kFloat)
    a.mask_ratio_f32 = in.mask_ratio.const_data_ptr<float>();
  else
    a.mask_ratio_f64 = in.mask_ratio.const_data_ptr<double>();
  a.remask_temperature = in.remask_temperature.const_data_ptr<float>();
  a.sampling_temperature = in.sampling_temperature.const_data_ptr<float>();
  a.guidance = in.guidance.const_data_ptr<float>();
  a.seed = in.seed.const_data_ptr<int64_t>();
  a.image_index = in.image_index.const_data_ptr<int64_t>();
  a.step = in.step.const_data_ptr<int64_t>();
  a.hidden_at_start = in.hidden_at_start.const_data_ptr<int64_t>();
  if (in.priority) a.priority = in.priority->const_data_ptr<int64_t>();
  if (in.confidence_noise) a.confidence_noise = in.confidence_noise->const_data_ptr<float>();
  DecodeStepResult out{at::empty_like(in.tokens), at::empty_like(in.tokens),
                       at::empty_like(in.tokens, at::kFloat), at::empty_like(in.tokens, at::kFloat)};
  a.out_tokens = out.tokens.mutable_data_ptr<int64_t>();
  a.out_proposals = out.proposals.mutable_data_ptr<int64_t>();
  a.out_confidence = out.confidence.mutable_data_ptr<float>();
  a.out_log_prob = out.log_prob.mutable_data_ptr<float>();
  for (int64_t b = 0; b < a.batch; ++b) {
    int64_t hidden = 0;
    for (int64_t n = 0; n < a.positions; ++n) {
      if (a.tokens[b * a.positions + n] != a.vocab) {
        keep_revealed(a, b, n);
        continue;
      }
      ++hidden;
      switch (in.logits.scalar_type()) {
        case at::kBFloat16:
          draw_row_as_a_warp<BFloat16>(a, b, n);
          break;
        case at::kHalf:
          draw_row_as_a_warp<Float16>(a, b, n);
          break;
        default:
          draw_row_as_a_warp<Float32>(a, b, n);
      }
    }
    const int64_t bound = remask_bound(a, b, hidden);
    const float* confidence = a.out_confidence + b * a.positions;
    for (int64_t i = 0; i < a.positions; ++i) {
      int64_t before = 0;
      for (int64_t j = 0; j < a.positions; ++j)
        before += comes_before(a, confidence[j], confidence[i]) ? 1 : 0;
      const bool masked = confidence[i] < kInfinity && before <= bound;
      a.out_tokens[b * a.positions + i] = masked ? a.vocab : a.out_proposals[b * a.positions + i];
    }
  }
  return out;
}

void expect_device_equals_cpu(const DecodeStepInput& in) {
  const DecodeStepResult device = device_functions_on_host(in), cpu = decode_step(in);
  EXPECT_CLOSE(device.proposals, cpu.proposals, 0);
  EXPECT_CLOSE(device.log_prob, cpu.log_prob, 1e-5);
  EXPECT_CLOSE(device.confidence, cpu.confidence, 1e-5);
  EXPECT_CLOSE(device.tokens, cpu.tokens, 0);
}

TEST(DecodeStepDevice, RowFunctionsEqualTheCpu) {
  for (int64_t positions : {1, 17, 256}) {
    for (int64_t vocab : {1, 31, 33, 257, 1023, 1024}) {
      for (auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        if (positions == 256 && vocab >= 1023 && type != at::kFloat) continue;  // seconds, and nothing new
        for (auto rule : {RemaskRule::kAdanat, RemaskRule::kMaskgit, RemaskRule::kOrder}) {
          SCOPED_TRACE("N " + std::to_string(positions) + " V " + std::to_string(vocab) + " rule " +
                       std::to_string(static_cast<int64_t>(rule)));
          DecodeStepInput in = make_case(3, positions, vocab);
          in.rule = rule;
          in.priority = at::arange(positions).flip(0).contiguous();
          in.logits = in.logits.to(type);
          in.logits_uncond = input_float("kernels.uncond", {3, positions, vocab}, 2.0).to(type);
          in.guidance = floats({0.f, 1.5f, 0.7f});
          in.sampling_temperature = floats({1.3f, 0.8f, 0.f});
          in.mask_ratio = floats({0.3f, 0.9f, 0.5f});
          in.tokens.select(0, 1).slice(0, 0, positions, 3).fill_(0);  // some are revealed
          expect_device_equals_cpu(in);
        }
      }
    }
  }
}

TEST(DecodeStepDevice, TiesAndImpossibleCodes) {
  DecodeStepInput in = make_case(2, 40, 300);
  in.logits = in.logits.round();  // many ties
  in.logits = in.logits.masked_fill(at::arange(300).remainder(7).ne(0), -INFINITY);
  in.token_noise = at::zeros({2, 40, 300});
  in.confidence_noise = at::zeros({2, 40});
  for (auto rule : {RemaskRule::kAdanat, RemaskRule::kMaskgit}) {
    in.rule = rule;
    const DecodeStepResult device = device_functions_on_host(in), cpu = decode_step(in);
    EXPECT_CLOSE(device.proposals, cpu.proposals, 0);
    EXPECT_CLOSE(device.log_prob, cpu.log_prob, 1e-5);
  }
}

// Given one set of confidences, counting gives the masks of the sorted cut.
TEST(DecodeStepDevice, CountingEqualsTheCut) {
  for (auto rule : {RemaskRule::kAdanat, RemaskRule::kMaskgit}) {
    for (int64_t start : {1, 5, 12, 40}) {
      for (double ratio : {0.0, 0.2, 0.5, 0.99, 1.0, 2.0}) {
        DecodeStepInput in = make_case(2, 40, 8, ratio);
        in.rule = rule;
        in.hidden_at_start.fill_(start);
        in.tokens.narrow(1, 0, 40 - start).fill_(1);
        in.logits = input_float("kernels.flat", {1, 1, 8}, 2.0).expand({2, 40, 8}).contiguous();
        in.token_noise = at::zeros({2, 40, 8});  // the same proposal everywhere
        in.confidence_noise =
            input_float("kernels.tied", {2, 40}, 2.0).round();  // tied confidences, equal bits
        const DecodeStepResult device = device_functions_on_host(in);
        in.remask_temperature.fill_(1.0);
        EXPECT_CLOSE(device.tokens, decode_step(in).tokens, 0) << start << " " << ratio;
      }
    }
  }
}

TEST(DecodeStepDevice, BadRowsGetTheMarker) {
  DecodeStepInput in = make_case(1, 4, 33, 0.5);
  in.logits[0][0][7].fill_(NAN);
  in.logits[0][1][32].fill_(INFINITY);
  in.logits[0][2].fill_(-INFINITY);
  const DecodeStepResult r = device_functions_on_host(in);
  for (int64_t n = 0; n < 3; ++n) {
    EXPECT_EQ(r.proposals[0][n].item<int64_t>(), 33);
    EXPECT_EQ(r.tokens[0][n].item<int64_t>(), 33);
    EXPECT_TRUE(std::isnan(r.confidence[0][n].item<float>()));
    EXPECT_TRUE(std::isnan(r.log_prob[0][n].item<float>()));
  }
  EXPECT_LT(r.proposals[0][3].item<int64_t>(), 33);
}

}  // namespace
}  // namespace adanat::kernels::testing
