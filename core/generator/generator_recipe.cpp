#include "core/generator/generator_recipe.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include "core/data/data_order.h"
#include "core/generator/generator_init.h"
#include "core/generator/masking.h"
#include "core/nn/autocast.h"
#include "core/nn/device.h"
#include "core/nn/module_state.h"
#include "core/train/finite.h"

namespace adanat {

void GeneratorTrainConfig::validate() const {
  model.validate(), loop.validate(), optimizer.validate(), ema.validate();
  require(batch_size >= 1, "batch_size", ">= 1", batch_size);
  require(batch_size % optimizer.accumulate == 0, "batch_size", "a multiple of optimizer.accumulate",
          batch_size);
  require(mask_law == "beta" || mask_law == "cosine" || mask_law == "mixed", "mask_law",
          "beta, cosine or mixed", mask_law);
  // Beyond it the law is one point; far beyond, the gamma draws under it overflow.
  require(mask_alpha > 0 && mask_alpha <= 1000, "mask_alpha", "in (0, 1000]", mask_alpha);
  require(mask_beta > 0 && mask_beta <= 1000, "mask_beta", "in (0, 1000]", mask_beta);
  require_dtype(dtype);
  require(label_smoothing >= 0 && label_smoothing < 1, "label_smoothing", "in [0, 1)", label_smoothing);
  require(store == "float32" || store == "float16" || store == "bfloat16", "store",
          "float32, float16 or bfloat16", store);
  require(seed >= 0, "seed", ">= 0", seed);
  require(condition_dropout >= 0 && condition_dropout <= 1, "condition_dropout", "in [0, 1]",
          condition_dropout);
}

at::Tensor masked_token_loss(GeneratorImpl& generator, const at::Tensor& ids, const at::Tensor& hidden,
                             const at::Tensor& condition, double label_smoothing) {
  // The head, half of a small model's work, runs only where a loss is taken. The places are looked up where
  // `hidden` lies: on a GPU that would wait for all the work before it.
  const at::Device device = condition.device();
  const at::Tensor where = sent_to(device, at::nonzero(hidden.reshape({-1})).squeeze(1));
  const at::Tensor targets = sent_to(device, ids);
  const at::Tensor masked = targets.masked_fill(sent_to(device, hidden), generator.mask_id());
  const at::Tensor features = generator.features(masked, condition);
  const at::Tensor rows = features.reshape({-1, features.size(2)}).index_select(0, where);
  const at::Tensor logits = generator.logits(rows).to(at::kFloat);
  return at::cross_entropy_loss(logits, targets.reshape({-1}).index_select(0, where), {}, at::Reduction::Mean,
                                /*ignore_index=*/-100, label_smoothing);
}

void write_generator(const std::filesystem::path& file, const GeneratorConfig& config,
                     const TensorMap& weights) {
  write_tensors(file, weights, {{"format", kGeneratorFormat}, {"config", config_to_json(config).dump()}});
}

namespace {

class GeneratorRecipe : public Recipe {
 public:
  GeneratorRecipe(GeneratorTrainConfig config, TokenFile data, const GeneratorInit* init,
                  RecipeContext context, SampleImages sample_images, std::optional<TextFeatures> texts)
      : config_(std::move(config)),
        data_(std::move(data)),
        context_(std::move(context)),
        sample_images_(std::move(sample_images)),
        texts_(std::move(texts)),
        generator_(at::globalContext().defaultGenerator(at::kCPU)) {
    if (data_.tokens.size(0) == 0) throw InputError("the token file holds no images");
    GeneratorConfig& model = config_.model;
    model.codes = data_.vocab;
    model.grid_height = data_.grid_height, model.grid_width = data_.grid_width;
    model.condition = texts_ ? "text" : "class";
    if (texts_)
      model.text_width = texts_->width(), model.text_tokens = texts_->tokens();
    else
      model.classes = data_.class_names.empty() ? data_.classes.max().item<int64_t>() + 1
                                                : int64_t(data_.class_names.size());
    config_.validate();
    context_.seed = uint64_t(config_.seed);
    if (global_batch() > data_.tokens.size(0))
      throw InputError(cat("batch_size ", config_.batch_size, " needs at least ", global_batch(),
                           " images, but the token file holds ", data_.tokens.size(0)));
    if (!config_.held_out.empty()) {
      held_out_ = read_token_file(config_.held_out);
      if (held_out_->tokenizer_hash != data_.tokenizer_hash || held_out_->vocab != data_.vocab)
        throw InputError(cat(config_.held_out, ": was made by another tokenizer than the training tokens"));
      if (held_out_->tokens.size(0) == 0) throw InputError(cat(config_.held_out, ": holds no images"));
      if (texts_)
        take_captions(*held_out_, config_.held_out);
      else
        number_classes(*held_out_, config_.held_out);
    }
    if (texts_) take_captions(data_, config_.data);
    at::manual_seed(context_.seed);  // every device: dropout draws where the weights are
    net_ = Generator(model);
    if (init != nullptr) {
      load_module_state(*net_, initial_weights(*init, model, data_.class_names, data_.tokenizer_hash),
                        init->where);
    }
    net_->to(context_.device);
    net_->train();
    optimizer_ = std::make_unique<Optimizer>(named_parameters(*net_), config_.optimizer);
    ema_ = std::make_unique<Ema>(optimizer_->parameters(), config_.ema);
  }

  std::string name() const override { return "generator"; }
  Json config() const override {
    Json j = config_to_json(config_);
    // Compared on resume: other tokens under the same weights would go unnoticed.
    j["trained_on"] = {{"tokenizer_hash", data_.tokenizer_hash},
                       {"rows", data_.tokens.size(0)},
                       {"class_names", data_.class_names}};
    if (texts_) j["trained_on"]["text_encoder"] = texts_->encoder_hash();
    return j;
  }
  const LoopConfig& loop() const override { return config_.loop; }
  std::string dtype() const override { return config_.dtype; }
  void set_dtype(const std::string& dtype) override { config_.dtype = dtype; }

  StepReport step(int64_t step) override {
    const int64_t parts = config_.optimizer.accumulate, rows = config_.batch_size / parts;
    const Batch batch = draw_batch(data_, batch_rows(step), config_.condition_dropout);
    at::Tensor total;
    for (int64_t part = 0; part < parts; ++part) {
      // The mean over all that the batch hides, however it is cut.
      const Batch cut = batch.narrow(part * rows, rows);
      const at::Tensor loss = batch_loss(cut, config_.label_smoothing) *
                              (double(cut.hidden_count()) / double(batch.hidden_count()));
      loss.backward();
      total = total.defined() ? total + loss.detach() : loss.detach();
    }
    const double rate = learning_rate_at(config_.optimizer, step, config_.loop.steps);
    const at::Tensor norm = optimizer_->step(rate);
    ema_->update(step);
    StepReport report;
    report.values = {{"loss", total}, {"learning_rate", at::scalar_tensor(rate)}};
    if (norm.defined()) report.values.emplace_back("gradient_norm", norm);
    report.images = config_.batch_size;
    return report;
  }

  Scalars evaluate() override {
    if (!held_out_.has_value()) return {};
    const AveragedWeights averaged(*ema_, *net_);
    const at::NoGradGuard no_grad;
    // The same masks at every evaluation, for batches of any size, and no trace of it in the training's
    // random state.
    const at::Generator before = generator_.clone();
    at::Generator fixed = generator_;
    fixed.set_current_seed(context_.seed + 1);
    const int64_t count = held_out_->tokens.size(0);
    const Batch all = draw_batch(*held_out_, at::arange(count), 0);
    double sum = 0;
    for (int64_t begin = 0; begin < count; begin += config_.batch_size) {
      const Batch cut = all.narrow(begin, std::min(count - begin, config_.batch_size));
      sum += batch_loss(cut, 0).item<double>() * double(cut.hidden_count());
    }
    generator_.set_state(before.get_state());
    return {{"held_out_loss", sum / double(all.hidden_count())}};
  }

  std::vector<NamedImage> samples() override {
    if (!sample_images_) return {};
    const AveragedWeights averaged(*ema_, *net_);
    return sample_images_(*net_);
  }

  void save(TensorMap& tensors) const override {
    for (const auto& [name, tensor] : module_state(*net_)) tensors["model." + name] = tensor;
    optimizer_->save(tensors, "optimizer.");
    ema_->save(tensors, "ema.");
  }

  void load(const TensorMap& tensors, const std::string& where) override {
    TensorMap model;
    for (const auto& [name, tensor] : tensors)
      if (name.rfind("model.", 0) == 0) model[name.substr(6)] = tensor;
    load_module_state(*net_, model, where);
    optimizer_->load(tensors, "optimizer.", where);
    ema_->load(tensors, "ema.", where);
  }

  void write_model(const std::filesystem::path& folder) override {
    TensorMap weights = module_state(*net_);
    for (const auto& [name, average] : ema_->averages()) weights[name] = average;
    const at::ScalarType type = config_.store == "float16"    ? at::kHalf
                                : config_.store == "bfloat16" ? at::kBFloat16
                                                              : at::kFloat;
    for (auto& [name, tensor] : weights) tensor = tensor.to(type);
    require_finite_weights(weights, "train generator", config_.store);
    write_generator(folder / "generator.safetensors", config_.model, weights);
    if (context_.finish_model) context_.finish_model(folder);
  }

 private:
  // From here on `classes` of a captioned file are its captions' places among the encoded texts; 0 is the
  // empty one.
  void take_captions(TokenFile& file, const std::string& name) const {
    if (file.captions.empty())
      throw InputError(
          cat(name, ": holds no captions; encode a captioned data set with `adanat tokenize encode`"));
    file.classes = texts_->rows_of(file.captions);
    file.captions = {};
  }
  // Held-out images may have fewer classes, which their own folders number otherwise: names decide, and
  // numbers only where one of the two files has no names.
  void number_classes(TokenFile& file, const std::string& name) const {
    if (!file.class_names.empty() && !data_.class_names.empty() && file.class_names != data_.class_names) {
      at::Tensor numbers = at::empty({int64_t(file.class_names.size())}, at::kLong);
      for (size_t i = 0; i < file.class_names.size(); ++i) {
        const auto found = std::find(data_.class_names.begin(), data_.class_names.end(), file.class_names[i]);
        if (found == data_.class_names.end())
          throw InputError(cat(name, ": has the class \"", file.class_names[i],
                               "\", which the training tokens do not know"));
        numbers.mutable_data_ptr<int64_t>()[i] = found - data_.class_names.begin();
      }
      file.classes = numbers.index_select(0, file.classes);
    }
    const int64_t last = file.classes.max().item<int64_t>();
    if (last >= config_.model.classes)
      throw InputError(
          cat(name, ": has the class ", last, ", the training tokens know ", config_.model.classes));
  }
  int64_t empty_class() const { return texts_ ? 0 : config_.model.classes; }

  int64_t global_batch() const { return config_.batch_size * context_.world_size; }

  // Rows of this process for an update: the order of the epoch, cut into whole batches.
  at::Tensor batch_rows(int64_t step) {
    const int64_t per_epoch = data_.tokens.size(0) / global_batch(), epoch = step / per_epoch;
    if (epoch != order_epoch_) {
      order_ = epoch_order(context_.seed, epoch, data_.tokens.size(0));
      order_epoch_ = epoch;
    }
    const int64_t begin = step % per_epoch * global_batch() + context_.rank * config_.batch_size;
    at::Tensor rows = at::empty({config_.batch_size}, at::kLong);
    for (int64_t i = 0; i < config_.batch_size; ++i)
      rows.mutable_data_ptr<int64_t>()[i] = order_[size_t(begin + i)];
    return rows;
  }

  // Rows of a token file with what was drawn for them, on the CPU.
  struct Batch {
    at::Tensor ids;      // (B, N) i64
    at::Tensor hidden;   // (B, N) bool, at least one in every row
    at::Tensor classes;  // (B) i64

    int64_t hidden_count() const { return hidden.sum().item<int64_t>(); }
    Batch narrow(int64_t begin, int64_t rows) const {
      return {ids.narrow(0, begin, rows), hidden.narrow(0, begin, rows), classes.narrow(0, begin, rows)};
    }
  };

  Batch draw_batch(const TokenFile& file, const at::Tensor& index, double condition_dropout) {
    const int64_t b = index.size(0), n = config_.model.tokens();
    Batch batch;
    batch.ids = file.tokens.index_select(0, index).to(at::kLong);
    batch.classes = file.classes.index_select(0, index);
    const at::Tensor ratios =
        draw_mask_ratios(config_.mask_law, config_.mask_alpha, config_.mask_beta, b, generator_);
    batch.hidden = hide_positions(ratios, at::rand({b, n}, generator_, at::kFloat));
    if (condition_dropout > 0)
      batch.classes =
          batch.classes.masked_fill(at::rand({b}, generator_, at::kFloat) < condition_dropout, empty_class());
    return batch;
  }

  // The mean over what is hidden.
  at::Tensor batch_loss(const Batch& batch, double smoothing) {
    at::Tensor condition = sent_to(context_.device, texts_ ? texts_->states(batch.classes) : batch.classes);
    if (texts_) condition = condition.to(at::kFloat);  // widened there: half the bytes travel
    const AutocastScope autocast(config_.dtype == "bfloat16", context_.device.type());
    return masked_token_loss(*net_, batch.ids, batch.hidden, condition, smoothing);
  }

  GeneratorTrainConfig config_;
  TokenFile data_;
  std::optional<TokenFile> held_out_;
  RecipeContext context_;
  SampleImages sample_images_;
  std::optional<TextFeatures> texts_;
  at::Generator generator_;
  Generator net_{nullptr};
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;
  std::vector<int64_t> order_;
  int64_t order_epoch_ = -1;
};

}  // namespace

std::unique_ptr<Recipe> make_generator_recipe(GeneratorTrainConfig config, TokenFile data,
                                              const GeneratorInit* init, RecipeContext context,
                                              SampleImages sample_images, std::optional<TextFeatures> texts) {
  return std::make_unique<GeneratorRecipe>(std::move(config), std::move(data), init, std::move(context),
                                           std::move(sample_images), std::move(texts));
}

}  // namespace adanat
