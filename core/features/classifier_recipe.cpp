#include "core/features/classifier_recipe.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/affine_grid_generator.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/grid_sampler_2d.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <numbers>

#include "core/data/loader.h"
#include "core/nn/autocast.h"
#include "core/nn/device.h"
#include "core/nn/module_state.h"
#include "kernels/philox.h"

namespace adanat {

void AugmentationConfig::validate() const {
  require(shift >= 0 && shift <= 512, "shift", "in [0, 512]", shift);
  require(rotate >= 0 && rotate <= 180, "rotate", "in [0, 180]", rotate);
  require(scale >= 0 && scale <= 0.9, "scale", "in [0, 0.9]", scale);
  require(brightness >= 0 && brightness <= 1, "brightness", "in [0, 1]", brightness);
  require(contrast >= 0 && contrast <= 1, "contrast", "in [0, 1]", contrast);
  require(erase >= 0 && erase <= 512, "erase", "in [0, 512]", erase);
}

void ClassifierTrainConfig::validate() const {
  require(role == "features" || role == "measure", "role", "features or measure", role);
  require(seed >= 0, "seed", ">= 0", seed);
  optimizer.validate();
  // Batch statistics of a single image mean nothing.
  require(batch_size % optimizer.accumulate == 0 && batch_size / optimizer.accumulate >= 2, "batch_size",
          "2 or more for each of optimizer.accumulate equal parts", batch_size);
  require_dtype(dtype);
  require(label_smoothing >= 0 && label_smoothing < 1, "label_smoothing", "in [0, 1)", label_smoothing);
  model.validate();
  augmentation.validate();
  ema.validate();
  loop.validate();
}

at::Tensor augment(const at::Tensor& images, const AugmentationConfig& config, uint64_t seed, int64_t step,
                   int64_t first_row) {
  const int64_t count = images.size(0);
  const bool moves = config.shift > 0 || config.rotate > 0 || config.scale > 0;
  const bool recolours = config.brightness > 0 || config.contrast > 0;
  if (!moves && !recolours && config.erase == 0) return images;

  at::Tensor maps = at::empty({count, 2, 3}), light = at::empty({count, 1, 1, 1}),
             spread = at::empty({count, 1, 1, 1});
  at::Tensor squares = at::empty({3, count, 1, 1, 1});  // left, top, side in pixels
  float* map = maps.mutable_data_ptr<float>();
  const double side = double(images.size(3));
  for (int64_t i = 0; i < count; ++i, map += 6) {
    const auto draw = [&](uint32_t which) {
      return kernels::draw(seed, which, uint32_t(first_row + i), uint32_t(step), 0, kernels::Stream::kData);
    };
    const auto around_zero = [](uint32_t bits) { return 2.0 * kernels::unit_open(bits) - 1.0; };  // (-1, 1)
    const kernels::Philox4 place = draw(1), colour = draw(2), square = draw(3);
    // The map goes from places in the result to places in the source, both in [-1, 1].
    const double angle = around_zero(place.x) * config.rotate * std::numbers::pi / 180;
    const double zoom = 1 / (1 + around_zero(place.y) * config.scale);
    map[0] = float(std::cos(angle) * zoom), map[1] = float(-std::sin(angle) * zoom);
    map[2] = float(around_zero(place.z) * config.shift * 2 / side);
    map[3] = float(std::sin(angle) * zoom), map[4] = float(std::cos(angle) * zoom);
    map[5] = float(around_zero(place.w) * config.shift * 2 / side);
    light.mutable_data_ptr<float>()[i] = float(1 + around_zero(colour.x) * config.brightness);
    spread.mutable_data_ptr<float>()[i] = float(1 + around_zero(colour.y) * config.contrast);
    const double edge = kernels::unit_open(square.x) * config.erase;
    float* corner = squares.mutable_data_ptr<float>() + i;
    corner[0] = float(kernels::unit_open(square.y) * side - edge / 2);
    corner[count] = float(kernels::unit_open(square.z) * side - edge / 2);
    corner[2 * count] = float(edge);
  }
  at::Tensor out = images;
  if (moves) {
    const at::Tensor grid =
        at::affine_grid_generator(maps.to(images.device()), images.sizes(), /*align_corners=*/false);
    out = at::grid_sampler_2d(out, grid, /*bilinear*/ 0, /*border*/ 1, /*align_corners=*/false);
  }
  if (recolours) {
    const at::Tensor middle = out.mean({1, 2, 3}, /*keepdim=*/true);
    out = (((out - middle) * spread.to(images.device()) + middle) * light.to(images.device())).clamp(0, 1);
  }
  if (config.erase > 0) {
    const at::Tensor place = squares.to(images.device());
    const at::Tensor line = at::arange(images.size(3), out.options()) + 0.5;
    const auto inside = [&](const at::Tensor& at_pixel, const at::Tensor& begin) {
      return at_pixel.ge(begin).logical_and(at_pixel.lt(begin + place[2]));
    };
    const at::Tensor hit =
        inside(line.view({1, 1, 1, -1}), place[0]).logical_and(inside(line.view({1, 1, -1, 1}), place[1]));
    out = at::where(hit, out.mean({1, 2, 3}, /*keepdim=*/true), out);
  }
  return out;
}

std::shared_ptr<const ImageDataset> open_held_out(const std::string& held_out, const std::string& data) {
  if (held_out.empty()) return nullptr;
  if (held_out[0] != '#' && held_out[0] != '@') return open_dataset(held_out);
  const DatasetSpec spec = parse_dataset_spec(data);
  const std::string split = held_out[0] == '@' && !spec.split.empty() ? "#" + spec.split : "";
  return open_dataset(spec.path.string() + split + held_out);
}

namespace {

constexpr const char *kModel = "model.", *kOptimizer = "optimizer.", *kEma = "ema.", *kMeasured = "measured.";
constexpr const char *kAccuracy = "accuracy", *kLoss = "loss";

class ClassifierRecipe : public Recipe {
 public:
  ClassifierRecipe(ClassifierTrainConfig config, std::shared_ptr<const ImageDataset> train,
                   std::shared_ptr<const ImageDataset> held_out, RecipeContext context, const TensorMap* init)
      : config_(std::move(config)), context_(std::move(context)), train_(std::move(train)) {
    config_.seed = int64_t(context_.seed);
    const int64_t classes = int64_t(train_->class_names().size());
    if (config_.model.classes == 0) config_.model.classes = classes;
    config_.validate();
    if (config_.model.classes != classes)
      throw InputError(cat("model.classes is ", config_.model.classes, ", but ", train_->describe(), " has ",
                           classes, " classes; leave it 0 to take them from the data"));
    if (held_out && held_out->class_names() != train_->class_names())
      throw InputError(
          cat("held_out: ", held_out->describe(), " has other classes than ", train_->describe()));

    at::manual_seed(context_.seed);
    net_ = std::make_shared<ClassifierNet>(config_.model);
    if (init != nullptr) load_module_state(*net_, *init, "--init");
    net_->to(context_.device);
    for (at::Tensor& parameter : net_->parameters())
      if (parameter.dim() == 4) parameter.set_data(parameter.contiguous(at::MemoryFormat::ChannelsLast));
    optimizer_ = std::make_unique<Optimizer>(named_parameters(*net_), config_.optimizer);
    // Norm statistics are averaged like the weights they belong to.
    NamedTensors state;
    for (const auto& [name, tensor] : module_state(*net_)) state.emplace_back(name, tensor);
    ema_ = std::make_unique<Ema>(state, config_.ema);

    LoaderOptions options;
    options.batch_size = rows_at_once();
    options.image_size = config_.model.image_size;
    options.flip = config_.augmentation.flip;
    options.threads = context_.threads;
    options.seed = context_.seed;
    options.rank = context_.rank, options.world_size = context_.world_size;
    loader_ = std::make_unique<Loader>(train_, options);
    if (held_out) {
      options = LoaderOptions{};
      options.batch_size = std::min<int64_t>(250, held_out->size());
      options.image_size = config_.model.image_size;
      options.threads = context_.threads;
      options.shuffle = false, options.drop_last = false;
      held_out_loader_ = std::make_unique<Loader>(held_out, options);
    }
  }

  std::string name() const override { return "classifier"; }
  Json config() const override {
    Json j = config_to_json(config_);
    // Compared on resume: other images under the same weights would go unnoticed.
    j["trained_on"] = {{"images", train_->size()}, {"class_names", train_->class_names()}};
    return j;
  }
  const LoopConfig& loop() const override { return config_.loop; }
  std::string dtype() const override { return config_.dtype; }
  void set_dtype(const std::string& dtype) override { config_.dtype = dtype; }

  StepReport step(int64_t step) override {
    net_->train();
    measured_.clear();
    const int64_t parts = config_.optimizer.accumulate;
    at::Tensor total, right;
    StepReport report;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t at_batch = step * parts + part;
      const Batch batch = loader_->batch(at_batch);
      const at::Tensor labels = sent_to(context_.device, batch.labels);
      const at::Tensor images =
          augment(sent_to(context_.device, batch.images).to(at::kFloat) / 255, config_.augmentation,
                  context_.seed, at_batch, context_.rank * rows_at_once());
      const at::Tensor logits = class_logits(images);
      const at::Tensor loss = at::cross_entropy_loss(logits, labels, /*weight=*/{}, at::Reduction::Mean,
                                                     /*ignore_index=*/-100, config_.label_smoothing) /
                              double(parts);
      loss.backward();
      const at::Tensor hits = logits.detach().argmax(1).eq(labels).to(at::kFloat).mean() / double(parts);
      total = part == 0 ? loss.detach() : total + loss.detach();
      right = part == 0 ? hits : right + hits;
      report.images += labels.size(0);
    }
    const double rate = learning_rate_at(config_.optimizer, step, config_.loop.steps);
    const at::Tensor norm = optimizer_->step(rate);
    ema_->update(step);
    report.values = {{"loss", total}, {"accuracy", right}, {"learning_rate", at::scalar_tensor(rate)}};
    if (norm.defined()) report.values.emplace_back("gradient_norm", norm);
    return report;
  }

  Scalars evaluate() override {
    if (!held_out_loader_) return {};
    const at::NoGradGuard no_grad;
    const AveragedWeights averaged(*ema_, *net_);
    double loss = 0;
    int64_t right = 0, count = 0;
    for (int64_t i = 0; i < held_out_loader_->batches_per_epoch(); ++i) {
      const Batch batch = held_out_loader_->batch(i);
      const at::Tensor labels = sent_to(context_.device, batch.labels);
      const at::Tensor logits =
          net_->forward(sent_to(context_.device, batch.images).to(at::kFloat) / 255, {"logits"})[0];
      loss += at::cross_entropy_loss(logits, labels, {}, at::Reduction::Sum).item<double>();
      right += logits.argmax(1).eq(labels).sum().item<int64_t>();
      count += labels.size(0);
    }
    measured_ = {{kAccuracy, double(right) / double(count)}, {kLoss, loss / double(count)}};
    return measured_;
  }

  void save(TensorMap& tensors) const override {
    for (const auto& [name, tensor] : module_state(*net_)) tensors[kModel + name] = tensor;
    optimizer_->save(tensors, kOptimizer);
    ema_->save(tensors, kEma);
    for (const auto& [name, value] : measured_)
      tensors[kMeasured + name] = at::scalar_tensor(value, at::kDouble);
  }

  void load(const TensorMap& tensors, const std::string& where) override {
    const at::NoGradGuard no_grad;
    TensorMap model;
    const std::string prefix = kModel;
    for (const auto& [name, tensor] : tensors)
      if (name.rfind(prefix, 0) == 0) model.emplace(name.substr(prefix.size()), tensor);
    load_module_state(*net_, model, where);
    optimizer_->load(tensors, kOptimizer, where);
    ema_->load(tensors, kEma, where);
    measured_.clear();
    for (const char* name : {kAccuracy, kLoss}) {
      const auto found = tensors.find(std::string(kMeasured) + name);
      if (found == tensors.end()) continue;
      if (found->second.scalar_type() != at::kDouble || found->second.dim() != 0)
        throw InputError(cat(where, ": ", found->first, " is no float64 number"));
      measured_.emplace_back(name, found->second.item<double>());
    }
  }

  void write_model(const std::filesystem::path& folder) override {
    TensorMap tensors;
    for (const auto& [name, tensor] : ema_->averages()) tensors[name] = tensor;
    Metadata metadata{{"kind", "classifier"},
                      {"format", "1"},
                      {"role", config_.role},
                      {"config", config_to_json(config_.model).dump()},
                      {"class_names", Json(train_->class_names()).dump()},
                      {"data", train_->describe()},
                      {"version", ADANAT_VERSION}};
    if (held_out_loader_) metadata["held_out"] = held_out_loader_->dataset().describe();
    for (const auto& [name, value] : measured_) metadata["held_out_" + name] = cat(value);
    write_tensors(folder / (config_.role + ".safetensors"), tensors, metadata);
    if (context_.finish_model) context_.finish_model(folder);
  }

  double data_wait_seconds() const override { return loader_->wait_seconds(); }
  DataHealth data_health() const override {
    const int64_t parts = config_.optimizer.accumulate;
    return {(loader_->batches_per_epoch() + parts - 1) / parts, train_->size(), loader_->skipped()};
  }

 private:
  int64_t rows_at_once() const { return config_.batch_size / config_.optimizer.accumulate; }

  // (B, classes) float32; the backward pass of a bfloat16 run goes without autocast.
  at::Tensor class_logits(const at::Tensor& images) {
    const AutocastScope autocast(config_.dtype == "bfloat16", context_.device.type());
    return net_->forward(images, {"logits"})[0].to(at::kFloat);
  }

  ClassifierTrainConfig config_;
  RecipeContext context_;
  std::shared_ptr<const ImageDataset> train_;
  std::shared_ptr<ClassifierNet> net_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;
  std::unique_ptr<Loader> loader_, held_out_loader_;
  // What the weights as they are came to on held_out; empty once they have moved on. The written file holds
  // it, and its hash is the network's name: so it must be the same after a resume.
  Scalars measured_;
};

}  // namespace

std::unique_ptr<Recipe> make_classifier_recipe(ClassifierTrainConfig config,
                                               std::shared_ptr<const ImageDataset> train,
                                               std::shared_ptr<const ImageDataset> held_out,
                                               RecipeContext context, const TensorMap* init) {
  return std::make_unique<ClassifierRecipe>(std::move(config), std::move(train), std::move(held_out),
                                            std::move(context), init);
}

}  // namespace adanat
