// What a figure's name leaves out: how images reach the network and how statistics become a number. The tools
// of the field differ in all of it, so every figure is reported with the protocol it was measured under.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/config.h"

namespace adanat {

// One protocol as a value. Strings name one of a few ways each; the table of them is docs/evaluation.md.
struct Protocol {
  std::string name;
  std::string network = "inception";         // inception | classifier
  std::string resize = "tf1-bilinear";       // tf1-bilinear | half-pixel-bilinear | pillow-bicubic | network
  std::string normalise = "(x-128)/128";     // (x-128)/128 | 2x/255-1 | network; each resize has its own
  std::string quantise = "uint8";            // uint8: generated images are rounded to bytes first | none
  std::string features_dtype = "float32";    // the only one
  std::string mean_dtype = "float64";        // float64 | float32: rows added one by one, as numpy does
  std::string covariance_dtype = "float64";  // the only one
  int64_t is_splits = 10;                    // 0: chunks of is_chunk images
  int64_t is_chunk = 0;
  bool is_shuffle = true;            // by RandomState(2020)
  std::string is_dtype = "float64";  // float64 | float32: of the softmax
  int64_t kid_subsets = 100, kid_subset_size = 1000;
  bool kid_shrink = false;                // subsets shrink to the smaller set (clean-fid) instead of an error
  std::string kid_random = "numpy-2020";  // numpy-2020 | philox-2020
  int64_t neighbours = 3;                 // precision and recall
  int64_t density_neighbours = 5;         // density and coverage
  bool half_distances = false;            // squared distances in float16
  std::string labels = "random";          // random | balanced | reference: classes of generated images

  static constexpr auto fields() {
    return std::tuple{
        field("name", &Protocol::name, "protocol"),
        field("network", &Protocol::network, "inception or classifier"),
        field("resize", &Protocol::resize, "how images get the network's size"),
        field("normalise", &Protocol::normalise, "how pixels 0..255 become the network's input"),
        field("quantise", &Protocol::quantise, "uint8 or none: generated images before measuring"),
        field("features_dtype", &Protocol::features_dtype, "type of the features"),
        field("mean_dtype", &Protocol::mean_dtype, "type of their mean"),
        field("covariance_dtype", &Protocol::covariance_dtype, "type of their covariance"),
        field("is_splits", &Protocol::is_splits, "splits of the inception score; 0 = chunks"),
        field("is_chunk", &Protocol::is_chunk, "images in a chunk"),
        field("is_shuffle", &Protocol::is_shuffle, "whether images are shuffled before splitting"),
        field("is_dtype", &Protocol::is_dtype, "type of the probabilities"),
        field("kid_subsets", &Protocol::kid_subsets, "subsets of the kernel distance"),
        field("kid_subset_size", &Protocol::kid_subset_size, "images in a subset"),
        field("kid_shrink", &Protocol::kid_shrink, "whether subsets shrink to the smaller set"),
        field("kid_random", &Protocol::kid_random, "what draws the subsets"),
        field("neighbours", &Protocol::neighbours, "k of precision and recall"),
        field("density_neighbours", &Protocol::density_neighbours, "k of density and coverage"),
        field("half_distances", &Protocol::half_distances, "squared distances in float16"),
        field("labels", &Protocol::labels, "classes of generated images: random, balanced or reference")};
  }
  // InputError for a value that the program does not act on, so that what is printed is what was done.
  void validate() const;
  bool operator==(const Protocol&) const = default;
};

// adm, torch-fidelity, pytorch-fid, clean, adanat, classifier.
std::vector<std::string> protocol_names();
// InputError that names them all for another one.
Protocol protocol_by_name(const std::string& name);
// One line for people: "protocol torch-fidelity: TF1 bilinear resize, (x-128)/128, ...".
std::string describe(const Protocol& protocol);

}  // namespace adanat
