// The one loop over generation steps in the whole program: generation, editing, evaluation, previews and
// rollouts are this loop with another start, schedule or observer.
#pragma once
#include <optional>
#include <vector>

#include "core/generator/transformer.h"
#include "core/nn/deferred_checks.h"
#include "core/sampling/schedule.h"

namespace adanat {

// Where a run begins. B samples on the generator's device; B >= 1.
struct SamplerStart {
  at::Tensor tokens;       // (B, N) i64 in [0, V]; V = to be made
  at::Tensor condition;    // class ids (B) i64, or text states (B, S, C)
  at::Tensor empty;        // the empty condition: class id (1) i64, or text states (1, S, C)
  at::Tensor seed;         // (B) i64
  at::Tensor image_index;  // (B) i64: a seed and an index are an image, whatever the batch
  // Whether every sample starts from the same tokens: plain generation, edits of one region. Step 0 then
  // needs one row per distinct class or text.
  bool same_tokens = false;

  // Which classes or texts `condition` holds, found before the loop so that no step asks a GPU for it.
  // plain_start fills it in; left empty, or made for another `condition`, the loop looks for itself among
  // classes, and takes texts for distinct.
  struct Classes {
    at::Tensor of;        // the `condition` that this describes
    at::Tensor distinct;  // (K) i64; of texts (K, S, C). One too many only costs a row
    at::Tensor row_of;    // (B) i64: condition[i] = distinct[row_of[i]]
  };
  Classes classes = {};
};

// Classes for `condition` (B) i64 in [0, classes), without asking the device that it lies on: all there are,
// or each sample's own, whichever is less.
SamplerStart::Classes classes_unasked(const at::Tensor& condition, int64_t classes);

// Plain generation: everything hidden. classes (B) i64 in [0, classes), image_index (B) i64; on the CPU or
// the generator's device, where all of the start lies. Neither costs a GPU a round trip. Only on the CPU are
// the distinct ones found; for classes that lie on a GPU they are classes_unasked.
SamplerStart plain_start(const GeneratorImpl& generator, const at::Tensor& classes, int64_t seed,
                         const at::Tensor& image_index);

// What a text model is conditioned on: the encoder's states of K texts (K, S, C), and of the empty one
// (1, S, C), float, on the generator's device.
struct TextConditions {
  at::Tensor states, empty;
};

// The same from texts: text (B) i64 in [0, K), the one of each image.
SamplerStart plain_start(const GeneratorImpl& generator, const TextConditions& texts, const at::Tensor& text,
                         int64_t seed, const at::Tensor& image_index);

// One step as observers see it. Tensors are shared: an observer that keeps one clones it.
struct StepView {
  int64_t step, steps;
  const at::Tensor& tokens_before;  // (B, N) i64
  const at::Tensor& tokens_after;   // (B, N) i64; after the last step all are revealed
  const at::Tensor& proposals;      // (B, N) i64, no masked id
  const at::Tensor& features;       // (B, N, D) of the conditional pass
  const Action& action;
};

class SamplerObserver {
 public:
  virtual ~SamplerObserver() = default;
  virtual void on_step(const StepView& view) = 0;
  // Whether it wants the steps themselves. One that does not may be left out where all steps are one launch.
  virtual bool reads_steps() const { return true; }
};

// Runs under NoGradGuard (not InferenceMode: what observers keep may enter a backward pass later), the
// generator in evaluation mode. Returns the final proposals (B, N) i64. Rows through the generator (promise
// 2): per step B, plus B unconditional ones unless the schedule knows that the guidance is 0; at step 0 from
// the same tokens only one per distinct class, plus one. RunError on a NaN logit: at the step it is drawn
// from, on a GPU at the end.
at::Tensor sample(GeneratorImpl& generator, const SamplerStart& start, const Schedule& schedule,
                  const std::vector<SamplerObserver*>& observers = {});

// The two halves of sample(). Off the CPU the loop only asks for work: where the start knows its classes and
// `priority` (that of the schedule) lies on the device, nothing travels between device and host, and nothing
// waits. What could not be drawn has the masked id, which check_drawn looks for: RunError, where and when
// `checks` says.
at::Tensor sampling_loop(GeneratorImpl& generator, const SamplerStart& start, const Schedule& schedule,
                         const std::optional<at::Tensor>& priority,
                         const std::vector<SamplerObserver*>& observers = {});
void check_drawn(const at::Tensor& proposals, int64_t mask_id);
void check_drawn(const at::Tensor& proposals, int64_t mask_id, DeferredChecks& checks);

}  // namespace adanat
