// What generated images show when they are measured: classes, or the captions of the data set that they are
// compared with.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "apps/pipeline/pipeline.h"
#include "core/data/dataset.h"

namespace adanat {

// Whether labels "reference" can be followed: there are images whose classes are the model's.
bool has_labels_of(const ImageDataset* reference, const ModelConfig& config);

// Classes of generated images 0..count-1 by the protocol's labels: "random" from Philox (seed, image),
// "balanced" in turn, "reference" as often as in the reference where its classes are the model's, else in
// turn. `reference` may be null.
std::vector<int64_t> generation_classes(const std::string& labels, int64_t count, int64_t seed,
                                        const ModelConfig& config, const ImageDataset* reference);

// The captions of a data set that can be read; `broken` gets what is wrong with each of the others.
// InputError: it has none.
std::vector<std::string> captions_of(const ImageDataset& data, std::vector<std::string>& broken);

// The conditions of a model, batch by batch. Captions are encoded when their batch comes, so that no number
// of them fills the memory; the text encoder stays open. Not thread-safe.
class Conditions {
 public:
  // `reference`, which may be null for a model of classes, and the pipeline outlive this. `skip_broken`:
  // captions that cannot be read are left out, with a warning. InputError: a model of texts and a reference
  // without captions, or with a broken one.
  Conditions(Pipeline& pipeline, const ImageDataset* reference, bool skip_broken);

  // What images 0..count-1 show: classes as generation_classes has them, or places of captions, chosen by
  // `labels` in the same way: at random, in turn, or spread over all of the reference.
  std::vector<int64_t> choose(const std::string& labels, int64_t count, int64_t seed) const;
  // Fixes what images show: SHA-256 of the classes, or of the captions and their encoder.
  std::string hash(const std::vector<int64_t>& chosen) const;
  // SHA-256 of the text encoder; "" for a model of classes.
  const std::string& encoder_hash() const { return encoder_hash_; }
  // The images begin .. begin + size - 1 of `chosen`. Texts become the pipeline's prompts.
  BatchRequest request(const std::vector<int64_t>& chosen, int64_t seed, int64_t begin, int64_t size);

 private:
  Pipeline& pipeline_;
  const ImageDataset* reference_;
  std::vector<std::string> captions_;
  std::optional<ClipTextEncoder> encoder_;
  std::string encoder_hash_;
  bool said_cut_ = false;
};

}  // namespace adanat
