#include "tokenizer/tokenizer_recipe.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/l1_loss.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "core/data/loader.h"
#include "core/features/perceptual.h"
#include "core/metrics/image_metrics.h"
#include "core/nn/autocast.h"
#include "core/nn/device.h"
#include "core/nn/module_state.h"
#include "core/train/finite.h"

namespace adanat {

void TokenizerLossConfig::validate() const {
  require(l1 >= 0, "loss.l1", ">= 0", l1);
  require(l2 >= 0, "loss.l2", ">= 0", l2);
  require(perceptual >= 0, "loss.perceptual", ">= 0", perceptual);
  require(codebook >= 0, "loss.codebook", ">= 0", codebook);
  if (l1 == 0 && l2 == 0 && perceptual == 0)
    throw InputError("one of loss.l1, loss.l2 and loss.perceptual must be > 0");
}

void TokenizerTrainConfig::validate() const {
  require(seed >= 0, "seed", ">= 0", seed);
  optimizer.validate();
  gan_optimizer.validate();
  require(batch_size >= 1 && batch_size % optimizer.accumulate == 0, "batch_size",
          "a multiple of optimizer.accumulate, >= 1", batch_size);
  require(gan_optimizer.accumulate == 1, "gan_optimizer.accumulate",
          "1 (it takes optimizer.accumulate's parts)", gan_optimizer.accumulate);
  require_dtype(dtype);
  require(store == "float32" || store == "float16" || store == "bfloat16", "store",
          "float32, float16 or bfloat16", store);
  require(evaluate_images >= 0, "evaluate_images", ">= 0", evaluate_images);
  model.validate();
  quantizer.validate();
  loss.validate();
  gan.validate();
  ema.validate();
  loop.validate();
  if (gan.weight > 0 && model.image_size >> gan.layers < 3)
    throw InputError(cat("gan.layers = ", gan.layers, " needs images of at least ", 3 << gan.layers,
                         " pixels, model.image_size is ", model.image_size));
}

namespace {

constexpr const char *kModel = "model.", *kOptimizer = "optimizer.", *kEma = "ema.",
                     *kQuantizer = "quantizer.", *kGan = "gan.", *kGanOptimizer = "gan_optimizer.";
constexpr int64_t kSampleColumns = 16, kSampleRows = 3;  // rows of originals

at::Tensor gradient(const at::Tensor& of, const at::Tensor& at, const at::Tensor& upstream, bool keep_graph) {
  std::vector<at::Tensor> upstreams;
  if (upstream.defined()) upstreams.push_back(upstream);
  return torch::autograd::grad({of}, {at}, upstreams, keep_graph)[0];
}

at::ScalarType store_type(const std::string& name) {
  return name == "float16" ? at::kHalf : name == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

// (R, K, 3, S, S) in [0, 1] -> one picture of R rows and K columns with a white line of one pixel between.
Image tile(const at::Tensor& images) {
  const int64_t rows = images.size(0), columns = images.size(1), side = images.size(3), cell = side + 1;
  at::Tensor canvas = at::ones({3, rows * cell - 1, columns * cell - 1});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      canvas.slice(1, r * cell, r * cell + side).slice(2, c * cell, c * cell + side).copy_(images[r][c]);
  const at::Tensor bytes = (canvas.clamp(0, 1) * 255).round().to(at::kByte).permute({1, 2, 0}).contiguous();
  Image image{int(bytes.size(1)), int(bytes.size(0)), {}};
  image.rgb.assign(bytes.const_data_ptr<uint8_t>(), bytes.const_data_ptr<uint8_t>() + bytes.numel());
  return image;
}

TensorMap below(const TensorMap& tensors, const std::string& prefix) {
  TensorMap out;
  for (const auto& [name, tensor] : tensors)
    if (name.rfind(prefix, 0) == 0) out.emplace(name.substr(prefix.size()), tensor);
  return out;
}

class TokenizerRecipe : public Recipe {
 public:
  TokenizerRecipe(TokenizerTrainConfig config, std::shared_ptr<const ImageDataset> train,
                  std::shared_ptr<const ImageDataset> held_out, std::shared_ptr<FeatureNet> perceptual,
                  RecipeContext context, const TensorMap* init)
      : config_(std::move(config)), context_(std::move(context)), perceptual_(std::move(perceptual)) {
    config_.seed = int64_t(context_.seed);
    config_.validate();
    if (config_.loss.perceptual > 0 && !perceptual_)
      throw InputError(
          "loss.perceptual > 0 needs a features network: name a model folder that has one with -m, or set "
          "loss.perceptual to 0");
    at::manual_seed(context_.seed);
    model_ = Tokenizer(config_.model);
    shipped_ = Tokenizer(config_.model);
    if (init != nullptr) {
      const at::NoGradGuard no_grad;
      load_module_state(*model_, *init, "initial weights");
    }
    model_->to(context_.device);
    shipped_->to(context_.device);
    shipped_->prepare_for_inference();
    vqgan::choose_layout(*model_);
    quantizer_ = std::make_unique<Quantizer>(model_, config_.quantizer);
    if (init != nullptr) quantizer_->keep_codebook();
    optimizer_ = std::make_unique<Optimizer>(named_parameters(*model_), config_.optimizer);
    // All of them, also a codebook without gradient: averaged encoder and codebook then lag equally.
    NamedTensors parameters;
    for (const auto& item : model_->named_parameters()) parameters.emplace_back(item.key(), item.value());
    ema_ = std::make_unique<Ema>(parameters, config_.ema);
    if (config_.gan.weight > 0) {
      gan_ = PatchDiscriminator(config_.gan);
      gan_->to(context_.device);
      vqgan::choose_layout(*gan_);
      gan_optimizer_ = std::make_unique<Optimizer>(named_parameters(*gan_), config_.gan_optimizer);
    }
    if (perceptual_) perceptual_->to(context_.device);

    LoaderOptions options;
    options.batch_size = config_.batch_size / config_.optimizer.accumulate;
    options.image_size = config_.model.image_size;
    options.flip = config_.flip;
    options.threads = context_.threads;
    options.seed = context_.seed;
    options.rank = context_.rank, options.world_size = context_.world_size;
    loader_ = std::make_unique<Loader>(train, options);
    const auto& measured = held_out ? held_out : train;
    options = LoaderOptions{};
    options.batch_size = std::min<int64_t>(200, measured->size());
    options.image_size = config_.model.image_size;
    options.threads = context_.threads;
    options.drop_last = false;  // shuffled with a fixed seed: files are often sorted by class
    held_out_loader_ = std::make_unique<Loader>(measured, options);
    has_held_out_ = held_out != nullptr;
  }

  std::string name() const override { return "tokenizer"; }
  Json config() const override {
    Json j = config_to_json(config_);
    // Compared on resume: other images under the same weights would go unnoticed.
    const ImageDataset& train = loader_->dataset();
    j["trained_on"] = {{"images", train.size()}, {"class_names", train.class_names()}};
    if (config_.loss.perceptual > 0) j["trained_on"]["features_hash"] = perceptual_->file_hash();
    return j;
  }
  const LoopConfig& loop() const override { return config_.loop; }
  std::string dtype() const override { return config_.dtype; }
  void set_dtype(const std::string& dtype) override { config_.dtype = dtype; }
  std::vector<int64_t> phases() const override {
    if (gan_.is_empty() || config_.gan.start == 0) return {0};
    return {0, config_.gan.start};
  }

  StepReport step(int64_t step) override {
    model_->train();
    const bool with_gan = !gan_.is_empty() && step >= config_.gan.start;
    const int64_t parts = config_.optimizer.accumulate;
    StepReport report;
    for (int64_t part = 0; part < parts; ++part) {
      const Batch batch = loader_->batch(step * parts + part);
      micro_step(pixels(batch), step, with_gan, 1.0 / double(parts), report);
      report.images += batch.images.size(0);
    }
    const double rate = learning_rate_at(config_.optimizer, step, config_.loop.steps);
    const at::Tensor norm = optimizer_->step(rate);
    if (with_gan) {
      const int64_t since = step - config_.gan.start;
      gan_optimizer_->step(
          learning_rate_at(config_.gan_optimizer, since, config_.loop.steps - config_.gan.start));
    }
    for (const Quantized& part : quantized_) quantizer_->update(part);
    quantized_.clear();
    ema_->update(step);
    add(report, "usage", quantizer_->usage(), 1);
    if (norm.defined()) add(report, "gradient_norm", norm, 1);
    add(report, "learning_rate", at::scalar_tensor(rate), 1);
    return report;
  }

  Scalars evaluate() override {
    if (!has_held_out_) return {};
    const at::NoGradGuard no_grad;
    refresh_shipped();
    const int64_t all = held_out_loader_->dataset().size();
    const int64_t wanted = config_.evaluate_images == 0 ? all : std::min(all, config_.evaluate_images);
    CodeHistogram histogram(config_.model.codes);
    double psnr_sum = 0, ssim_sum = 0, perceptual_sum = 0;
    int64_t count = 0;
    for (int64_t i = 0; count < wanted && i < held_out_loader_->batches_per_epoch(); ++i) {
      const at::Tensor images = pixels(held_out_loader_->batch(i)).slice(0, 0, wanted - count);
      const at::Tensor ids = shipped_->encode(images), made = shipped_->decode(ids).clamp(0, 1);
      psnr_sum += psnr(made, images).clamp_max(100).sum().item<double>();
      if (images.size(2) >= 11) ssim_sum += ssim(made, images).sum().item<double>();
      if (perceptual_) perceptual_sum += perceptual_distance(*perceptual_, made, images).sum().item<double>();
      histogram.add(ids);
      count += images.size(0);
    }
    Scalars out = {{"psnr", psnr_sum / double(count)}};
    if (config_.model.image_size >= 11) out.emplace_back("ssim", ssim_sum / double(count));
    if (perceptual_) out.emplace_back("perceptual", perceptual_sum / double(count));
    out.emplace_back("usage", histogram.usage());
    out.emplace_back("perplexity", histogram.perplexity());
    return out;
  }

  std::vector<NamedImage> samples() override {
    const at::NoGradGuard no_grad;
    refresh_shipped();
    const int64_t wanted = std::min(kSampleColumns * kSampleRows, held_out_loader_->dataset().size());
    const at::Tensor images = pixels(held_out_loader_->batch(0)).slice(0, 0, wanted);
    const int64_t count = images.size(0), columns = std::min(kSampleColumns, count), rows = count / columns;
    const auto grid = [&](const at::Tensor& x) {
      return x.slice(0, 0, rows * columns).cpu().to(at::kFloat).unflatten(0, {rows, columns});
    };
    const at::Tensor pairs = at::stack({grid(images), grid(shipped_->decode(shipped_->encode(images)))}, 1);
    return {{"reconstructions", tile(pairs.flatten(0, 1))}};
  }

  void save(TensorMap& tensors) const override {
    for (const auto& [name, tensor] : module_state(*model_)) tensors[kModel + name] = tensor;
    optimizer_->save(tensors, kOptimizer);
    ema_->save(tensors, kEma);
    quantizer_->save(tensors, kQuantizer);
    if (gan_.is_empty()) return;
    for (const auto& [name, tensor] : module_state(*gan_)) tensors[kGan + name] = tensor;
    gan_optimizer_->save(tensors, kGanOptimizer);
  }

  void load(const TensorMap& tensors, const std::string& where) override {
    const at::NoGradGuard no_grad;
    load_module_state(*model_, below(tensors, kModel), where);
    optimizer_->load(tensors, kOptimizer, where);
    ema_->load(tensors, kEma, where);
    quantizer_->load(tensors, kQuantizer, where);
    if (gan_.is_empty()) return;
    load_module_state(*gan_, below(tensors, kGan), where);
    gan_optimizer_->load(tensors, kGanOptimizer, where);
  }

  void write_model(const std::filesystem::path& folder) override {
    refresh_shipped();
    require_finite_weights(module_state(*shipped_), "train tokenizer", config_.store);
    save_tokenizer(folder / "tokenizer.safetensors", *shipped_, store_type(config_.store));
    if (context_.finish_model) context_.finish_model(folder);
  }

  double data_wait_seconds() const override { return loader_->wait_seconds(); }
  DataHealth data_health() const override {
    const int64_t parts = config_.optimizer.accumulate;
    return {(loader_->batches_per_epoch() + parts - 1) / parts, loader_->dataset().size(),
            loader_->skipped()};
  }

 private:
  at::Tensor pixels(const Batch& batch) const {
    return sent_to(context_.device, batch.images).to(at::kFloat) / 255;
  }

  // A diverged run shows here first: the search for the nearest code refuses what is not finite.
  Quantized quantize(const at::Tensor& latents, int64_t step) {
    try {
      return quantizer_->quantize(latents);
    } catch (const c10::Error&) {
      if (at::isfinite(latents).all().item<bool>()) throw;
      throw RunError(cat("train tokenizer: the encoder's output is not finite at step ", step,
                         "; start again with a lower optimizer.learning_rate"));
    }
  }

  // Adds scale * value to what the report holds under this name.
  static void add(StepReport& report, const std::string& name, const at::Tensor& value, double scale) {
    const at::Tensor part = value.detach() * scale;
    for (auto& [known, sum] : report.values)
      if (known == name) {
        sum = sum + part;
        return;
      }
    report.values.emplace_back(name, part);
  }

  // Forward and backward of one micro-batch; every gradient is left scaled by `scale`.
  //
  // The image is the only way from the losses to the tokenizer. So each loss is differentiated down to the
  // image alone, the adaptive weight compares the two gradients after one more layer, and a single backward
  // pass carries their sum through decoder and encoder. The discriminator's forward pass over the
  // reconstructions serves its own update too.
  void micro_step(const at::Tensor& images, int64_t step, bool with_gan, double scale, StepReport& report) {
    const bool half = config_.dtype == "bfloat16";
    const auto autocast = [&] { return AutocastScope(half, context_.device.type()); };
    at::Tensor latents, made;
    {
      const AutocastScope guard = autocast();
      latents = model_->latents(images);
    }
    quantized_.push_back(
        quantize(latents.to(at::kFloat), step));  // in float32: nearest codes are close calls
    {
      const AutocastScope guard = autocast();
      made = model_->decoder->forward(quantized_.back().codes).to(at::kFloat);
    }
    const Quantized& quantized = quantized_.back();
    const at::Tensor leaf = made.detach().requires_grad_();

    at::Tensor likelihood = at::zeros({}, leaf.options());
    const auto weigh = [&](const char* name, double weight, const at::Tensor& loss) {
      likelihood = likelihood + weight * loss;
      add(report, name, loss, scale);
    };
    if (config_.loss.l1 > 0) weigh("l1", config_.loss.l1, at::l1_loss(leaf, images));
    if (config_.loss.l2 > 0) weigh("l2", config_.loss.l2, at::mse_loss(leaf, images));
    if (config_.loss.perceptual > 0)  // in float32: differences of nearly equal features
      weigh("perceptual", config_.loss.perceptual, perceptual_distance(*perceptual_, leaf, images).mean());
    at::Tensor image_gradient = gradient(likelihood, leaf, {}, false);

    if (with_gan) {
      at::Tensor real, fake;
      {
        const AutocastScope guard = autocast();
        real = gan_->forward(images).to(at::kFloat);
        fake = gan_->forward(leaf).to(at::kFloat);
      }
      const at::Tensor adversarial = hinge_generator_loss(fake);
      const at::Tensor gan_gradient = gradient(adversarial, leaf, {}, true);
      const at::Tensor& last = model_->decoder->last_weight();
      const at::Tensor weight = adaptive_weight(gradient(made, last, image_gradient, true),
                                                gradient(made, last, gan_gradient, true), config_.gan.weight);
      image_gradient = image_gradient + weight * gan_gradient;
      const at::Tensor discriminator = hinge_discriminator_loss(real, fake);
      torch::autograd::backward({discriminator * scale}, {}, false, false, gan_->parameters());
      add(report, "gan_generator", adversarial, scale);
      add(report, "gan_discriminator", discriminator, scale);
      add(report, "gan_weight", weight, scale);
    }
    add(report, "codebook", quantized.loss, scale);
    add(report, "perplexity", quantizer_->perplexity(quantized.ids), scale);
    const at::Tensor codebook = quantized.loss * (config_.loss.codebook * scale);
    torch::autograd::backward({made, codebook}, {image_gradient * scale, at::ones_like(codebook)});
  }

  // The weights as they are written: averaged, rounded to the stored type.
  void refresh_shipped() {
    const at::NoGradGuard no_grad;
    TensorMap averages;
    for (const auto& [name, average] : ema_->averages())
      averages[name] = average.to(store_type(config_.store));
    load_module_state(*shipped_, averages, "averaged weights");
  }

  TokenizerTrainConfig config_;
  RecipeContext context_;
  std::shared_ptr<FeatureNet> perceptual_;
  Tokenizer model_{nullptr}, shipped_{nullptr};
  PatchDiscriminator gan_{nullptr};
  std::unique_ptr<Quantizer> quantizer_;
  std::unique_ptr<Optimizer> optimizer_, gan_optimizer_;
  std::unique_ptr<Ema> ema_;
  std::unique_ptr<Loader> loader_, held_out_loader_;
  std::vector<Quantized> quantized_;  // of the current step's micro-batches
  bool has_held_out_ = false;
};

}  // namespace

std::unique_ptr<Recipe> make_tokenizer_recipe(TokenizerTrainConfig config,
                                              std::shared_ptr<const ImageDataset> train,
                                              std::shared_ptr<const ImageDataset> held_out,
                                              std::shared_ptr<FeatureNet> perceptual, RecipeContext context,
                                              const TensorMap* init) {
  return std::make_unique<TokenizerRecipe>(std::move(config), std::move(train), std::move(held_out),
                                           std::move(perceptual), std::move(context), init);
}

}  // namespace adanat
