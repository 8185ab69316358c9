#include "apps/pipeline/evaluate.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include "apps/pipeline/pipeline.h"
#include "core/base/log.h"
#include "core/features/inception.h"
#include "core/io/resample.h"
#include "core/metrics/manifold.h"
#include "core/nn/tensor_file.h"

namespace adanat {

namespace {

// (B, 3, H, W) u8 -> (B, 3, 299, 299) f32 in [0, 255], each image as SequentialReader does it.
at::Tensor pillow_299(const at::Tensor& bytes) {
  constexpr int kSide = 299;
  at::Tensor out = at::empty({bytes.size(0), 3, kSide, kSide}, at::kFloat);
  auto* target = out.mutable_data_ptr<float>();
  const at::Tensor host = bytes.cpu();
  at::parallel_for(0, bytes.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::vector<float> resized = resize_bicubic_float(to_image(host[i]), kSide, kSide);
      std::copy(resized.begin(), resized.end(), target + i * 3 * kSide * kSide);
    }
  });
  return out.clamp_(0, 255);
}

}  // namespace

MetricSet parse_metrics(const std::string& list, const Protocol& protocol) {
  const bool classifier = protocol.network == "classifier";
  const std::string known =
      classifier ? "fd, kd, is and pr (fid and kid are read as the first two)" : "fid, kid, is, pr and sfid";
  MetricSet out;
  std::set<std::string> seen;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t comma = std::min(list.find(',', begin), list.size());
    std::string name = list.substr(begin, comma - begin);
    if (classifier && (name == "fid" || name == "kid")) name = name == "fid" ? "fd" : "kd";
    if (name == (classifier ? "fd" : "fid"))
      out.frechet = true;
    else if (name == (classifier ? "kd" : "kid"))
      out.kernel = true;
    else if (name == "is")
      out.score = true;
    else if (name == "pr")
      out.manifold = true;
    else if (name == "sfid" && !classifier)
      out.spatial = true;
    else
      throw InputError(
          cat("--metrics ", name.empty() ? "\"\"" : name, ": protocol ", protocol.name, " has ", known));
    if (!seen.insert(name).second) throw InputError(cat("--metrics ", list, ": names ", name, " twice"));
    begin = comma + 1;
  }
  return out;
}

Measurer Measurer::open(const std::filesystem::path& weights, const Protocol& protocol, bool spatial,
                        at::Device device) {
  auto net = load_feature_net(weights);
  if (net->kind() != protocol.network)
    throw InputError(cat(
        weights.string(), ": is a network of the kind ", net->kind(), ", protocol ", protocol.name, " needs ",
        protocol.network == "inception" ? "Inception weights (pt_inception-2015-12-05)" : protocol.network));
  net->to(device);
  Measurer out(protocol, std::move(net), spatial, device);
  if (protocol.network == "classifier") {
    const auto metadata = SafetensorsFile::open(weights).metadata();
    if (const auto names = metadata.find("class_names"); names != metadata.end()) {
      const Json list = parse_json(names->second, weights.string() + ": class_names");
      if (list.is_array())
        for (const Json& name : list)
          if (name.is_string()) out.class_names_.push_back(name.get<std::string>());
    }
  }
  return out;
}

at::Tensor prepare_images(const Protocol& protocol, const at::Tensor& images, at::Device device) {
  const at::NoGradGuard no_grad;
  if (protocol.network == "classifier") return images.to(device, at::kFloat) / 255;
  const auto prepare = [&](const at::Tensor& some) {
    if (protocol.resize != "pillow-bicubic")
      return inception_input(some.to(device), protocol.resize == "tf1-bilinear" ? InceptionInput::kTf1
                                                                                : InceptionInput::kHalfPixel);
    const at::Tensor resized = some.scalar_type() == at::kByte ? pillow_299(some) : some;
    return inception_input(resized.to(device), InceptionInput::kResized);
  };
  // A few at a time: on its way the resize holds several times its result, and it runs beside the network.
  constexpr int64_t kAtATime = 8;
  const int64_t count = images.size(0);
  if (count <= kAtATime) return prepare(images);
  at::Tensor out;
  for (int64_t i = 0; i < count; i += kAtATime) {
    const int64_t size = std::min(kAtATime, count - i);
    const at::Tensor some = prepare(images.narrow(0, i, size));
    if (i == 0) out = at::empty({count, some.size(1), some.size(2), some.size(3)}, some.options());
    out.narrow(0, i, size).copy_(some);
  }
  return out;
}

FeatureRows Measurer::extract_prepared(const at::Tensor& prepared) {
  const at::NoGradGuard no_grad;
  if (protocol_.network == "classifier") {
    const auto taps = net_->forward(prepared, {"pool", "logits"});
    return {taps[0].cpu(), taps[1].cpu(), {}};
  }
  std::vector<std::string> taps{"2048", "logits_unbiased"};
  if (spatial_) taps.emplace_back("spatial");
  const auto out = static_cast<InceptionNet&>(*net_).forward_prepared(prepared, taps);
  return {out[0].cpu(), out[1].cpu(), spatial_ ? out[2].cpu() : at::Tensor()};
}

MeasuredSet::MeasuredSet(const Protocol& protocol, MetricSet metrics, int64_t expected)
    : protocol_(protocol), metrics_(metrics), expected_(expected) {
  if (metrics.score && expected >= 0) {
    auto splits = protocol.is_splits > 0
                      ? even_splits(expected, protocol.is_splits, protocol.is_shuffle, 2020)
                      : chunk_splits(expected, protocol.is_chunk);
    const int64_t number =
        protocol.is_splits > 0 ? protocol.is_splits : (expected + protocol.is_chunk - 1) / protocol.is_chunk;
    score_.emplace(std::move(splits), number, protocol.is_dtype == "float32");
  }
}

MeasuredSet::MeasuredSet(const Protocol& protocol, MetricSet metrics, StatisticsFile statistics,
                         int64_t expected)
    : MeasuredSet(protocol, metrics, expected) {
  statistics_ = std::move(statistics);
}

void MeasuredSet::add(const FeatureRows& rows, const at::Tensor& labels) {
  for (const at::Tensor* values : {&rows.pool, &rows.logits, &rows.spatial}) {
    if (!values->defined()) continue;
    const at::Tensor finite = at::isfinite(*values).flatten(1).all(1);
    for (int64_t i = 0; i < finite.size(0); ++i)
      if (!finite[i].item<bool>())
        throw RunError(cat("a feature of image ", count_ + i,
                           " of the set is not a finite number; the weights do not fit or are damaged"));
  }
  const bool float32_mean = protocol_.mean_dtype == "float32";
  if (!statistics_) {
    if (!pool_) pool_.emplace(rows.pool.size(1), float32_mean);
    pool_->add(rows.pool);
    if (metrics_.spatial) {
      if (!spatial_) spatial_.emplace(rows.spatial.size(1), float32_mean);
      spatial_->add(rows.spatial);
    }
  }
  if (metrics_.kernel || metrics_.manifold) kept_features_.push_back(rows.pool);
  if (score_)
    score_->add(rows.logits);
  else if (metrics_.score)
    kept_logits_.push_back(rows.logits);
  if (labels.defined()) {
    right_ += (rows.logits.argmax(1) == labels).sum().item<int64_t>();
    labelled_ += labels.size(0);
  }
  count_ += rows.size();
}

std::optional<int64_t> MeasuredSet::reported_count() const {
  if (!statistics_) return count_;
  return statistics_->features.count > 0 ? std::optional(statistics_->features.count) : std::nullopt;
}

int64_t MeasuredSet::dimensions() const {
  if (statistics_) return statistics_->features.mean.size(0);
  return pool_ ? pool_->dimensions() : 0;
}

GaussianStats MeasuredSet::stats() const {
  return statistics_ ? statistics_->features : pool_->stats();
}

GaussianStats MeasuredSet::spatial_stats() const {
  if (!statistics_) return spatial_->stats();
  if (!statistics_->spatial)
    throw InputError("--metrics sfid: the statistics file has no mu_s and sigma_s; give the images");
  return *statistics_->spatial;
}

MeanAndDeviation MeasuredSet::score() const {
  if (score_) return score_->result();
  MeasuredSet again(protocol_, {.score = true}, count_);
  for (const at::Tensor& logits : kept_logits_) again.score_->add(logits);
  return again.score_->result();
}

at::Tensor MeasuredSet::features() const {
  return at::cat(kept_features_);
}

std::optional<double> MeasuredSet::accuracy() const {
  if (labelled_ == 0) return std::nullopt;
  return double(right_) / double(labelled_);
}

void require_images(const Protocol& protocol, const MetricSet& metrics, const ExpectedSet& set,
                    const std::optional<ExpectedSet>& reference) {
  const bool classifier = protocol.network == "classifier";
  const auto need = [](const char* metric, int64_t least, const std::string& why, const ExpectedSet& s) {
    if (!s.images)
      throw InputError(
          cat("--metrics ", metric, ": ", s.name, " holds statistics only; give the images themselves"));
    if (*s.images < least)
      throw InputError(cat("--metrics ", metric, ": needs at least ", least, " images", why, ", ", s.name,
                           " has ", *s.images));
  };
  const auto need_both = [&](const char* metric, int64_t least, const std::string& why) {
    need(metric, least, " on both sides" + why, set);
    need(metric, least, " on both sides" + why, *reference);
  };
  if (metrics.score)
    need("is", std::max<int64_t>(1, protocol.is_splits),
         cat(" (one for each of its ", protocol.is_splits, " splits)"), set);
  if (!reference) return;
  if (metrics.frechet || metrics.spatial)
    for (const ExpectedSet* s : {&set, &*reference})
      if (s->images) need(!metrics.frechet ? "sfid" : classifier ? "fd" : "fid", 2, "", *s);
  if (metrics.kernel) {
    int64_t size = protocol.kid_subset_size;
    if (protocol.kid_shrink) size = std::min({size, set.images.value_or(0), reference->images.value_or(0)});
    need_both(classifier ? "kd" : "kid", std::max<int64_t>(2, size),
              " (its subsets; --kid-subset-size makes them smaller)");
  }
  if (metrics.manifold)
    need_both("pr", std::max(protocol.neighbours, protocol.density_neighbours) + 1, " (nearest neighbours)");
}

namespace {

ExpectedSet as_expected(const MeasuredSet& set, const std::string& name) {
  if (set.from_file() && set.count() == 0) return {name, std::nullopt};
  return {name, set.count()};
}

}  // namespace

Figure score_figure(const MeasuredSet& set, const std::string& set_name, const Protocol& protocol) {
  require_images(protocol, {.score = true}, as_expected(set, set_name), std::nullopt);
  const MeanAndDeviation value = set.score();
  return {"is", value.mean, value.deviation};
}

std::vector<Figure> compare_sets(const MeasuredSet& set, const std::string& set_name,
                                 const MeasuredSet& reference, const std::string& reference_name,
                                 const Protocol& protocol, const MetricSet& metrics) {
  const bool classifier = protocol.network == "classifier";
  const std::string fd = classifier ? "fd" : "fid", kd = classifier ? "kd" : "kid";
  const auto each = [&](auto call) { call(set, set_name), call(reference, reference_name); };
  if (set.dimensions() != reference.dimensions())
    throw InputError(cat(reference_name, ": has ", reference.dimensions(), " dimensions, ", set_name, " has ",
                         set.dimensions(), "; statistics of another network or tap?"));
  require_images(protocol, metrics, as_expected(set, set_name), as_expected(reference, reference_name));
  std::vector<Figure> out;
  const auto warn_of_few = [&](const char* metric, int64_t dimensions) {
    each([&](const MeasuredSet& s, const std::string& name) {
      const auto count = s.reported_count();
      if (count && *count < dimensions)
        warning(cat("only ", *count, " images for ", dimensions, " feature dimensions in ", name,
                    ": the covariance is singular and the ", metric,
                    " biased upwards; compare equal counts only"));
    });
  };
  if (metrics.frechet) {
    warn_of_few(classifier ? "FD" : "FID", set.dimensions());
    out.push_back({fd, frechet_distance(set.stats(), reference.stats()), {}});
  }
  if (metrics.spatial) {
    const GaussianStats a = set.spatial_stats(), b = reference.spatial_stats();
    if (a.mean.sizes() != b.mean.sizes())
      throw InputError(cat(reference_name, ": mu_s has ", b.mean.size(0), " dimensions, ", set_name, " has ",
                           a.mean.size(0)));
    warn_of_few("sFID", a.mean.size(0));
    out.push_back({"sfid", frechet_distance(a, b), {}});
  }
  if (metrics.kernel) {
    int64_t size = protocol.kid_subset_size;
    if (protocol.kid_shrink) size = std::min({size, set.count(), reference.count()});
    MeanAndDeviation value;
    if (protocol.kid_random == "numpy-2020") {
      const SubsetPair rows = numpy_subsets(set.count(), reference.count(), protocol.kid_subsets, size, 2020);
      value = kernel_distance(set.features(), reference.features(), rows.a, rows.b);
    } else {
      value = kernel_distance(set.features(), reference.features(),
                              random_subsets(set.count(), protocol.kid_subsets, size, 2020, 0),
                              random_subsets(reference.count(), protocol.kid_subsets, size, 2020, 1));
    }
    out.push_back({kd, value.mean, value.deviation});
  }
  if (metrics.score) out.push_back(score_figure(set, set_name, protocol));
  if (metrics.manifold) {
    const ManifoldScores value = manifold_scores(set.features(), reference.features(),
                                                 {.neighbours = protocol.neighbours,
                                                  .density_neighbours = protocol.density_neighbours,
                                                  .half = protocol.half_distances});
    out.insert(out.end(), {{"precision", value.precision, {}},
                           {"recall", value.recall, {}},
                           {"f_score", value.f_score, {}},
                           {"density", value.density, {}},
                           {"coverage", value.coverage, {}}});
  }
  if (const auto accuracy = set.accuracy()) out.push_back({"accuracy", *accuracy, {}});
  return out;
}

}  // namespace adanat
