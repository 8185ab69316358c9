#pragma once
// Inputs for the decode_step tests.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <string>

#include "kernels/decode_step.h"
#include "kernels/load.h"
#include "support/support.h"

namespace adanat::kernels::testing {

using adanat::testing::input_float;

inline at::Tensor floats(std::vector<float> values) {
  return at::tensor(values);
}
inline at::Tensor ids(std::vector<int64_t> values) {
  return at::tensor(values);
}

// Everything hidden, no guidance, one seed, images 0..B-1.
inline DecodeStepInput make_case_with(at::Tensor logits, double mask_ratio = 0.5) {
  const int64_t batch = logits.size(0), positions = logits.size(1), vocab = logits.size(2);
  DecodeStepInput in;
  in.logits = std::move(logits);
  in.tokens = at::full({batch, positions}, vocab, at::kLong);
  in.mask_ratio = at::full({batch}, mask_ratio, at::kFloat);
  in.remask_temperature = at::full({batch}, 1.0, at::kFloat);
  in.sampling_temperature = at::full({batch}, 1.0, at::kFloat);
  in.guidance = at::zeros({batch}, at::kFloat);
  in.seed = at::full({batch}, int64_t{20240907}, at::kLong);
  in.image_index = at::arange(batch, at::kLong);
  in.step = at::full({1}, int64_t{2}, at::kLong);
  in.hidden_at_start = at::full({batch}, positions, at::kLong);
  return in;
}

// The same with logits of standard deviation about 1.7.
inline DecodeStepInput make_case(int64_t batch, int64_t positions, int64_t vocab, double mask_ratio = 0.5) {
  return make_case_with(input_float("kernels.logits", {batch, positions, vocab}, 3.0), mask_ratio);
}

inline DecodeStepInput to(DecodeStepInput in, at::Device device) {
  for (at::Tensor* t :
       {&in.logits, &in.tokens, &in.mask_ratio, &in.remask_temperature, &in.sampling_temperature,
        &in.guidance, &in.seed, &in.image_index, &in.step, &in.hidden_at_start})
    *t = t->to(device);
  for (std::optional<at::Tensor>* t :
       {&in.logits_uncond, &in.priority, &in.token_noise, &in.confidence_noise})
    if (*t) *t = (*t)->to(device);
  return in;
}

// Runs on the device and brings the results back.
inline DecodeStepResult run_on(const DecodeStepInput& in, at::Device device = at::kCPU) {
  DecodeStepResult r = decode_step(to(in, device));
  return {r.tokens.cpu(), r.proposals.cpu(), r.confidence.cpu(), r.log_prob.cpu()};
}

inline bool has_cuda() {
  return load_cuda_ops() && at::globalContext().hasCUDA();
}

// Tests over devices: the CUDA row shows as skipped where there is none.
class OnDevice : public ::testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    if (GetParam() == at::kCUDA && !has_cuda()) GTEST_SKIP() << "no CUDA device";
  }
  DecodeStepResult run(const DecodeStepInput& in) const { return run_on(in, at::Device(GetParam())); }
};

inline std::string device_name(const ::testing::TestParamInfo<at::DeviceType>& info) {
  return info.param == at::kCUDA ? "cuda" : "cpu";
}

#define ADANAT_ON_DEVICES(suite) \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, ::testing::Values(at::kCPU, at::kCUDA), device_name)

inline void expect_same(const DecodeStepResult& a, const DecodeStepResult& b) {
  EXPECT_CLOSE(a.proposals, b.proposals, 0);
  EXPECT_CLOSE(a.tokens, b.tokens, 0);
  EXPECT_CLOSE(a.log_prob, b.log_prob, 0);
  EXPECT_CLOSE(a.confidence, b.confidence, 0);
}

inline int64_t count_masked(const at::Tensor& tokens, int64_t vocab) {
  return tokens.eq(vocab).sum().item<int64_t>();
}

}  // namespace adanat::kernels::testing
