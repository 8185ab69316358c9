#include "apps/pipeline/conditions.h"

#include <numeric>
#include <utility>

#include "core/base/log.h"
#include "core/base/sha256.h"
#include "kernels/philox.h"

namespace adanat {
namespace {

// Which of `size` things images 0..count-1 show.
std::vector<int64_t> choose_places(const std::string& labels, int64_t count, int64_t seed, int64_t size) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; ++i) {
    if (labels == "reference") {
      out.push_back(i * size / count);  // spread over all of it
    } else if (labels == "random") {
      // A coordinate of its own in the stream of labels and orders: no subset draws at c = 2.
      const kernels::Philox4 word =
          kernels::draw(uint64_t(seed), uint32_t(i), 0, 2, 0, kernels::Stream::kData);
      out.push_back(kernels::bounded(word.x, uint32_t(size)));
    } else {
      out.push_back(i % size);
    }
  }
  return out;
}

}  // namespace

bool has_labels_of(const ImageDataset* reference, const ModelConfig& config) {
  return reference != nullptr && reference->class_names() == config.class_names;
}

std::vector<int64_t> generation_classes(const std::string& labels, int64_t count, int64_t seed,
                                        const ModelConfig& config, const ImageDataset* reference) {
  if (labels != "reference" || !has_labels_of(reference, config))
    return choose_places(labels == "random" ? labels : "balanced", count, seed, config.generator->classes);
  std::vector<int64_t> out = choose_places(labels, count, seed, reference->size());
  for (int64_t& item : out) item = reference->label(item);
  return out;
}

std::vector<std::string> captions_of(const ImageDataset& data, std::vector<std::string>& broken) {
  if (!data.has_captions())
    throw InputError(cat(data.describe(), ": has no captions, but the generator makes images from texts"));
  std::vector<std::string> out;
  broken.clear();
  for (int64_t i = 0; i < data.size(); ++i) {
    try {
      out.push_back(data.caption(i));
    } catch (const InputError& e) {
      broken.emplace_back(e.what());
    }
  }
  return out;
}

Conditions::Conditions(Pipeline& pipeline, const ImageDataset* reference, bool skip_broken)
    : pipeline_(pipeline), reference_(reference) {
  const ModelConfig& config = pipeline.config();
  if (!config.from_texts()) return;
  if (reference == nullptr)
    throw InputError(cat("--reference: the model ", config.name,
                         " makes images from texts, which are the captions of the reference; give a "
                         "captioned data set (.tsv or tar shards)"));
  std::vector<std::string> broken;
  captions_ = captions_of(*reference, broken);
  if (!broken.empty() && !skip_broken)
    throw InputError(cat(broken[0], broken.size() == 1 ? "" : cat(" (and ", broken.size() - 1, " more)"),
                         "; the captions are what images are made of: mend it or leave it out"));
  if (captions_.empty())
    throw InputError(cat("--reference: none of the captions of ", reference->describe(), " can be read"));
  if (!broken.empty())
    warning(cat(broken.size(), " broken captions of ", reference->describe(), " were left out"));
  encoder_.emplace(open_text_encoder(pipeline.folder(), config, pipeline.device()));
  encoder_hash_ = encoder_->hash();
}

std::vector<int64_t> Conditions::choose(const std::string& labels, int64_t count, int64_t seed) const {
  return encoder_ ? choose_places(labels, count, seed, int64_t(captions_.size()))
                  : generation_classes(labels, count, seed, pipeline_.config(), reference_);
}

std::string Conditions::hash(const std::vector<int64_t>& chosen) const {
  if (!encoder_) return sha256_hex(chosen.data(), chosen.size() * sizeof(int64_t));
  std::string all = encoder_hash_;
  for (const int64_t place : chosen) {
    const std::string& caption = captions_[size_t(place)];
    all += cat(" ", caption.size(), " ", caption);
  }
  return sha256_hex(all.data(), all.size());
}

BatchRequest Conditions::request(const std::vector<int64_t>& chosen, int64_t seed, int64_t begin,
                                 int64_t size) {
  BatchRequest out{{chosen.begin() + begin, chosen.begin() + begin + size}, seed, begin};
  if (!encoder_) return out;
  std::vector<std::string> prompts;
  for (const int64_t place : out.classes) prompts.push_back(captions_[size_t(place)]);
  int64_t cut = 0;
  pipeline_.set_prompts(prompts, *encoder_, &cut);
  if (cut > 0 && !std::exchange(said_cut_, true))
    warning(cat("some captions are over ", encoder_->config().positions,
                " tokens long, the rest of them is cut off"));
  std::iota(out.classes.begin(), out.classes.end(), 0);
  return out;
}

}  // namespace adanat
