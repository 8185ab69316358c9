// Looks at the figures of each update of a policy for signs that training has collapsed, and says so in plain
// words. Free of torch.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace adanat {

class CollapseWatch {
 public:
  // shared: one schedule for all samples, whose actions never differ between them.
  explicit CollapseWatch(bool shared = false) : shared_(shared) {}

  // What must survive a stop: what later updates are compared with. 0 = not seen yet.
  struct State {
    double widest_spread = 0;     // of the actions between samples
    double first_perplexity = 0;  // of the codes in the samples
    double first_classes = 0;     // that the features network recognised
  };
  State state() const { return state_; }
  void restore(const State& state) { state_ = state; }

  // One update's figures under the names they are logged by; one that is missing is not judged. learned:
  // updates in which the policy has learned, below 0 while only the reward does. std: width of the
  // exploration.
  // -> warnings, empty if all is well; each kind is given at most once in 100 updates:
  //   clip_share > 0.5; a discriminator right about > 99 % of both kinds of images; std < 0.02 (the entropy
  //   is a function of it); actions that differ less than 1e-4 between samples after 50 updates, or 20 times
  //   less than they once did; half the perplexity of the codes, or 30 % of the classes, gone since the
  //   start.
  std::vector<std::string> look(int64_t update, int64_t learned, double std,
                                const std::map<std::string, double>& figures);

 private:
  bool shared_;
  State state_;
  std::map<std::string, int64_t> warned_;
};

}  // namespace adanat
