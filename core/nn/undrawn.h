// Modules made to be filled from a file need no random weights: for 200 million of them the draws take longer
// than reading the file, and they touch the memory that another type of weights would never need.
#pragma once

namespace adanat {

// While one lives, the modules that this thread makes (the generator, the tokenizer) leave their large
// weights as the allocator gives them. Every one must be set before use: load_module_state does that or
// throws.
class UndrawnWeights {
 public:
  UndrawnWeights() : before_(active_) { active_ = true; }
  ~UndrawnWeights() { active_ = before_; }
  UndrawnWeights(const UndrawnWeights&) = delete;
  UndrawnWeights& operator=(const UndrawnWeights&) = delete;

  static bool active() { return active_; }

 private:
  static inline thread_local bool active_ = false;
  bool before_;
};

}  // namespace adanat
