#include "apps/pipeline/pipeline.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>

#include "core/base/log.h"
#include "core/generator/inference.h"
#include "core/generator/shapes.h"
#include "core/nn/module_state.h"
#include "core/nn/undrawn.h"
#include "policy/policy_schedule.h"
#include "tokenizer/shapes.h"

namespace adanat {
namespace fs = std::filesystem;

namespace {

constexpr int64_t kTextBatch = 16;  // texts encoded at a time

// The sizes are compared before `Module` is built: what config.json asks for, a file of that size must stand
// behind.
// The weights go from the mapped file to where they are used, once: none is drawn, and none is held in
// float32 on its way to another type or device.
template <class Module, class PartConfig>
Module load_part(const SafetensorsFile& file, const PartConfig& config, const ShapeMap& shapes,
                 at::Device device, at::ScalarType dtype) {
  check_shapes(file, shapes);
  TensorMap tensors;
  for (const TensorEntry& entry : file.entries()) tensors.emplace(entry.name, read_tensor(file, entry));
  check_finite(tensors, file.path().string());
  const at::NoGradGuard no_grad;
  const UndrawnWeights undrawn;
  Module module(config);
  for (auto& parameter : module->parameters()) {
    parameter.set_requires_grad(false);
    if (parameter.device() != device || parameter.scalar_type() != dtype)
      parameter.set_data(at::empty(parameter.sizes(), at::TensorOptions().device(device).dtype(dtype)));
  }
  load_module_state(*module, tensors, file.path().string());
  module->eval();
  return module;
}

}  // namespace

Tokenizer open_tokenizer(const fs::path& folder, const ModelConfig& config, at::Device device) {
  if (!config.tokenizer) throw InputError(cat(folder.string(), ": holds no tokenizer"));
  Tokenizer tokenizer =
      load_part<Tokenizer>(open_part(folder, config, "tokenizer.safetensors"), *config.tokenizer,
                           tokenizer_shapes(*config.tokenizer), device, at::kFloat);
  tokenizer->prepare_for_inference();
  return tokenizer;
}

Generator open_generator(const fs::path& folder, const ModelConfig& config, at::Device device,
                         at::ScalarType dtype) {
  if (!config.generator)
    throw InputError(cat(folder.string(), ": holds no generator; train one with `adanat train generator`"));
  // int8 layers are made from float32 weights.
  Generator generator = load_part<Generator>(open_part(folder, config, "generator.safetensors"),
                                             *config.generator, generator_shapes(*config.generator), device,
                                             dtype == at::kChar ? at::kFloat : dtype);
  prepare_generator(*generator, device, dtype);
  return generator;
}

ClipTextEncoder open_text_encoder(const fs::path& folder, const ModelConfig& config, at::Device device) {
  const fs::path place = folder / kTextEncoderFolder;
  if (!fs::is_directory(place))
    throw InputError(cat(folder.string(),
                         ": holds no text encoder; put the Hugging Face folder of its CLIP into ",
                         place.string(), " (config.json, weights, vocab.json, merges.txt)"));
  ClipTextEncoder encoder = ClipTextEncoder::open(place, device, config.text_encoder.pad_token);
  if (config.from_texts() && (encoder.config().width != config.generator->text_width ||
                              encoder.config().positions != config.generator->text_tokens))
    throw InputError(cat(place.string(), ": gives ", encoder.config().positions, " states of width ",
                         encoder.config().width, ", the generator wants ", config.generator->text_tokens,
                         " of width ", config.generator->text_width,
                         "; it was trained with another encoder"));
  return encoder;
}

Pipeline Pipeline::open(const fs::path& folder, at::Device device, at::ScalarType dtype) {
  Pipeline out(folder, read_model_config(folder), device);
  out.tokenizer_ = open_tokenizer(folder, out.config_, device);
  if (device.is_cuda() && dtype == at::kBFloat16) out.tokenizer_->decode_in_bfloat16();
  out.generator_ = open_generator(folder, out.config_, device, dtype);
  out.sampler_.emplace(*out.generator_);
  return out;
}

const std::string& Pipeline::model_hash() const {
  static const std::string kUnknown = "unknown";
  const auto it = config_.files.find("generator.safetensors");
  return it == config_.files.end() ? kUnknown : it->second;
}

std::unique_ptr<Schedule> Pipeline::schedule(const std::string& chosen, int64_t steps,
                                             const TableOptions& options, const fs::path& policy) const {
  const bool file = chosen.size() > 5 && chosen.ends_with(".json");
  if (!policy.empty() && !chosen.empty() && chosen != "adaptive")
    throw InputError(cat("--policy ", policy.string(), ": is read by --schedule adaptive, not by ", chosen));
  std::optional<PolicyFile> given;
  if (!policy.empty()) {
    given = read_policy(policy);
    if (steps == 0)
      steps = given->settings.fits(config_.sampling.steps) || given->settings.any_steps()
                  ? config_.sampling.steps
                  : given->settings.steps;
  }
  if (steps == 0 && chosen == "autonat" && config_.sampling.steps != 8)
    note("schedule autonat: 8 steps, the only number its table has");
  if (steps == 0 && !file) steps = chosen == "autonat" ? 8 : config_.sampling.steps;
  std::string name = chosen;
  std::optional<fs::path> own;
  if (chosen.empty() || chosen == "adaptive") own = policy_for(folder_, steps);
  if (name.empty()) {
    name = given || own ? "adaptive" : "cosine";
    if (name == "cosine") note(cat("no policy for ", steps, " steps in this folder: schedule cosine"));
  }
  if (name == "adaptive") {
    if (!given && !own)
      throw InputError(cat("--schedule adaptive: this folder holds no policy for ", steps,
                           " steps; use cosine, linear, halton or a FILE.json, or give --policy FILE"));
    const fs::path source = given ? policy : *own;
    if (!given) {
      given = read_policy(source);
      check_part_hash(config_, source, given->hash);
    }
    const GeneratorConfig& g = *config_.generator;
    check_policy(*given, source.string(), steps, g.width, g.grid_height, g.grid_width, g.codes, model_hash());
    given->actor->to(device_);
    auto made = std::make_unique<PolicySchedule>(given->settings, given->actor, steps, device_, "adaptive",
                                                 given->hash);
    // One table for all images: of it is said what of any table is.
    if (made->settings().network.shared()) note_small_guidance(made->name(), made->table());
    return made;
  }
  return make_schedule(name, steps, options, config_.generator->grid_height, config_.generator->grid_width);
}

void Pipeline::set_prompts(const std::vector<std::string>& prompts) {
  if (!config_.from_texts())
    throw InputError(cat(folder_.string(), ": makes images from classes, not from texts"));
  set_prompts(prompts, open_text_encoder(folder_, config_, device_), nullptr);
}

void Pipeline::set_prompts(const std::vector<std::string>& prompts, const ClipTextEncoder& encoder,
                           int64_t* cut) {
  std::vector<std::string> texts = {""};
  std::vector<int64_t> rows;
  for (const std::string& prompt : prompts) {
    const auto known = std::find(texts.begin() + 1, texts.end(), prompt);
    rows.push_back(known - texts.begin());
    if (known == texts.end()) texts.push_back(prompt);
  }
  const at::Tensor states = encoder.encode(texts, kTextBatch, cut).states;
  prompts_ = {states.index_select(0, at::tensor(rows, at::kLong).to(device_)), states.narrow(0, 0, 1)};
}

at::Tensor Pipeline::generate_tokens(const BatchRequest& request, const Schedule& schedule,
                                     const std::vector<SamplerObserver*>& observers) {
  const auto count = int64_t(request.classes.size());
  const at::Tensor classes = at::tensor(request.classes, at::kLong);  // plain_start takes them to the device
  const at::Tensor index = at::arange(request.first_index, request.first_index + count, at::kLong);
  if (config_.from_texts() && !prompts_.states.defined())
    throw InputError(cat(folder_.string(), ": makes images from texts; give --prompt TEXT"));
  SamplerStart start = config_.from_texts() ? plain_start(*generator_, prompts_, classes, request.seed, index)
                                            : plain_start(*generator_, classes, request.seed, index);
  if (request.start.defined()) {
    TORCH_CHECK(request.start.sizes() == start.tokens.sizes(), "generate: the start must be ",
                start.tokens.sizes(), ", got ", request.start.sizes());
    start.same_tokens = (request.start == request.start.narrow(0, 0, 1)).all().item<bool>();
    start.tokens = request.start.to(start.tokens.device());
  }
  try {
    return sampler_->sample(start, schedule, observers);
  } catch (const RunError& e) {
    throw RunError(cat(folder_.string(), ": ", e.what()));
  }
}

BatchResult Pipeline::generate(const BatchRequest& request, const Schedule& schedule,
                               const std::vector<SamplerObserver*>& observers) {
  const at::Tensor tokens = generate_tokens(request, schedule, observers);
  return {tokens.cpu(), decode(tokens)};
}

at::Tensor Pipeline::decode_unit(const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  return tokenizer_->decode(tokens.to(device_)).clamp(0, 1);
}

at::Tensor Pipeline::encode(const at::Tensor& images) {
  const at::NoGradGuard no_grad;
  return tokenizer_->encode(images.to(device_).to(at::kFloat) / 255).cpu();
}

at::Tensor Pipeline::decode(const at::Tensor& tokens) {
  return decode_to_bytes(*tokenizer_, tokens.to(device_));
}

at::Tensor decode_to_bytes(TokenizerImpl& tokenizer, const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  const at::Tensor images = tokenizer.decode(tokens);
  return (images.clamp(0, 1) * 255).round().to(at::kByte).contiguous().cpu();
}

Image to_image(const at::Tensor& planes) {
  const at::Tensor packed = planes.permute({1, 2, 0}).contiguous();
  const auto* p = packed.const_data_ptr<uint8_t>();
  return {int(planes.size(2)), int(planes.size(1)), std::vector<uint8_t>(p, p + packed.numel())};
}

std::pair<int64_t, int64_t> grid_shape(int64_t count) {
  const auto columns = std::max<int64_t>(1, int64_t(std::ceil(std::sqrt(double(count)))));
  return {(count + columns - 1) / columns, columns};
}

Image make_grid(const at::Tensor& images, int64_t rows, int64_t columns, int64_t gap) {
  const int64_t count = images.size(0), h = images.size(2), w = images.size(3);
  TORCH_CHECK(rows * columns >= count, "make_grid: ", rows, "x", columns, " cells for ", count, " images");
  const int64_t height = rows * h + (rows - 1) * gap, width = columns * w + (columns - 1) * gap;
  Image out{int(width), int(height), std::vector<uint8_t>(size_t(height * width * 3), 255)};
  const at::Tensor packed = images.permute({0, 2, 3, 1}).contiguous();
  const auto* source = packed.const_data_ptr<uint8_t>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t top = i / columns * (h + gap), left = i % columns * (w + gap);
    for (int64_t y = 0; y < h; ++y)
      std::copy_n(source + (i * h + y) * w * 3, w * 3, out.rgb.begin() + ((top + y) * width + left) * 3);
  }
  return out;
}

}  // namespace adanat
