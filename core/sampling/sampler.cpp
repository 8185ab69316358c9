#include "core/sampling/sampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/nonzero.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/base/error.h"

namespace adanat {
namespace {

// What one forward pass hands to the step: features of the conditional rows, logits of both.
struct Forward {
  at::Tensor features;                      // (B, N, D)
  at::Tensor logits;                        // (B, N, V); rows of revealed positions may hold anything
  std::optional<at::Tensor> logits_uncond;  // (B, N, V)
};

// Evaluation mode for a scope, whatever ends it.
class EvaluationMode {
 public:
  explicit EvaluationMode(GeneratorImpl& generator)
      : generator_(generator), was_training_(generator.is_training()) {
    generator_.eval();
  }
  ~EvaluationMode() { generator_.train(was_training_); }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  GeneratorImpl& generator_;
  bool was_training_;
};

at::Tensor repeat_rows(const at::Tensor& one, int64_t count) {
  std::vector<int64_t> sizes = one.sizes().vec();
  sizes[0] = count;
  return one.expand(sizes);
}

// The distinct ids in ascending order, and each row's place among them. Asks the device that the ids lie on.
std::pair<at::Tensor, at::Tensor> distinct_classes(const at::Tensor& ids) {
  auto [distinct, row_of, counts] = at::_unique2(ids, /*sorted=*/true, /*return_inverse=*/true);
  return {distinct, row_of};
}

// The rows of the flat features (R, D) that `hidden` names -> logits (R, V); the other rows are left as they
// came. A block of rows at a time, the last one filled up with row 0: oneDNN compiles a kernel for every
// number of rows that it meets, about a millisecond and half a MiB each, and meets few this way.
at::Tensor logits_of_rows(GeneratorImpl& generator, const at::Tensor& features, const at::Tensor& hidden) {
  constexpr int64_t kBlock = 512, kMultiple = 64;
  const int64_t count = hidden.size(0);
  at::Tensor logits = at::empty({features.size(0), generator.config().codes}, features.options());
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const at::Tensor wanted = hidden.narrow(0, begin, std::min(kBlock, count - begin));
    const int64_t rows = wanted.size(0), multiple = count > kBlock ? kBlock : kMultiple;
    const int64_t extra = (multiple - rows % multiple) % multiple;
    const at::Tensor filled = extra == 0 ? wanted : at::constant_pad_nd(wanted, {0, extra}, 0);
    logits.index_copy_(0, wanted, generator.logits(features.index_select(0, filled)).narrow(0, 0, rows));
  }
  return logits;
}

// tokens (R, N) i64 and their features (R, N, D) -> logits (R, N, V); rows of revealed positions may hold
// anything.
at::Tensor hidden_logits(GeneratorImpl& generator, const at::Tensor& tokens, const at::Tensor& features) {
  if (!tokens.is_cpu())
    return generator.logits(features);  // shapes stay fixed and no count travels to the host
  // The head runs only where tokens are hidden; decode_step does not read the other rows.
  const at::Tensor hidden = at::nonzero(tokens.reshape({-1}) == generator.mask_id()).squeeze(1);
  if (hidden.size(0) == tokens.numel()) return generator.logits(features);
  return logits_of_rows(generator, features.reshape({-1, features.size(2)}), hidden)
      .view({tokens.size(0), tokens.size(1), -1});
}

// Step 0 from the same tokens: a row is fixed by its condition alone.
Forward forward_shared(GeneratorImpl& generator, const SamplerStart& start, bool guided) {
  const SamplerStart::Classes& known = start.classes;
  const auto [distinct, row_of] = known.of.is_same(start.condition) ? std::pair(known.distinct, known.row_of)
                                                                    : distinct_classes(start.condition);
  const at::Tensor conditions = guided ? at::cat({distinct, start.empty}) : distinct;
  const int64_t rows = conditions.size(0), kinds = distinct.size(0), b = start.tokens.size(0);
  const at::Tensor tokens = repeat_rows(start.tokens.narrow(0, 0, 1), rows);
  const at::Tensor features = generator.features(tokens, conditions);
  const at::Tensor logits = hidden_logits(generator, tokens, features);
  Forward out{features.index_select(0, row_of), logits.index_select(0, row_of), std::nullopt};
  // decode_step takes any strides: the one unconditional row is only repeated in name.
  if (guided) out.logits_uncond = repeat_rows(logits.narrow(0, kinds, 1), b);
  return out;
}

Forward forward(GeneratorImpl& generator, const SamplerStart& start, const at::Tensor& tokens, bool guided) {
  const int64_t b = tokens.size(0);
  const at::Tensor all_tokens = guided ? at::cat({tokens, tokens}) : tokens;
  const at::Tensor conditions =
      guided ? at::cat({start.condition, repeat_rows(start.empty, b)}) : start.condition;
  const at::Tensor features = generator.features(all_tokens, conditions);  // (B or 2B, N, D)
  const at::Tensor logits = hidden_logits(generator, all_tokens, features);
  Forward out{features.narrow(0, 0, b), logits.narrow(0, 0, b), std::nullopt};
  if (guided) out.logits_uncond = logits.narrow(0, b, b);
  return out;
}

constexpr const char* kBadLogit =
    "a logit is not a number: the generator's weights are damaged, or too large for this dtype or guidance";

// A NaN logit is no misuse of the operator, but weights that a person should hear about.
kernels::DecodeStepResult decode_or_explain(const kernels::DecodeStepInput& input) {
  try {
    return kernels::decode_step(input);
  } catch (const c10::Error& e) {
    if (std::string_view(e.what_without_backtrace()).find("decode_step: NaN") == std::string_view::npos)
      throw;
    throw RunError(kBadLogit);
  }
}

}  // namespace

SamplerStart::Classes classes_unasked(const at::Tensor& condition, int64_t classes) {
  if (classes <= condition.size(0)) return {condition, at::arange(classes, condition.options()), condition};
  return {condition, condition, at::arange(condition.size(0), condition.options())};
}

SamplerStart plain_start(const GeneratorImpl& generator, const at::Tensor& classes, int64_t seed,
                         const at::Tensor& image_index) {
  const int64_t b = classes.size(0);
  const at::Tensor empty = generator.empty_classes(1);
  const at::Device device = empty.device();
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor condition = classes.to(device);
  SamplerStart::Classes known;
  if (classes.is_cpu()) {
    const auto [distinct, row_of] = distinct_classes(classes);
    known = {condition, distinct.to(device), row_of.to(device)};
  } else {
    known = classes_unasked(condition, generator.config().classes);
  }
  return {.tokens = at::full({b, generator.config().tokens()}, generator.mask_id(), options),
          .condition = condition,
          .empty = empty,
          .seed = at::full({b}, seed, options),
          .image_index = image_index.to(device),
          .same_tokens = true,
          .classes = known};
}

SamplerStart plain_start(const GeneratorImpl& generator, const TextConditions& texts, const at::Tensor& text,
                         int64_t seed, const at::Tensor& image_index) {
  const int64_t b = text.size(0);
  const at::Device device = texts.states.device();
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor condition = texts.states.index_select(0, text.to(device));
  const auto [distinct, row_of] = distinct_classes(text);
  return {.tokens = at::full({b, generator.config().tokens()}, generator.mask_id(), options),
          .condition = condition,
          .empty = texts.empty,
          .seed = at::full({b}, seed, options),
          .image_index = image_index.to(device),
          .same_tokens = true,
          .classes = {condition, texts.states.index_select(0, distinct.to(device)), row_of.to(device)}};
}

at::Tensor sampling_loop(GeneratorImpl& generator, const SamplerStart& start, const Schedule& schedule,
                         const std::optional<at::Tensor>& priority,
                         const std::vector<SamplerObserver*>& observers) {
  const at::NoGradGuard no_grad;
  const EvaluationMode evaluation(generator);
  const int64_t steps = schedule.steps();
  const auto state = schedule.begin(start.tokens.size(0), start.tokens.device());
  const at::Tensor hidden_at_start = (start.tokens == generator.mask_id()).sum(1);

  at::Tensor tokens = start.tokens, proposals = start.tokens;
  for (int64_t t = 0; t < steps; ++t) {
    const bool guided = schedule.known_guidance(t).value_or(1) > 0;
    const bool knows_distinct = start.condition.dim() == 1 || start.classes.of.is_same(start.condition);
    const bool one_row_per_class = t == 0 && start.same_tokens && knows_distinct;
    const Forward pass = one_row_per_class ? forward_shared(generator, start, guided)
                                           : forward(generator, start, tokens, guided);
    schedule.see_tokens(state.get(), tokens);
    const Action action = schedule.next(state.get(), t, pass.features);
    const kernels::DecodeStepResult result = decode_or_explain({
        .logits = pass.logits,
        .logits_uncond = pass.logits_uncond,
        .tokens = tokens,
        .mask_ratio = action.mask_ratio,
        .remask_temperature = action.remask_temperature,
        .sampling_temperature = action.sampling_temperature,
        .guidance = action.guidance,
        .seed = start.seed,
        .image_index = start.image_index,
        .step = at::full({1}, t, start.seed.options()),
        .hidden_at_start = hidden_at_start,
        .rule = schedule.rule(),
        .priority = priority,
        .token_noise = std::nullopt,
        .confidence_noise = std::nullopt,
    });
    proposals = result.proposals;
    // The image is decoded from all proposals: after the last step nothing is masked again.
    const at::Tensor after = t + 1 < steps ? result.tokens : proposals;
    const StepView view{t, steps, tokens, after, proposals, pass.features, action};
    for (SamplerObserver* observer : observers) observer->on_step(view);
    tokens = after;
  }
  return proposals;
}

void check_drawn(const at::Tensor& proposals, int64_t mask_id, DeferredChecks& checks) {
  checks.expect((proposals < mask_id).all(), kBadLogit);
}

void check_drawn(const at::Tensor& proposals, int64_t mask_id) {
  DeferredChecks checks;
  check_drawn(proposals, mask_id, checks);
  checks.settle();
}

at::Tensor sample(GeneratorImpl& generator, const SamplerStart& start, const Schedule& schedule,
                  const std::vector<SamplerObserver*>& observers) {
  std::optional<at::Tensor> priority = schedule.priority();
  if (priority.has_value()) priority = priority->to(start.tokens.device());
  const at::Tensor proposals = sampling_loop(generator, start, schedule, priority, observers);
  // On the CPU decode_step refuses a NaN itself; a GPU is asked once, here.
  if (!proposals.is_cpu()) check_drawn(proposals, generator.mask_id());
  return proposals;
}

}  // namespace adanat
