#include "core/metrics/protocol.h"

#include <algorithm>
#include <map>

namespace adanat {
namespace {

void one_of(const char* key, const std::string& value, std::initializer_list<const char*> allowed) {
  std::string list;
  for (const char* name : allowed) {
    if (value == name) return;
    list += (list.empty() ? "" : ", ") + std::string(name);
  }
  throw InputError(cat(key, " must be one of ", list, ", got ", value));
}

// Sources: guided-diffusion evaluations/evaluator.py; torch-fidelity 0.4.0; pytorch-fid 0.3.0; clean-fid
// 0.1.35; AdaNAT train.py and utils_uvit.py. Where a tool lacks a metric, torch-fidelity's definition is used
// on its features.
std::vector<Protocol> make_protocols() {
  Protocol fidelity;
  fidelity.name = "torch-fidelity";
  fidelity.mean_dtype = "float32";

  Protocol adm = fidelity;
  adm.name = "adm";
  adm.is_splits = 0;
  adm.is_chunk = 5000;
  adm.is_shuffle = false;
  adm.is_dtype = "float32";

  Protocol pytorch = fidelity;
  pytorch.name = "pytorch-fid";
  pytorch.resize = "half-pixel-bilinear";
  pytorch.normalise = "2x/255-1";
  pytorch.mean_dtype = "float64";
  pytorch.labels = "balanced";

  Protocol clean = fidelity;
  clean.name = "clean";
  clean.resize = "pillow-bicubic";
  clean.kid_shrink = true;
  clean.labels = "balanced";

  // The reference program sums mean and covariance in float32 on a GPU, in an order that nobody can repeat:
  // float64 here.
  Protocol adanat = pytorch;
  adanat.name = "adanat";
  adanat.quantise = "none";
  adanat.labels = "random";

  Protocol classifier = fidelity;
  classifier.name = "classifier";
  classifier.network = "classifier";
  classifier.resize = classifier.normalise = "network";
  classifier.mean_dtype = "float64";
  classifier.kid_random = "philox-2020";
  classifier.labels = "reference";
  return {adm, fidelity, pytorch, clean, adanat, classifier};
}

}  // namespace

void Protocol::validate() const {
  one_of("network", network, {"inception", "classifier"});
  one_of("resize", resize, {"tf1-bilinear", "half-pixel-bilinear", "pillow-bicubic", "network"});
  // Both are one step of the code (InceptionInput), or the network's own.
  one_of("normalise", normalise,
         {resize == "network"               ? "network"
          : resize == "half-pixel-bilinear" ? "2x/255-1"
                                            : "(x-128)/128"});
  one_of("quantise", quantise, {"uint8", "none"});
  one_of("features_dtype", features_dtype, {"float32"});
  one_of("covariance_dtype", covariance_dtype, {"float64"});
  one_of("mean_dtype", mean_dtype, {"float32", "float64"});
  one_of("is_dtype", is_dtype, {"float32", "float64"});
  one_of("kid_random", kid_random, {"numpy-2020", "philox-2020"});
  one_of("labels", labels, {"random", "balanced", "reference"});
  require(is_splits >= 0 && is_splits <= 1000, "is_splits", "in [0, 1000]", is_splits);
  require(is_splits > 0 || is_chunk > 0, "is_chunk", "> 0 where is_splits is 0", is_chunk);
  require(kid_subsets >= 1 && kid_subsets <= 100000, "kid_subsets", "in [1, 100000]", kid_subsets);
  require(kid_subset_size >= 2, "kid_subset_size", ">= 2", kid_subset_size);
  require(neighbours >= 1 && density_neighbours >= 1, "neighbours", ">= 1",
          std::min(neighbours, density_neighbours));
}

std::vector<std::string> protocol_names() {
  std::vector<std::string> names;
  for (const Protocol& p : make_protocols()) names.push_back(p.name);
  return names;
}

Protocol protocol_by_name(const std::string& name) {
  std::string list;
  for (const Protocol& p : make_protocols()) {
    if (p.name == name) return p;
    list += (list.empty() ? "" : ", ") + p.name;
  }
  throw InputError(cat("--protocol ", name, ": must be one of ", list));
}

std::string describe(const Protocol& p) {
  static const std::map<std::string, std::string> kResize{
      {"tf1-bilinear", "TF1 bilinear resize"},
      {"half-pixel-bilinear", "half-pixel bilinear resize"},
      {"pillow-bicubic", "Pillow bicubic resize, clipped"},
      {"network", "the network's own preprocessing"}};
  std::string out = cat("protocol ", p.name, ": ", kResize.at(p.resize));
  if (p.normalise != "network") out += cat(", ", p.normalise);
  out += cat(p.quantise == "uint8" ? ", from bytes" : ", generated images not rounded", ", ",
             p.features_dtype, " features, ", p.mean_dtype, " mean, ", p.covariance_dtype,
             " covariance; kernel distance of ", p.kid_subsets, " subsets of ", p.kid_subset_size,
             p.kid_shrink ? " or fewer" : "", " (", p.kid_random, "); ");
  out += p.is_splits > 0 ? cat(p.is_splits, p.is_shuffle ? " shuffled" : "", " splits")
                         : cat("chunks of ", p.is_chunk);
  return out + cat(" of the score in ", p.is_dtype, "; ", p.neighbours, " and ", p.density_neighbours,
                   " neighbours", p.half_distances ? " by float16 distances" : "", "; ", p.labels,
                   " classes");
}

}  // namespace adanat
