// Mean and covariance in .npz files, as pytorch-fid, clean-fid and the ADM evaluator keep them.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "core/metrics/frechet.h"

namespace adanat {

struct StatisticsFile {
  GaussianStats features;                // mu (D), sigma (D, D); count 0 = the file does not say
  std::optional<GaussianStats> spatial;  // mu_s, sigma_s: of sFID
  std::string protocol, weights_sha256;  // what a file of this program says of itself; "" elsewhere
  bool has_images = false;               // arr_0 is there too (ADM's reference batches)
};

// True for a file named .npz that holds mu. InputError if it is named .npz and cannot be read.
bool is_statistics_file(const std::filesystem::path& path);

// InputError naming file and array: missing, shapes that do not fit each other, values that are not finite, a
// covariance that is not symmetric or has a negative diagonal.
StatisticsFile read_statistics(const std::filesystem::path& path);

// mu, sigma, where given mu_s and sigma_s (all f64), and as further arrays count (i64), protocol and
// weights_sha256 (bytes of the texts): other tools ignore these.
void write_statistics(const std::filesystem::path& path, const StatisticsFile& statistics);

}  // namespace adanat
