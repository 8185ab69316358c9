#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/decode_step_impl.h"
#include "kernels/decode_step_row.h"
#include "kernels/decode_step_rules.h"
#include "kernels/philox.h"

namespace adanat::kernels {
namespace {

constexpr float kRevealed = std::numeric_limits<float>::infinity();

// One sample's settings, read once.
struct Sample {
  double mask_ratio;
  float mask_ratio_f32, remask_temperature, sampling_temperature, guidance;
  uint64_t seed;
  uint32_t image;
  int64_t hidden_at_start;
};

// Raw views of the input. The tensors that back them live in decode_step_cpu.
struct View {
  int64_t batch, positions, vocab;
  const int64_t* tokens;
  uint32_t step;
  std::vector<Sample> samples;
  const int64_t* priority = nullptr;
  const float* confidence_noise = nullptr;
  RemaskRule rule;
};

uint32_t checked_step(int64_t step) {
  TORCH_CHECK(step >= 0 && step < (1 << 16), "decode_step: step must be in [0, 65536), got ", step);
  return static_cast<uint32_t>(step);
}

uint32_t checked_image(int64_t image, int64_t sample) {
  TORCH_CHECK(image >= 0 && image < (int64_t{1} << 32), "decode_step: image_index of sample ", sample,
              " must be in [0, 2^32), got ", image);
  return static_cast<uint32_t>(image);
}

float checked_action(float value, const char* name, int64_t sample) {
  TORCH_CHECK(std::isfinite(value), "decode_step: ", name, " of sample ", sample, " must be finite, got ",
              value);
  return value;
}

std::vector<Sample> read_samples(const DecodeStepInput& in) {
  const int64_t batch = in.logits.size(0), positions = in.logits.size(1);
  const at::Tensor remask = in.remask_temperature.contiguous(),
                   sampling = in.sampling_temperature.contiguous(), guidance = in.guidance.contiguous(),
                   seed = in.seed.contiguous(), image = in.image_index.contiguous(),
                   hidden = in.hidden_at_start.contiguous(), ratio = in.mask_ratio.contiguous();
  const bool ratio_is_double = ratio.scalar_type() == at::kDouble;
  std::vector<Sample> samples(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    Sample& s = samples[static_cast<size_t>(b)];
    s.mask_ratio = ratio_is_double ? ratio.const_data_ptr<double>()[b] : ratio.const_data_ptr<float>()[b];
    s.mask_ratio_f32 = static_cast<float>(s.mask_ratio);
    TORCH_CHECK(std::isfinite(s.mask_ratio) && s.mask_ratio >= 0, "decode_step: mask_ratio of sample ", b,
                " must be finite and >= 0, got ", s.mask_ratio);
    s.remask_temperature = checked_action(remask.const_data_ptr<float>()[b], "remask_temperature", b);
    s.sampling_temperature = checked_action(sampling.const_data_ptr<float>()[b], "sampling_temperature", b);
    s.guidance = checked_action(guidance.const_data_ptr<float>()[b], "guidance", b);
    s.seed = static_cast<uint64_t>(seed.const_data_ptr<int64_t>()[b]);
    s.image = checked_image(image.const_data_ptr<int64_t>()[b], b);
    s.hidden_at_start = hidden.const_data_ptr<int64_t>()[b];
    TORCH_CHECK(s.hidden_at_start >= 0 && s.hidden_at_start <= positions,
                "decode_step: hidden_at_start of sample ", b, " must be in [0, ", positions, "], got ",
                s.hidden_at_start);
  }
  return samples;
}

LogitType logit_type(const at::Tensor& logits) {
  if (logits.scalar_type() == at::kFloat) return LogitType::kFloat32;
  return logits.scalar_type() == at::kBFloat16 ? LogitType::kBFloat16 : LogitType::kFloat16;
}

const void* row_pointer(const at::Tensor& x, int64_t b, int64_t n) {
  return static_cast<const char*>(x.const_data_ptr()) +
         (b * x.stride(0) + n * x.stride(1)) * static_cast<int64_t>(x.element_size());
}

// Steps 1 to 4: proposals, log-probabilities, confidences of every position. Rows are independent.
void draw_rows(const View& view, const at::Tensor& logits, const at::Tensor& uncond, const at::Tensor& noise,
               DecodeStepResult& out) {
  int64_t* proposals = out.proposals.mutable_data_ptr<int64_t>();
  float* confidence = out.confidence.mutable_data_ptr<float>();
  float* log_prob = out.log_prob.mutable_data_ptr<float>();
  const RowFunction draw_row = row_function(best_isa());
  const int64_t rows = view.batch * view.positions;
  std::atomic<int64_t> first_bad{rows};
  at::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(row_scratch_size(view.vocab)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / view.positions, n = i % view.positions;
      if (view.tokens[i] != view.vocab) {
        proposals[i] = view.tokens[i];
        confidence[i] = kRevealed;
        log_prob[i] = 0.0f;
        continue;
      }
      const Sample& sample = view.samples[static_cast<size_t>(b)];
      RowInput row;
      row.cond = row_pointer(logits, b, n);
      if (uncond.defined() && sample.guidance != 0) row.uncond = row_pointer(uncond, b, n);
      row.type = logit_type(logits);
      row.vocab = view.vocab;
      row.guidance = sample.guidance;
      row.temperature = sample.sampling_temperature;
      if (noise.defined()) row.token_noise = static_cast<const float*>(row_pointer(noise, b, n));
      row.seed = sample.seed;
      row.position = static_cast<uint32_t>(n);
      row.image = sample.image;
      row.step = view.step;
      const RowDraw drawn = draw_row(row, scratch.data());
      proposals[i] = drawn.id;
      log_prob[i] = drawn.log_prob;
      if (view.rule == RemaskRule::kOrder) {
        confidence[i] = -static_cast<float>(view.priority[n]);
      } else {
        const float g = view.confidence_noise != nullptr
                            ? view.confidence_noise[i]
                            : confidence_gumbel(sample.seed, row.position, sample.image, view.step);
        confidence[i] = add_rn(drawn.log_prob, mul_rn(sample.remask_temperature, g));
      }
      if (drawn.id < 0 || std::isnan(confidence[i])) {
        int64_t seen = first_bad.load();
        while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
        }
      }
    }
  });
  const int64_t bad = first_bad.load();
  const int64_t n = std::max<int64_t>(view.positions, 1);
  TORCH_CHECK(bad == rows,
              "decode_step: NaN, +inf or nothing but -inf among the guided logits, or NaN in the ",
              "noise, of sample ", bad / n, ", position ", bad % n);
}

// Step 5 for one sample: the cut, and everything below it is masked again.
void remask_sample(const View& view, int64_t b, const int64_t* proposals, const float* confidence,
                   int64_t* tokens, std::vector<float>& sorted) {
  const Sample& sample = view.samples[static_cast<size_t>(b)];
  const int64_t n = view.positions;
  const int64_t hidden = n - std::count(confidence, confidence + n, kRevealed);
  const bool maskgit = view.rule == RemaskRule::kMaskgit;
  const int64_t k = maskgit ? maskgit_bound(sample.mask_ratio, sample.hidden_at_start, hidden)
                            : strict_bound(sample.mask_ratio_f32, sample.hidden_at_start, n);
  if (k < 0) {
    std::copy(proposals, proposals + n, tokens);
    return;
  }
  sorted.assign(confidence, confidence + n);
  std::nth_element(sorted.begin(), sorted.begin() + k, sorted.end());
  const float cut = sorted[static_cast<size_t>(k)];
  for (int64_t i = 0; i < n; ++i) {
    const bool masked = maskgit ? confidence[i] <= cut : confidence[i] < cut;
    tokens[i] = masked ? view.vocab : proposals[i];
  }
}

DecodeStepResult decode_step_cpu(const DecodeStepInput& in) {
  DecodeStepResult out = empty_decode_step_result(in);
  const at::Tensor logits = rows_contiguous(in.logits), tokens = in.tokens.contiguous();
  const at::Tensor uncond = in.logits_uncond ? rows_contiguous(*in.logits_uncond) : at::Tensor();
  const at::Tensor noise = in.token_noise ? rows_contiguous(*in.token_noise) : at::Tensor();
  const at::Tensor confidence_noise = in.confidence_noise ? in.confidence_noise->contiguous() : at::Tensor();
  const at::Tensor priority = in.priority ? in.priority->contiguous() : at::Tensor();

  View view;
  view.batch = logits.size(0);
  view.positions = logits.size(1);
  view.vocab = logits.size(2);
  view.tokens = tokens.const_data_ptr<int64_t>();
  view.step = checked_step(in.step.const_data_ptr<int64_t>()[0]);
  view.samples = read_samples(in);
  view.rule = in.rule;
  if (priority.defined()) view.priority = priority.const_data_ptr<int64_t>();
  if (confidence_noise.defined()) view.confidence_noise = confidence_noise.const_data_ptr<float>();
  for (int64_t i = 0; i < view.batch * view.positions; ++i) {
    TORCH_CHECK(view.tokens[i] >= 0 && view.tokens[i] <= view.vocab, "decode_step: token of sample ",
                i / view.positions, ", position ", i % view.positions, " must be in [0, ", view.vocab,
                "], got ", view.tokens[i]);
  }

  draw_rows(view, logits, uncond, noise, out);
  const int64_t* proposals = out.proposals.const_data_ptr<int64_t>();
  const float* confidence = out.confidence.const_data_ptr<float>();
  int64_t* masked = out.tokens.mutable_data_ptr<int64_t>();
  at::parallel_for(0, view.batch, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> sorted;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * view.positions;
      remask_sample(view, b, proposals + at, confidence + at, masked + at, sorted);
    }
  });
  return out;
}

}  // namespace

at::Tensor token_noise(const at::Tensor& seed, const at::Tensor& image_index, int64_t step, int64_t positions,
                       int64_t vocab) {
  const uint32_t checked = checked_step(step);
  const at::Tensor seeds = seed.contiguous(), images = image_index.contiguous();
  const int64_t batch = seeds.numel();
  TORCH_CHECK(images.numel() == batch, "token_noise: ", batch, " seeds, ", images.numel(), " image indices");
  at::Tensor noise = at::empty({batch, positions, vocab}, at::TensorOptions(at::kFloat));
  float* out = noise.mutable_data_ptr<float>();
  for (int64_t b = 0; b < batch; ++b) {
    const auto key = static_cast<uint64_t>(seeds.const_data_ptr<int64_t>()[b]);
    const uint32_t image = checked_image(images.const_data_ptr<int64_t>()[b], b);
    for (int64_t n = 0; n < positions; ++n) {
      for (int64_t v = 0; v < vocab; ++v) {
        const Philox4 words =
            draw(key, static_cast<uint32_t>(v / 4), static_cast<uint32_t>(n), image, checked, Stream::kToken);
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
        *out++ = gumbel(word[v % 4]);
      }
    }
  }
  return noise;
}

at::Tensor confidence_noise(const at::Tensor& seed, const at::Tensor& image_index, int64_t step,
                            int64_t positions) {
  const uint32_t checked = checked_step(step);
  const at::Tensor seeds = seed.contiguous(), images = image_index.contiguous();
  const int64_t batch = seeds.numel();
  TORCH_CHECK(images.numel() == batch, "confidence_noise: ", batch, " seeds, ", images.numel(),
              " image indices");
  at::Tensor noise = at::empty({batch, positions}, at::TensorOptions(at::kFloat));
  float* out = noise.mutable_data_ptr<float>();
  for (int64_t b = 0; b < batch; ++b) {
    const auto key = static_cast<uint64_t>(seeds.const_data_ptr<int64_t>()[b]);
    const uint32_t image = checked_image(images.const_data_ptr<int64_t>()[b], b);
    for (int64_t n = 0; n < positions; ++n)
      *out++ = confidence_gumbel(key, static_cast<uint32_t>(n), image, checked);
  }
  return noise;
}

}  // namespace adanat::kernels

TORCH_LIBRARY_IMPL(adanat, CPU, m) {
  using namespace adanat::kernels;
  m.impl("decode_step", TORCH_FN((as_operator<decode_step_cpu>)));
}
