#include "apps/adanat/eval_subject.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "apps/pipeline/conditions.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/data/sequential.h"
#include "core/metrics/image_metrics.h"
#include "core/nn/device.h"
#include "core/nn/linear.h"

namespace adanat {
namespace fs = std::filesystem;

bool Evaluation::knows_classes(const std::vector<std::string>& names) const {
  return protocol.network == "classifier" && measurer.class_names() == names;
}

int64_t Evaluation::expected(const ImageDataset& data) const {
  return options.skip_broken ? -1 : data.size();
}

void Evaluation::measure(const ImageDataset& data, MeasuredSet& into, const char* title,
                         const std::function<at::Tensor(const at::Tensor&)>& change) {
  const bool labelled = knows_classes(data.class_names());
  if (protocol.network == "classifier" && !labelled && data.class_names().size() > 1)
    note(cat("accuracy of ", data.describe(), " is left out: its classes are not those of the network"));
  SequentialOptions reading{.batch_size = options.batch_size,
                            .crop = crop,
                            .pillow_299 = protocol.resize == "pillow-bicubic" && !change,
                            .skip_broken = options.skip_broken,
                            .broken_hint = " (--skip-broken leaves such images out)",
                            .size_hint = "; this protocol needs one size: give --crop S to bring all to SxS"};
  if (!change) reading.prepare = [this](const at::Tensor& images) { return measurer.prepare(images); };
  SequentialReader reader(data, std::move(reading));
  Progress progress(title, data.size(), "images");
  int64_t done = 0;
  while (const auto batch = reader.next()) {
    check_interrupt();
    into.add(change ? measurer.extract(change(batch->images)) : measurer.extract_prepared(batch->images),
             labelled ? batch->labels : at::Tensor());
    progress.update(done += batch->labels.size(0));
  }
  if (reader.skipped() > 0)
    warning(cat(reader.skipped(), " broken images of ", data.describe(), " were left out"));
  skipped += reader.skipped();
}

ExpectedSet GivenSet::expected() const {
  if (images) return {description, images->size()};
  return {description, set->count() > 0 ? std::optional(set->count()) : std::nullopt};
}

namespace {

// What compare_sets would find out only after the images are made and measured.
void check_statistics(Measurer& measurer, const std::string& path, const StatisticsFile& statistics,
                      const MetricSet& metrics) {
  if (metrics.spatial && !statistics.spatial)
    throw InputError(cat("--metrics sfid: ", path, " has no mu_s and sigma_s; give the images themselves"));
  const FeatureRows probe = measurer.extract(at::zeros({1, 3, 32, 32}, at::kByte));
  const auto same = [&](const char* key, const GaussianStats& stats, const at::Tensor& rows) {
    if (stats.mean.size(0) != rows.size(1))
      throw InputError(cat(path, ": ", key, " has ", stats.mean.size(0), " dimensions, the network has ",
                           rows.size(1), "; statistics of another network or tap?"));
  };
  same("mu", statistics.features, probe.pool);
  if (metrics.spatial) same("mu_s", *statistics.spatial, probe.spatial);
}

}  // namespace

GivenSet open_given(Evaluation& e, const std::string& path, const MetricSet& metrics) {
  GivenSet out;
  out.metrics = metrics;
  if (!is_statistics_file(path)) {
    out.images = open_dataset(path);
    out.description = out.images->describe();
    note(out.description);
    return out;
  }
  StatisticsFile statistics = read_statistics(path);
  out.description = path;
  out.hash = sha256_file(path);
  if (!statistics.protocol.empty() && statistics.protocol != e.protocol.name)
    warning(cat(path, ": was made under protocol ", statistics.protocol, ", not ", e.protocol.name));
  if (!statistics.weights_sha256.empty() && statistics.weights_sha256 != e.measurer.weights_hash())
    warning(cat(path, ": was made with other weights (", statistics.weights_sha256.substr(0, 8), ", here ",
                e.measurer.weights_hash().substr(0, 8), ")"));
  check_statistics(e.measurer, path, statistics, metrics);
  if (statistics.has_images && (metrics.kernel || metrics.manifold || metrics.score))
    out.images = open_dataset(path);
  out.set.emplace(e.protocol, metrics, std::move(statistics), out.images ? e.expected(*out.images) : 0);
  return out;
}

void measure_given(Evaluation& e, GivenSet& given, const char* title) {
  if (!given.images) return;
  if (!given.set) given.set.emplace(e.protocol, given.metrics, e.expected(*given.images));
  e.measure(*given.images, *given.set, title);
}

namespace {

// The options of a table that reach the images: an order of its own knows no re-mask temperature.
Json table_in_force(const Schedule& schedule, const TableOptions& table) {
  Json out = config_to_json(table);
  if (schedule.priority().has_value()) out.erase("temperature");
  return out;
}

class GivenSubject : public EvalSubject {
 public:
  explicit GivenSubject(Evaluation& e) : e_(e), given_(open_given(e, e.options.images, e.metrics)) {}
  ExpectedSet expected() const override { return given_.expected(); }
  MeasuredSet measure(int64_t, std::vector<Figure>&) override {
    measure_given(e_, given_, "measure");
    return std::move(*given_.set);
  }
  void describe(Json& result) const override { result["images"] = given_.description; }

 private:
  Evaluation& e_;
  GivenSet given_;
};

// The tokenizer's reconstructions of all images, and how near they come.
class ReconstructedSubject : public EvalSubject {
 public:
  explicit ReconstructedSubject(Evaluation& e)
      : e_(e), source_(open_dataset(e.options.images.empty() ? e.options.reference : e.options.images)) {}
  ExpectedSet expected() const override { return {"the reconstructions", source_->size()}; }

  MeasuredSet measure(int64_t, std::vector<Figure>& extra) override {
    Tokenizer tokenizer = open_tokenizer(e_.options.model, *e_.config, e_.device);
    CodeHistogram codes(e_.config->tokenizer->codes);
    double psnr_sum = 0, ssim_sum = 0;
    const at::NoGradGuard no_grad;
    MeasuredSet set(e_.protocol, e_.metrics, e_.expected(*source_));
    if (e_.options.images.empty()) e_.skipped = 0;  // the reference's own images: broken ones count once
    e_.measure(*source_, set, "reconstruct", [&](const at::Tensor& images) {
      const at::Tensor originals = images.to(e_.device).to(at::kFloat) / 255;
      const at::Tensor ids = tokenizer->encode(originals);
      codes.add(ids);
      const at::Tensor bytes = decode_to_bytes(*tokenizer, ids), again = bytes.to(at::kFloat) / 255;
      psnr_sum += psnr(again, originals.cpu()).sum().item<double>();
      ssim_sum += ssim(again, originals.cpu()).sum().item<double>();
      return e_.protocol.quantise == "uint8" ? bytes : tokenizer->decode(ids).clamp(0, 1);
    });
    const double count = double(set.count());
    extra = {{"psnr", psnr_sum / count, {}},
             {"ssim", ssim_sum / count, {}},
             {"code_usage", codes.usage(), {}},
             {"code_perplexity", codes.perplexity(), {}}};
    return set;
  }

  void describe(Json& result) const override {
    result["images"] = source_->describe();
    result["tokenizer"] = true;
  }

 private:
  Evaluation& e_;
  std::unique_ptr<ImageDataset> source_;
};

// Images of a model; one run per seed.
class GeneratedSubject : public EvalSubject {
 public:
  GeneratedSubject(Evaluation& e, const GivenSet& reference)
      : e_(e),
        dtype_(parse_dtype(e.options.compute.dtype, e.device)),
        pipeline_(Pipeline::open(e.options.model, e.device, dtype_)),
        table_(e.options.table.over(e.config->sampling.table)),
        schedule_(pipeline_.schedule(e.options.schedule, e.options.steps, table_, e.options.policy)),
        conditions_(pipeline_, reference.images.get(), e.options.skip_broken) {
    settle_labels(reference);
    e.options.table.refuse_for(*schedule_);
  }
  ExpectedSet expected() const override { return {"the generated set", e_.options.count}; }
  int64_t runs() const override { return e_.options.repeats; }

  // Goes on from the cache of features, and keeps in it what is done, also when it is stopped.
  MeasuredSet measure(int64_t run, std::vector<Figure>&) override {
    const int64_t seed = e_.options.seed + run, count = e_.options.count;
    const std::vector<int64_t> classes = conditions_.choose(e_.protocol.labels, count, seed);
    const bool labelled = !config().from_texts() && e_.knows_classes(config().class_names);
    const auto labels = [&](int64_t begin, int64_t size) {
      return labelled ? at::tensor(at::ArrayRef<int64_t>(classes.data() + begin, size_t(size)), at::kLong)
                      : at::Tensor();
    };
    FeatureCache cache(cache_folder(), cache_key(seed, classes));
    MeasuredSet set(e_.protocol, e_.metrics, count);
    int64_t done = 0;
    cache.load([&](const FeatureRows& rows) {
      set.add(rows, labels(done, rows.size()));
      done += rows.size();
    });
    if (done > 0)
      note(cat("seed ", seed, ": features of ", done, " images come from the cache of an earlier run"));
    Progress progress(cat("generate (seed ", seed, ")"), count, "images", done);
    try {
      while (done < count) {
        check_interrupt();
        const int64_t size = std::min(e_.options.batch_size, count - done);
        const BatchRequest request = conditions_.request(classes, seed, done, size);
        const at::Tensor tokens = pipeline_.generate_tokens(request, *schedule_);
        const FeatureRows rows = e_.measurer.extract(
            e_.protocol.quantise == "uint8" ? pipeline_.decode(tokens) : pipeline_.decode_unit(tokens));
        set.add(rows, labels(done, size));
        cache.add(rows);
        progress.update(done += size);
      }
    } catch (...) {  // stopped, out of memory, a value that is no number: what is done is done
      cache.flush();
      throw;
    }
    cache.flush();
    return set;
  }

  void describe(Json& result) const override {
    result["seed"] = e_.options.seed;
    result["model"] = config().name;
    result["schedule"] = schedule_->name();
    result["steps"] = schedule_->steps();
    if (schedule_->takes_table_options())
      result["table"] = table_in_force(*schedule_, table_);
    else
      result["actions"] = schedule_->describe();
    result["model_hash"] = pipeline_.model_hash();
    result["labels"] = e_.protocol.labels;
    if (config().from_texts()) result["text_encoder_sha256"] = conditions_.encoder_hash();
    result["dtype"] = dtype_name(dtype_);
  }

 private:
  const ModelConfig& config() const { return pipeline_.config(); }

  void settle_labels(const GivenSet& reference) {
    const EvalOptions& o = e_.options;
    std::string& labels = e_.protocol.labels;
    if (config().from_texts()) {  // each caption as often as it stands there
      if (o.labels.empty()) labels = "reference";
    } else if (labels == "reference" && !has_labels_of(reference.images.get(), config())) {
      if (!o.labels.empty())
        throw InputError(
            cat("--labels reference: ", o.reference.empty() ? "there is no reference" : o.reference,
                " has no images of the model's classes; use random or balanced"));
      note("classes are taken in turn: the reference has no images of the model's classes");
      labels = "balanced";
    }
  }

  fs::path cache_folder() const {
    if (e_.options.cache == "none") return {};
    return e_.options.cache.empty() ? FeatureCache::default_folder() : fs::path(e_.options.cache);
  }

  // Everything that a feature depends on. The weights are hashed here, whatever config.json says of them.
  Json cache_key(int64_t seed, const std::vector<int64_t>& classes) const {
    const fs::path& folder = pipeline_.folder();
    return {{"format", 3},
            {"generator", sha256_file((folder / "generator.safetensors").string())},
            {"tokenizer", sha256_file((folder / "tokenizer.safetensors").string())},
            {"threads", at::get_num_threads()},
            {"program", ADANAT_VERSION},
            {"schedule", schedule_->describe()},
            {"schedule_name", schedule_->name()},
            {"steps", schedule_->steps()},
            {"table", schedule_->takes_table_options() ? table_in_force(*schedule_, table_) : Json()},
            {"seed", seed},
            {"count", e_.options.count},
            {"classes", conditions_.hash(classes)},
            {"batch", e_.options.batch_size},
            {"network", e_.protocol.network},
            {"resize", e_.protocol.resize},
            {"normalise", e_.protocol.normalise},
            {"quantise", e_.protocol.quantise},
            {"weights", e_.measurer.weights_hash()},
            {"spatial", e_.metrics.spatial},
            {"device", e_.device.str()},
            {"float32_library", e_.device.is_cpu() ? float32_library() : ""},
            {"dtype", dtype_name(dtype_)}};
  }

  Evaluation& e_;
  at::ScalarType dtype_;
  Pipeline pipeline_;
  TableOptions table_;
  std::unique_ptr<Schedule> schedule_;
  Conditions conditions_;  // of pipeline_
};

}  // namespace

std::unique_ptr<EvalSubject> open_subject(Evaluation& e, const GivenSet& reference) {
  if (e.options.tokenizer) return std::make_unique<ReconstructedSubject>(e);
  if (e.options.generates()) return std::make_unique<GeneratedSubject>(e, reference);
  return std::make_unique<GivenSubject>(e);
}

}  // namespace adanat
