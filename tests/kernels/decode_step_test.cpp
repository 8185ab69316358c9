// What the header of decode_step promises: draws, limits, edge cases, errors.
#include "decode_step_case.h"

namespace adanat::kernels::testing {
namespace {

class DecodeStep : public OnDevice {};
ADANAT_ON_DEVICES(DecodeStep);

DecodeStepInput with_own_noise(DecodeStepInput in) {
  const int64_t step = in.step.item<int64_t>();
  in.token_noise = token_noise(in.seed, in.image_index, step, in.logits.size(1), in.logits.size(2));
  in.confidence_noise = confidence_noise(in.seed, in.image_index, step, in.logits.size(1));
  return in;
}

TEST_P(DecodeStep, ExplicitPhiloxNoiseIsTheBuiltInNoise) {
  for (int64_t positions : {1, 17, 256}) {
    for (int64_t vocab : {1, 31, 33, 257, 1023, 1024}) {
      SCOPED_TRACE("N " + std::to_string(positions) + " V " + std::to_string(vocab));
      const DecodeStepInput in = make_case(2, positions, vocab);
      expect_same(run(in), run(with_own_noise(in)));
    }
  }
}

// Against the formulas written with ATen in float64, per size.
TEST_P(DecodeStep, AgreesWithThePlainFormulas) {
  for (int64_t positions : {1, 17, 256}) {
    for (int64_t vocab : {1, 31, 33, 257, 1023, 1024}) {
      SCOPED_TRACE("N " + std::to_string(positions) + " V " + std::to_string(vocab));
      DecodeStepInput in = with_own_noise(make_case(2, positions, vocab));
      in.logits_uncond = input_float("kernels.uncond", {2, positions, vocab}, 2.0);
      in.guidance = floats({1.5f, 0.25f});
      in.sampling_temperature = floats({0.7f, 1.9f});
      in.remask_temperature = floats({2.0f, 0.1f});
      in.mask_ratio = floats({0.9f, 0.3f});
      const DecodeStepResult r = run(in);

      const auto column = [](const at::Tensor& x) { return x.to(at::kDouble).view({-1, 1, 1}); };
      const at::Tensor c = in.logits.to(at::kDouble), u = in.logits_uncond->to(at::kDouble);
      const at::Tensor guided = c + column(in.guidance) * (c - u);
      const at::Tensor score = guided / column(in.sampling_temperature) + *in.token_noise;
      const auto top = score.topk(std::min<int64_t>(vocab, 2), 2);
      const at::Tensor best = std::get<1>(top).select(2, 0);
      if (vocab == 1 ||
          (std::get<0>(top).select(2, 0) - std::get<0>(top).select(2, 1)).min().item<double>() > 1e-5) {
        EXPECT_CLOSE(r.proposals, best, 0);
      } else {
        EXPECT_LE(r.proposals.ne(best).sum().item<int64_t>(), 1);
      }
      const at::Tensor log_prob = at::log_softmax(guided, 2).gather(2, r.proposals.unsqueeze(2)).squeeze(2);
      EXPECT_CLOSE(r.log_prob, log_prob.to(at::kFloat), 3e-5);
      const at::Tensor confidence = r.log_prob + in.remask_temperature.view({2, 1}) * *in.confidence_noise;
      EXPECT_CLOSE(r.confidence, confidence, 1e-6);
      for (int64_t b = 0; b < 2; ++b) {
        const auto k = std::min<int64_t>(
            static_cast<int64_t>(std::floor(static_cast<float>(positions) * in.mask_ratio[b].item<float>())),
            positions - 1);
        const at::Tensor cut = std::get<0>(r.confidence[b].sort())[k];
        EXPECT_CLOSE(r.tokens[b], at::where(r.confidence[b] < cut, vocab, r.proposals[b]), 0);
      }
    }
  }
}

TEST_P(DecodeStep, ABatchIsItsSamples) {
  DecodeStepInput in = make_case(5, 33, 257);
  in.seed = ids({1, 1, -2, 3, int64_t{1} << 40});
  in.image_index = ids({0, 7, 7, 4294967295, 1});
  in.mask_ratio = floats({0.1f, 0.5f, 0.9f, 1.0f, 0.0f});
  const DecodeStepResult whole = run(in);
  for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 1}, {2, 3}}) {
    DecodeStepInput part = in;
    for (at::Tensor* t :
         {&part.logits, &part.tokens, &part.mask_ratio, &part.remask_temperature, &part.sampling_temperature,
          &part.guidance, &part.seed, &part.image_index, &part.hidden_at_start})
      *t = t->narrow(0, first, count);
    const DecodeStepResult r = run(part);
    EXPECT_CLOSE(r.proposals, whole.proposals.narrow(0, first, count), 0);
    EXPECT_CLOSE(r.tokens, whole.tokens.narrow(0, first, count), 0);
    EXPECT_CLOSE(r.confidence, whole.confidence.narrow(0, first, count), 0);
  }
}

TEST_P(DecodeStep, RevealedTokensStayAndTheirLogitsAreNotRead) {
  DecodeStepInput in = make_case(3, 32, 64, 0.9);
  in.tokens = at::where(at::arange(32).remainder(2).eq(0), at::arange(32), 64).expand({3, 32}).contiguous();
  in.logits = in.logits.masked_fill(in.tokens.ne(64).unsqueeze(2), NAN);
  const DecodeStepResult r = run(in);
  const at::Tensor revealed = in.tokens.ne(64);
  EXPECT_CLOSE(r.tokens.masked_select(revealed), in.tokens.masked_select(revealed), 0);
  EXPECT_CLOSE(r.proposals.masked_select(revealed), in.tokens.masked_select(revealed), 0);
  EXPECT_TRUE(r.confidence.masked_select(revealed).eq(INFINITY).all().item<bool>());
  EXPECT_TRUE(r.log_prob.masked_select(revealed).eq(0).all().item<bool>());
  EXPECT_TRUE(r.proposals.lt(64).all().item<bool>());
}

TEST_P(DecodeStep, UnconditionalLogitsAreNotReadWithoutGuidance) {
  DecodeStepInput in = make_case(2, 9, 33);
  const DecodeStepResult plain = run(in);
  in.logits_uncond = at::full_like(in.logits, NAN);
  expect_same(run(in), plain);
}

TEST_P(DecodeStep, TemperatureLimits) {
  DecodeStepInput in = make_case(1, 64, 33);
  const at::Tensor best = in.logits.argmax(2);
  for (float cold : {0.0f, 1e-4f, -1.0f}) {
    in.sampling_temperature = floats({cold});
    EXPECT_CLOSE(run(in).proposals, best, 0);
  }
  in.sampling_temperature = floats({1.01e-3f});  // margins of a logit over 1e-3 beat the noise almost surely
  EXPECT_GT(run(in).proposals.eq(best).sum().item<int64_t>(), 58);
  in.sampling_temperature = floats({1e6f});  // uniform: as with constant logits
  const at::Tensor hot = run(in).proposals;
  in.logits = at::zeros_like(in.logits);
  EXPECT_CLOSE(hot, run(in).proposals, 0);
}

TEST_P(DecodeStep, TiesGoToTheLowerId) {
  DecodeStepInput in = make_case(1, 4, 1024);
  in.logits = at::zeros({1, 4, 1024});
  in.logits[0][1].slice(0, 700, 900).fill_(2.0);
  in.logits[0][2][1023].fill_(5.0);
  in.logits[0][2][32].fill_(5.0);
  in.logits[0][3][31].fill_(5.0);
  in.logits[0][3][30].fill_(5.0);
  in.sampling_temperature = floats({0.0f});
  EXPECT_CLOSE(run(in).proposals, ids({0, 700, 32, 30}).view({1, 4}), 0);
  in.sampling_temperature = floats({1.0f});
  in.token_noise = at::zeros({1, 4, 1024});
  EXPECT_CLOSE(run(in).proposals, ids({0, 700, 32, 30}).view({1, 4}), 0);
}

TEST_P(DecodeStep, MinusInfinityIsNeverDrawnAlsoUnderGuidance) {
  DecodeStepInput in = make_case(4, 256, 33);
  const at::Tensor allowed = at::arange(33).remainder(3).eq(1);
  in.logits = in.logits.masked_fill(~allowed, -INFINITY);
  EXPECT_TRUE(run(in).proposals.remainder(3).eq(1).all().item<bool>());
  in.logits_uncond = in.logits;  // -inf - -inf must not become NaN
  in.guidance = at::full({4}, 2.0, at::kFloat);
  const DecodeStepResult r = run(in);
  EXPECT_TRUE(r.proposals.remainder(3).eq(1).all().item<bool>());
  EXPECT_TRUE(r.log_prob.isfinite().all().item<bool>());
}

TEST_P(DecodeStep, NothingHiddenChangesNothing) {
  for (RemaskRule rule : {RemaskRule::kAdanat, RemaskRule::kMaskgit, RemaskRule::kOrder}) {
    DecodeStepInput in = make_case(2, 8, 16, 1.0);
    in.rule = rule;
    in.priority = at::arange(8);
    in.tokens = at::arange(16).view({2, 8});
    EXPECT_CLOSE(run(in).tokens, in.tokens, 0);
    in.hidden_at_start.zero_();
    EXPECT_CLOSE(run(in).tokens, in.tokens, 0);
  }
}

TEST_P(DecodeStep, AdanatCounts) {
  for (double m : {0.0, 0.1, 0.5, 0.999, 1.0, 3.0}) {
    DecodeStepInput in = make_case(2, 100, 16, m);
    const int64_t k = std::min<int64_t>(static_cast<int64_t>(100 * static_cast<float>(m)), 99);
    EXPECT_EQ(count_masked(run(in).tokens, 16), 2 * k) << m;
    in.mask_ratio = in.mask_ratio.to(at::kDouble);
    EXPECT_EQ(count_masked(run(in).tokens, 16), 2 * k) << m;
  }
}

// floor(H m) where float32 and float64 disagree: the strict rules take the first, kMaskgit the second.
TEST_P(DecodeStep, CountsUseTheRightPrecision) {
  int tried = 0;
  for (int64_t hidden = 3; hidden < 300 && tried < 12; ++hidden) {
    for (int64_t k = 2; k < hidden - 1 && tried < 12; ++k) {
      const double m = static_cast<double>(k) / static_cast<double>(hidden);
      const auto narrow =
          static_cast<int64_t>(std::floor(static_cast<float>(hidden) * static_cast<float>(m)));
      const auto wide = static_cast<int64_t>(std::floor(static_cast<double>(hidden) * m));
      if (narrow == wide) continue;
      ++tried;
      DecodeStepInput in = make_case(1, hidden, 4);
      in.mask_ratio = at::full({1}, m, at::kDouble);
      EXPECT_EQ(count_masked(run(in).tokens, 4), narrow) << hidden << " " << k;
      in.rule = RemaskRule::kMaskgit;
      EXPECT_EQ(count_masked(run(in).tokens, 4), wide) << hidden << " " << k;
    }
  }
  // float(m) * H in float64 falls short of the integer that float32 rounds to
  for (int64_t hidden = 3; hidden < 300 && tried < 24; ++hidden) {
    for (int64_t k = 2; k < hidden - 1 && tried < 24; ++k) {
      const float m = static_cast<float>(k) / static_cast<float>(hidden);
      const auto narrow = static_cast<int64_t>(std::floor(static_cast<float>(hidden) * m));
      const auto wide =
          static_cast<int64_t>(std::floor(static_cast<double>(hidden) * static_cast<double>(m)));
      if (narrow == wide) continue;
      ++tried;
      DecodeStepInput in = make_case(1, hidden, 4);
      in.mask_ratio = floats({m});
      EXPECT_EQ(count_masked(run(in).tokens, 4), narrow) << hidden << " " << k;
      in.rule = RemaskRule::kMaskgit;
      EXPECT_EQ(count_masked(run(in).tokens, 4), wide) << hidden << " " << k;
    }
  }
  EXPECT_GE(tried, 12);
}

TEST_P(DecodeStep, AdanatRevealsNothingWhereKReachesTheHiddenCount) {
  DecodeStepInput in = make_case(1, 10, 16, 0.3);
  in.tokens.narrow(1, 0, 7).fill_(5);  // 3 hidden, k = 3
  EXPECT_CLOSE(run(in).tokens, in.tokens, 0);
  in.mask_ratio = floats({0.2f});
  EXPECT_EQ(count_masked(run(in).tokens, 16), 2);
}

TEST_P(DecodeStep, CountsFollowTheHiddenAtStartOfAnEdit) {
  DecodeStepInput in = make_case(1, 100, 16, 0.5);
  in.tokens.narrow(1, 0, 80).fill_(5);
  in.hidden_at_start = ids({20});
  EXPECT_EQ(count_masked(run(in).tokens, 16), 10);
  in.rule = RemaskRule::kMaskgit;
  EXPECT_EQ(count_masked(run(in).tokens, 16), 10);
}

TEST_P(DecodeStep, MaskgitKeepsAtLeastOne) {
  DecodeStepInput in = make_case(2, 64, 16, 0.0);
  in.rule = RemaskRule::kMaskgit;
  EXPECT_EQ(count_masked(run(in).tokens, 16), 2);
  in.mask_ratio.fill_(1.0);
  EXPECT_EQ(count_masked(run(in).tokens, 16), 2 * 63);
  in.tokens.narrow(1, 0, 63).fill_(3);  // one hidden stays so
  EXPECT_EQ(count_masked(run(in).tokens, 16), 2);
}

TEST_P(DecodeStep, OrderKeepsTheLatestHidden) {
  DecodeStepInput in = make_case(1, 8, 16, 0.5);
  in.rule = RemaskRule::kOrder;
  in.priority = ids({3, 0, 7, 1, 6, 2, 5, 4});
  const at::Tensor tokens = run(in).tokens;
  EXPECT_CLOSE(tokens.eq(16), in.priority->ge(4).unsqueeze(0), 0);
  in.remask_temperature.fill_(50.0);  // no noise in this rule
  EXPECT_CLOSE(run(in).tokens, tokens, 0);
}

TEST_P(DecodeStep, StridesOfAllKinds) {
  const DecodeStepInput in = to(make_case(3, 17, 33), GetParam());  // a copy would lose the strides
  const DecodeStepResult expected = run(in);
  DecodeStepInput sliced = in;  // last stride 1: read in place
  sliced.logits = at::full({3, 18, 40}, NAN, in.logits.options());
  sliced.logits = sliced.logits.narrow(1, 1, 17).narrow(2, 0, 33);
  sliced.logits.copy_(in.logits);
  expect_same(run(sliced), expected);
  DecodeStepInput turned = in;
  turned.logits = in.logits.permute({2, 1, 0}).contiguous().permute({2, 1, 0});
  turned.tokens = in.tokens.t().contiguous().t();
  turned.seed = at::stack({in.seed, in.seed}, 1).select(1, 0);
  turned.mask_ratio = at::stack({in.mask_ratio, in.mask_ratio}, 1).select(1, 0);
  expect_same(run(turned), expected);
  // As the sampler gives a step that is the same for all: one row of logits, seen by every sample.
  DecodeStepInput shared = in;
  shared.logits = in.logits.narrow(0, 1, 1).expand({3, 17, 33});
  shared.logits_uncond = in.logits.narrow(0, 0, 1).expand({3, 17, 33});
  shared.guidance = at::full({3}, 1.5, in.guidance.options());
  DecodeStepInput copied = shared;
  copied.logits = shared.logits.contiguous();
  copied.logits_uncond = shared.logits_uncond->contiguous();
  expect_same(run(shared), run(copied));
}

TEST_P(DecodeStep, LowPrecisionLogitsAreTheirFloatValues) {
  for (auto type : {at::kBFloat16, at::kHalf}) {
    DecodeStepInput in = make_case(2, 17, 257);
    in.logits = in.logits.to(type);
    in.logits_uncond = input_float("kernels.uncond", {2, 17, 257}, 2.0).to(type);
    in.guidance = floats({0.0f, 1.5f});
    DecodeStepInput wide = in;
    wide.logits = in.logits.to(at::kFloat);
    wide.logits_uncond = in.logits_uncond->to(at::kFloat);
    expect_same(run(in), run(wide));
  }
}

TEST_P(DecodeStep, EmptyBatches) {
  EXPECT_EQ(run(make_case(0, 8, 16)).tokens.sizes(), (at::IntArrayRef{0, 8}));
  EXPECT_EQ(run(make_case(2, 0, 16)).confidence.sizes(), (at::IntArrayRef{2, 0}));
}

TEST_P(DecodeStep, BadRowsAreErrorsOnTheCpuAndMarkersOnAGpu) {
  struct Row {
    const char* what;
    float value;
    bool whole;
  };
  for (const Row& bad :
       {Row{"NaN", NAN, false}, Row{"+inf", INFINITY, false}, Row{"all -inf", -INFINITY, true}}) {
    SCOPED_TRACE(bad.what);
    for (float temperature : {0.0f, 1.0f}) {
      DecodeStepInput in = make_case(2, 8, 33, 0.25);
      in.sampling_temperature.fill_(temperature);
      if (bad.whole)
        in.logits[1][5].fill_(bad.value);
      else
        in.logits[1][5][32].fill_(bad.value);
      if (GetParam() == at::kCPU) {
        try {
          run(in);
          ADD_FAILURE() << "no error";
        } catch (const c10::Error& e) {
          EXPECT_NE(std::string(e.what()).find("sample 1, position 5"), std::string::npos) << e.what();
        }
      } else {
        const DecodeStepResult r = run(in);
        EXPECT_EQ(r.proposals[1][5].item<int64_t>(), 33);
        EXPECT_TRUE(std::isnan(r.confidence[1][5].item<float>()));
        EXPECT_TRUE(r.proposals[0].lt(33).all().item<bool>());
      }
    }
  }
}

template <class Change>
void expect_error(Change change, const std::string& text) {
  DecodeStepInput in = make_case(2, 8, 16);
  change(in);
  try {
    decode_step(in);
    ADD_FAILURE() << "no error, expected: " << text;
  } catch (const c10::Error& e) {
    EXPECT_NE(std::string(e.what_without_backtrace()).find(text), std::string::npos)
        << e.what_without_backtrace();
  }
}

TEST(DecodeStepErrors, NameTheInputAndBothSides) {
  using In = DecodeStepInput;
  expect_error([](In& i) { i.logits = i.logits[0]; }, "logits must be (B, N, V)");
  expect_error([](In& i) { i.logits = i.logits.to(at::kDouble); }, "got Double");
  expect_error([](In& i) { i.logits_uncond = i.logits.narrow(2, 0, 15); },
               "logits_uncond must be like logits");
  expect_error([](In& i) { i.logits_uncond = i.logits.to(at::kHalf); }, "got [2, 8, 16] Half");
  expect_error([](In& i) { i.tokens = i.tokens.to(at::kInt); }, "tokens must be (2, 8) int64");
  expect_error([](In& i) { i.mask_ratio = at::ones({3}); },
               "mask_ratio must be (2) float32 or float64, got [3]");
  expect_error([](In& i) { i.guidance = at::ones({2}, at::kDouble); }, "guidance must be (2) float32");
  expect_error([](In& i) { i.step = at::zeros({2}, at::kLong); }, "step must be (1) int64");
  expect_error([](In& i) { i.rule = static_cast<RemaskRule>(3); }, "got 3");
  expect_error([](In& i) { i.rule = RemaskRule::kOrder; }, "needs priority");
  expect_error([](In& i) { i.priority = at::arange(7); }, "priority must be (8) int64");
  expect_error([](In& i) { i.token_noise = at::zeros({2, 8, 15}); }, "token_noise must be [2, 8, 16]");
  expect_error([](In& i) { i.confidence_noise = at::zeros({2, 7}); }, "confidence_noise must be [2, 8]");
  expect_error([](In& i) { i.tokens[1][3] = 17; }, "sample 1, position 3 must be in [0, 16], got 17");
  expect_error([](In& i) { i.tokens[0][0] = -1; }, "got -1");
  expect_error([](In& i) { i.hidden_at_start[1] = 9; },
               "hidden_at_start of sample 1 must be in [0, 8], got 9");
  expect_error([](In& i) { i.image_index[0] = int64_t{1} << 32; }, "image_index of sample 0");
  expect_error([](In& i) { i.step[0] = 65536; }, "step must be in [0, 65536), got 65536");
  expect_error([](In& i) { i.mask_ratio[1] = -0.5; }, "mask_ratio of sample 1");
  expect_error([](In& i) { i.mask_ratio[1] = NAN; }, "mask_ratio of sample 1");
  expect_error([](In& i) { i.sampling_temperature[0] = INFINITY; }, "sampling_temperature of sample 0");
  expect_error([](In& i) { i.guidance[0] = NAN; }, "guidance of sample 0");
  expect_error([](In& i) { i.confidence_noise = at::full({2, 8}, NAN); }, "sample 0, position 0");
  expect_error([](In& i) { i.token_noise = at::full({2, 8, 16}, NAN); }, "sample 0, position 0");
  expect_error([](In& i) { i.tokens = i.tokens.to(at::kMeta); }, "tokens is on meta");
}

TEST(DecodeStepMeta, ShapesWithoutValues) {
  DecodeStepInput in = to(make_case(2, 8, 16), at::kMeta);
  const DecodeStepResult r = decode_step(in);
  EXPECT_TRUE(r.tokens.is_meta());
  EXPECT_EQ(r.tokens.sizes(), (at::IntArrayRef{2, 8}));
  EXPECT_EQ(r.proposals.scalar_type(), at::kLong);
  EXPECT_EQ(r.confidence.scalar_type(), at::kFloat);
}

TEST(DecodeStepThreads, SameBitsWithOneAndTwo) {
  const DecodeStepInput in = make_case(4, 64, 257);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const DecodeStepResult one = decode_step(in);
  at::set_num_threads(2);
  const DecodeStepResult two = decode_step(in);
  at::set_num_threads(before);
  expect_same(one, two);
}

}  // namespace
}  // namespace adanat::kernels::testing
