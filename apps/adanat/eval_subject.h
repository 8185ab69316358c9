// What `adanat eval` measures: images that a model makes, a tokenizer's reconstructions, or images that are
// given; one network and one protocol for all of them and for the reference.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/adanat/cli.h"
#include "apps/adanat/table_flags.h"
#include "apps/pipeline/evaluate.h"
#include "apps/pipeline/model_folder.h"
#include "core/base/config.h"

namespace adanat {

struct EvalOptions {
  std::string model, images, reference, weights, metrics, protocol, schedule, policy, save_stats, labels,
      cache, plot, plot_metric;
  std::vector<std::string> compare;
  int64_t count = 0, steps = 0, seed = 42, batch_size = 64, repeats = 1, crop = 0, kid_subsets = 0,
          kid_subset_size = 0;
  TableFlags table;
  bool tokenizer = false, skip_broken = false, half_distances = false;
  ComputeOptions compute;

  bool generates() const { return images.empty() && !tokenizer; }
};

// One run of eval: what all its parts share.
struct Evaluation {
  const EvalOptions& options;
  Protocol protocol;
  MetricSet metrics;
  Measurer measurer;
  std::optional<ModelConfig> config;  // of -m
  at::Device device;                  // that generates and reconstructs
  int64_t crop = 0;
  int64_t skipped = 0;  // broken images left out, of both sides

  bool knows_classes(const std::vector<std::string>& names) const;
  // Images that a data set will give; -1 = not known before, since broken ones are left out.
  int64_t expected(const ImageDataset& data) const;
  // Measures every image of a dataset; `change` sees each batch first. Counts what was skipped.
  void measure(const ImageDataset& data, MeasuredSet& into, const char* title,
               const std::function<at::Tensor(const at::Tensor&)>& change = {});
};

// One side that is given as files: statistics, images, or both (ADM's reference batches).
struct GivenSet {
  MetricSet metrics;                     // what is wanted of it
  std::unique_ptr<ImageDataset> images;  // null: statistics alone
  std::optional<MeasuredSet> set;
  std::string description, hash;  // hash of a statistics file, else ""

  ExpectedSet expected() const;
};
// Reads statistics; images are only opened. Warns of statistics of another protocol or network.
GivenSet open_given(Evaluation& e, const std::string& path, const MetricSet& metrics);
// The images, where there are any.
void measure_given(Evaluation& e, GivenSet& given, const char* title);

// The set whose figures are asked for.
class EvalSubject {
 public:
  virtual ~EvalSubject() = default;
  virtual ExpectedSet expected() const = 0;  // before the first run
  virtual int64_t runs() const { return 1; }
  // Run 0, 1, ... of runs(), each once. `extra` gets figures that come of measuring alone.
  virtual MeasuredSet measure(int64_t run, std::vector<Figure>& extra) = 0;
  // Adds to the result what it says of this set.
  virtual void describe(Json& result) const = 0;
};

// By the options of `e`, which outlives it, as does `reference`; its images lend classes and captions. Finds
// out whatever is wrong with the model or the flags before any image is read; settles e.protocol.labels.
std::unique_ptr<EvalSubject> open_subject(Evaluation& e, const GivenSet& reference);

}  // namespace adanat
