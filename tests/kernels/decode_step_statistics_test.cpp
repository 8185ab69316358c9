// The draws against the mathematics, at fixed seeds: agreement between versions would not show a wrong
// distribution.
#include "decode_step_case.h"

namespace adanat::kernels::testing {
namespace {

class DecodeStepDraws : public OnDevice {
 protected:
  // `count` draws from softmax(logits / temperature), spread over samples of 256 positions.
  at::Tensor draws(const at::Tensor& logits, float temperature, int64_t count, int64_t seed) const {
    const int64_t batch = count / 256, vocab = logits.size(0);
    DecodeStepInput in = make_case_with(logits.expand({batch, 256, vocab}));
    in.sampling_temperature.fill_(temperature);
    in.seed.fill_(seed);
    return run(in).proposals;
  }
};
ADANAT_ON_DEVICES(DecodeStepDraws);

double chi_square(const at::Tensor& ids, const at::Tensor& p) {
  const double count = static_cast<double>(ids.numel());
  const at::Tensor observed = at::bincount(ids.flatten(), {}, p.size(0)).to(at::kDouble);
  const at::Tensor possible = p > 0;
  EXPECT_EQ(observed.masked_select(~possible).sum().item<double>(), 0) << "an impossible code was drawn";
  const at::Tensor expected = (p * count).masked_select(possible);
  return ((observed.masked_select(possible) - expected).square() / expected).sum().item<double>();
}

// 7 possible codes: 6 degrees of freedom, critical value 38.3 at 1e-6.
TEST_P(DecodeStepDraws, FollowTheSoftmaxOfTheTemperedLogits) {
  const at::Tensor logits = floats({0.f, 1.f, -1.f, -INFINITY, 2.f, 0.5f, -2.f, 1.5f});
  for (float temperature : {0.5f, 1.0f, 2.5f}) {
    for (int64_t seed : {1, 2, 3}) {
      const at::Tensor ids = draws(logits, temperature, 256 * 400, seed);
      const at::Tensor p = at::softmax(logits.to(at::kDouble) / temperature, 0);
      EXPECT_LT(chi_square(ids, p), 38.3) << "temperature " << temperature << " seed " << seed;
    }
  }
}

// 1024 equal codes: 1023 degrees of freedom, standard deviation 45; six of them either way (too even is wrong
// too).
TEST_P(DecodeStepDraws, AreUniformOverManyEqualCodes) {
  const double x =
      chi_square(draws(at::zeros({1024}), 1.0f, 256 * 400, 5), at::full({1024}, 1.0 / 1024, at::kDouble));
  EXPECT_GT(x, 1023 - 271);
  EXPECT_LT(x, 1023 + 271);
}

// Pairs of (this, other) over 4 x 4 cells: 9 degrees of freedom for independence, critical value 44.8 at
// 1e-6.
double pair_chi_square(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor cells = at::bincount((a * 4 + b).flatten(), {}, 16).to(at::kDouble).view({4, 4});
  const at::Tensor expected = cells.sum(1, true) * cells.sum(0, true) / cells.sum();
  return ((cells - expected).square() / expected).sum().item<double>();
}

TEST_P(DecodeStepDraws, AreIndependentAcrossPositionsImagesSeedsAndSteps) {
  const int64_t batch = 400;
  DecodeStepInput in = make_case_with(floats({0.f, 0.5f, 1.f, -0.5f}).expand({batch, 256, 4}));
  const at::Tensor ids = run(in).proposals;
  EXPECT_LT(pair_chi_square(ids.narrow(1, 0, 255), ids.narrow(1, 1, 255)), 44.8) << "neighbouring positions";
  EXPECT_LT(pair_chi_square(ids.narrow(1, 0, 240), ids.narrow(1, 16, 240)), 44.8) << "rows of the grid";
  EXPECT_LT(pair_chi_square(ids.narrow(0, 0, 399), ids.narrow(0, 1, 399)), 44.8) << "neighbouring images";
  in.seed.add_(1);
  EXPECT_LT(pair_chi_square(ids, run(in).proposals), 44.8) << "neighbouring seeds";
  in.seed.sub_(1);
  in.step.add_(1);
  EXPECT_LT(pair_chi_square(ids, run(in).proposals), 44.8) << "neighbouring steps";
}

// The confidence noise: mean Euler's constant, variance pi^2/6, and independent of the token's own noise.
TEST_P(DecodeStepDraws, ConfidenceNoiseIsGumbelAndItsOwn) {
  const int64_t batch = 400;
  const DecodeStepInput in = make_case_with(at::zeros({batch, 256, 2}));
  const DecodeStepResult r = run(in);
  const at::Tensor noise = (r.confidence - r.log_prob).to(at::kDouble);
  const double count = static_cast<double>(noise.numel()), pi = 3.14159265358979;
  EXPECT_NEAR(noise.mean().item<double>(), 0.5772156649, 5 * std::sqrt(pi * pi / 6 / count));
  EXPECT_NEAR(noise.var().item<double>(), pi * pi / 6, 0.04);
  const at::Tensor zero = r.proposals.eq(0);
  const double difference =
      noise.masked_select(zero).mean().item<double>() - noise.masked_select(~zero).mean().item<double>();
  EXPECT_NEAR(difference, 0, 5 * std::sqrt(pi * pi / 6 * 4 / count));
}

}  // namespace
}  // namespace adanat::kernels::testing
