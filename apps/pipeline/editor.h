// An edit of one picture with one model: plans, encodes, and gives batches their start.
#pragma once
#include "apps/pipeline/edit.h"
#include "apps/pipeline/pipeline.h"

namespace adanat {

// Immutable after construction; the methods may be called from several threads.
class Editor {
 public:
  // Brings the picture to the model's size and encodes it. InputError as plan_edit.
  Editor(Pipeline& pipeline, const Image& image, const EditRequest& request);

  const EditPlan& plan() const { return plan_; }
  const at::Tensor& tokens() const { return tokens_; }  // (N) i64 on the CPU: those of the given picture

  // BatchRequest::start of images first_index .. first_index + count - 1 of the seed.
  at::Tensor start(int64_t seed, int64_t first_index, int64_t count) const;
  // The kept pixels into the decoded images (B, 3, S, S) u8 of the same seed and indices, in place.
  void paste_back(const at::Tensor& images, int64_t seed, int64_t first_index) const;

 private:
  EditPlan plan_;
  at::Tensor tokens_;
  int64_t mask_id_;
};

}  // namespace adanat
