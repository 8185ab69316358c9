// Measuring images: a network's features of a set, and what two sets' features say of each other, under one
// protocol. Under protocol "classifier" (a model folder's `measure` network) the distances are FD and KD,
// never FID or KID, and `is` is that network's score.
#pragma once
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "apps/pipeline/feature_cache.h"
#include "apps/pipeline/statistics_file.h"
#include "core/data/dataset.h"
#include "core/features/feature_net.h"
#include "core/metrics/inception_score.h"
#include "core/metrics/protocol.h"

namespace adanat {

// What is to be computed.
struct MetricSet {
  bool frechet = false, kernel = false, score = false, manifold = false, spatial = false;
};
// "fid,kid,is,pr,sfid" (fd and kd for the first two under the classifier). InputError for an unknown or
// repeated name, or one that the protocol does not have.
MetricSet parse_metrics(const std::string& list, const Protocol& protocol);

// What a protocol's network is given of images: (B, 3, H, W) u8; or f32, in [0, 1] where the protocol does
// not round generated images, in [0, 255] of 299x299 where SequentialReader has resized them. The result is
// normalised, and (B, 3, 299, 299) for Inception; the classifier resizes for itself. Safe from any thread.
at::Tensor prepare_images(const Protocol& protocol, const at::Tensor& images, at::Device device);

// The network of a protocol. Not thread-safe.
class Measurer {
 public:
  // Reads the weights; InputError if they are not of the protocol's network. Warns of an unknown hash.
  // `spatial`: also sFID's features.
  static Measurer open(const std::filesystem::path& weights, const Protocol& protocol, bool spatial,
                       at::Device device);
  at::Tensor prepare(const at::Tensor& images) const { return prepare_images(protocol_, images, device_); }
  FeatureRows extract_prepared(const at::Tensor& prepared);
  FeatureRows extract(const at::Tensor& images) { return extract_prepared(prepare(images)); }
  const Protocol& protocol() const { return protocol_; }
  const std::string& weights_hash() const { return net_->file_hash(); }
  // Names of the classes its logits stand for; empty where it does not say.
  const std::vector<std::string>& class_names() const { return class_names_; }

 private:
  Measurer(Protocol protocol, std::unique_ptr<FeatureNet> net, bool spatial, at::Device device)
      : protocol_(std::move(protocol)), net_(std::move(net)), spatial_(spatial), device_(device) {}
  Protocol protocol_;
  std::unique_ptr<FeatureNet> net_;
  std::vector<std::string> class_names_;
  bool spatial_;
  at::Device device_;
};

// What the network says of one set of images. Keeps sums, and of the features themselves only what the
// metrics cannot do without: kernel distance and neighbours need all of them, the score its logits where the
// number of images is not known. Not thread-safe.
class MeasuredSet {
 public:
  // `expected`: how many images will come, -1 = not known.
  MeasuredSet(const Protocol& protocol, MetricSet metrics, int64_t expected);
  // Statistics of a file instead of images; images may be added for kernel distance and neighbours.
  MeasuredSet(const Protocol& protocol, MetricSet metrics, StatisticsFile statistics, int64_t expected);
  // labels (B) i64 or undefined. RunError for a feature that is not finite, naming the image by its place in
  // the set.
  void add(const FeatureRows& rows, const at::Tensor& labels);

  int64_t count() const { return count_; }  // images added
  // Images behind the statistics; empty where a file does not say.
  std::optional<int64_t> reported_count() const;
  int64_t dimensions() const;  // 0 before the first image
  GaussianStats stats() const;
  GaussianStats spatial_stats() const;
  bool from_file() const { return statistics_.has_value(); }
  MeanAndDeviation score() const;
  at::Tensor features() const;  // (count, D) f32
  // Share of images that the network gives their label; empty where there were none.
  std::optional<double> accuracy() const;

 private:
  Protocol protocol_;
  MetricSet metrics_;
  int64_t expected_, count_ = 0, labelled_ = 0, right_ = 0;
  std::optional<StatisticsFile> statistics_;
  std::optional<GaussianAccumulator> pool_, spatial_;
  std::optional<InceptionScore> score_;
  std::vector<at::Tensor> kept_features_, kept_logits_;
};

struct Figure {
  std::string name;
  double value = 0;
  std::optional<double> deviation;  // over subsets or splits
};

// The figures of `set` against `reference` in the order they are reported; accuracy last, where known.
// InputError: fewer images than a metric is defined for, a file without what is needed, other dimensions.
// `set_name` and `reference_name` are for messages. Warns where a covariance is singular (fewer images than
// dimensions).
std::vector<Figure> compare_sets(const MeasuredSet& set, const std::string& set_name,
                                 const MeasuredSet& reference, const std::string& reference_name,
                                 const Protocol& protocol, const MetricSet& metrics);

// A set that is going to be measured, by what is known of it before.
struct ExpectedSet {
  std::string name;               // for messages
  std::optional<int64_t> images;  // nullopt: statistics alone
};
// What compare_sets would refuse about the numbers of images, found out before the work. InputError.
void require_images(const Protocol& protocol, const MetricSet& metrics, const ExpectedSet& set,
                    const std::optional<ExpectedSet>& reference);

// Inception score ("is"), or what the classifier makes of its formula, of the set alone. InputError:
// statistics without images, fewer images than splits.
Figure score_figure(const MeasuredSet& set, const std::string& set_name, const Protocol& protocol);

}  // namespace adanat
