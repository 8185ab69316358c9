#include "apps/pipeline/convert.h"

#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <charconv>

#include "apps/pipeline/convert_parts.h"
#include "core/base/interrupt.h"
#include "core/base/list_names.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/text.h"
#include "core/generator/generator_recipe.h"
#include "core/io/atomic_file.h"
#include "core/io/atomic_folder.h"
#include "tokenizer/tokenizer_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kMaxClassNames = uint64_t{64} << 20;
constexpr int64_t kTokenizerImageSize = 256;  // of a tokenizer alone: only a default, its layers fit any size

std::vector<std::string> read_class_names(const fs::path& file, int64_t classes) {
  const std::string text = read_file(file, kMaxClassNames);
  std::vector<std::string> names;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if (!is_name(line))
      throw InputError(cat(file.string(), ": line ", names.size() + 1,
                           " is empty or no UTF-8 without control characters; one class name a line"));
    names.push_back(std::move(line));
    begin = end + 1;
  }
  if (int64_t(names.size()) != classes)
    throw InputError(
        cat(file.string(), ": has ", names.size(), " names, the generator has ", classes, " classes"));
  return names;
}

// Published lists of ImageNet's classes have "crane" and "maillot" twice, so this is no error.
void warn_of_repeated(const std::string& where, const std::vector<std::string>& names) {
  std::map<std::string, std::vector<int64_t>> ids;
  for (size_t c = 0; c < names.size(); ++c) ids[names[c]].push_back(int64_t(c));
  std::vector<std::string> repeated;
  for (const auto& [name, classes] : ids)
    if (classes.size() > 1) repeated.push_back(cat('"', printable(name), "\" (", list_numbers(classes), ")"));
  if (!repeated.empty())
    warning(cat(where, ": several classes share a name: ", list_names(repeated),
                "; --class NAME takes the first, the others have their numbers only"));
}

std::vector<std::string> class_names_for(const ConvertOptions& options, const ConvertPreset& preset,
                                         const GeneratorConfig& generator) {
  if (generator.condition != "class") {
    if (!options.class_names.empty())
      throw InputError(cat("--class-names ", options.class_names.string(),
                           ": the generator is conditioned on text, it has no classes"));
    return {};
  }
  if (!options.class_names.empty()) {
    std::vector<std::string> names = read_class_names(options.class_names, generator.classes);
    warn_of_repeated(options.class_names.string(), names);
    return names;
  }
  if (!preset.class_names.empty()) {
    if (int64_t(preset.class_names.size()) != generator.classes)
      throw InputError(cat(options.config.string(), ": class_names has ", preset.class_names.size(),
                           " names, the generator has ", generator.classes, " classes"));
    warn_of_repeated(options.config.string(), preset.class_names);
    return preset.class_names;
  }
  std::vector<std::string> names;
  for (int64_t c = 0; c < generator.classes; ++c) names.push_back(std::to_string(c));
  return names;
}

// Side by side into the new folder `to`.
void copy_files(const std::vector<fs::path>& files, const fs::path& to) {
  fs::create_directory(to);
  for (const fs::path& file : files) {
    AtomicFile copy(to / file.filename());
    const auto source = MappedFile::open(file);
    copy.write(source->data(), source->size());
    copy.commit();
  }
}

// The preset's word, the grid, and what the tokenizer can make of it.
int64_t image_size_for(const ConvertOptions& options, const ConvertPreset& preset,
                       const TokenizerPart& tokenizer, const GeneratorPart* generator) {
  const int64_t factor = tokenizer.config.factor();
  int64_t size = preset.image_size;
  if (generator != nullptr) {
    const int64_t made = generator->config.grid_height * factor;
    if (size != 0 && size != made)
      throw InputError(cat(options.config.string(), ": image_size is ", size, ", the generator's grid of ",
                           generator->config.grid_height, " times the tokenizer's factor ", factor, " is ",
                           made));
    size = made;
  }
  if (size == 0) size = std::max(factor, kTokenizerImageSize / factor * factor);
  if (size % factor != 0)
    throw InputError(cat(options.config.string(), ": image_size ", size,
                         " is no multiple of the tokenizer's factor ", factor));
  return size;
}

// `tensors` are finite.
TensorMap stored(const WeightSource& source, TensorMap tensors, std::optional<at::ScalarType> dtype) {
  if (!dtype) return tensors;
  for (auto& [name, tensor] : tensors) {
    const at::Tensor from = tensor;
    tensor = from.to(*dtype);
    if (!at::isfinite(tensor).all().item<bool>())
      throw InputError(cat(source.where(), ": ", name, " holds values up to ",
                           from.to(at::kDouble).abs().max().item<double>(), ", more than ",
                           *dtype == at::kHalf ? "float16 can hold (65504); use --dtype bfloat16 or float32"
                                               : "bfloat16 can hold (3.39e38); use --dtype float32"));
  }
  return tensors;
}

void note_left_out(const WeightSource& source, const std::vector<std::string>& names) {
  if (names.empty()) return;
  std::vector<std::string> shown;
  for (const std::string& name : names) shown.push_back(printable(name));
  note(cat(source.where(), ": left out: ", list_names(shown)));
}

// In the order of the command line; a published table comes last and gives way to a policy of its steps.
std::map<int64_t, PolicyPart> read_policies(const ConvertOptions& options, const ConvertPreset& preset,
                                            const GeneratorConfig& generator) {
  std::map<int64_t, PolicyPart> out;
  for (const PolicyArgument& argument : options.policies) {
    const WeightSource source = WeightSource::open(argument.file);
    PolicyPart part =
        read_published_policy(source, argument.steps, options.policy_residual, preset.policy, generator);
    note_left_out(source, part.left_out);
    part.actor = stored(source, std::move(part.actor), options.dtype);
    const int64_t steps = part.settings.steps;
    if (!out.emplace(steps, std::move(part)).second)
      throw InputError(cat("--policy ", argument.file.string(), ": a second policy for ", steps, " steps"));
  }
  if (preset.table.steps != 0) {
    if (out.contains(preset.table.steps))
      note(cat(options.config.string(), ": its table for ", preset.table.steps,
               " steps gives way to the policy for as many"));
    out.emplace(preset.table.steps, policy_of_table(preset.table, generator));
  }
  return out;
}

// How many steps `generate` makes by itself: the preset's, without one the fewest that a policy is for. Where
// policies were given, but none for the preset's steps, the most that one of them is for.
int64_t default_steps(const ConvertOptions& options, const ConvertPreset& preset,
                      const std::map<int64_t, PolicyPart>& policies) {
  const int64_t wanted = preset.sampling.steps;
  if (options.policies.empty()) return wanted;
  if (options.config.empty()) return policies.begin()->first;
  if (policies.contains(wanted)) return wanted;
  int64_t most = 0;
  for (const auto& [steps, part] : policies)
    if (part.settings.residual != "table") most = steps;
  note(cat(options.config.string(), ": sampling.steps is ", wanted,
           ", for which there is no policy: `generate` takes ", most, " steps by itself"));
  return most;
}

void check_options(const ConvertOptions& options) {
  if (options.tokenizer.empty())
    throw InputError("--tokenizer: is missing; every model folder needs one to make images");
  if (!options.generator.empty()) return;
  const auto needs = [](const char* flag) {
    throw InputError(cat(flag, ": needs a generator; give --generator as well"));
  };
  if (!options.policies.empty()) needs("--policy");
  if (!options.text_encoder.empty()) needs("--text-encoder");
  if (!options.class_names.empty()) needs("--class-names");
  if (options.heads != 0) needs("--heads");
}

}  // namespace

void GeneratorSizes::validate() const {
  const auto check = [this](const auto& f) {
    require(this->*f.member >= 0, f.name, "0 or more", this->*f.member);
  };
  std::apply([&](const auto&... f) { (check(f), ...); }, fields());
}

void PolicyPreset::validate() const {
  require(residual.empty() || residual == "heuristic" || residual == "none", "policy.residual",
          "heuristic, none or empty", residual);
  heuristic.validate();
  require(smoothing == -1 || (smoothing >= 0 && smoothing < 1), "policy.smoothing", "-1, or in [0, 1)",
          smoothing);
}

void ConvertPreset::validate() const {
  require(image_size >= 0 && image_size <= 16384, "image_size", "0..16384", image_size);
  generator.validate(), policy.validate(), sampling.validate();
  for (const std::string& name : class_names)
    require(is_name(name), "class_names", "made of names without control characters", one_line(name));
  if (table.steps != 0) table.validate();
}

PolicyArgument parse_policy_argument(const std::string& text) {
  const size_t colon = text.rfind(':');
  int64_t steps = 0;
  if (colon != std::string::npos) {
    const char *first = text.data() + colon + 1, *last = text.data() + text.size();
    const auto [end, code] = std::from_chars(first, last, steps);
    const bool number = first != last && end == last;
    if (number && (code != std::errc() || steps < 1 || steps > 1000))
      throw InputError(cat("--policy ", text, ": the number of steps must be 1..1000"));
    if (!number) {
      if (!fs::exists(text)) throw InputError(cat("--policy ", text, ": must be FILE:T, like policy.pth:8"));
      return {text, 0};
    }
  }
  return {text.substr(0, colon), steps};
}

void convert(const ConvertOptions& options) {
  check_options(options);
  ConvertPreset preset;
  if (!options.config.empty())
    preset =
        config_from_json<ConvertPreset>(read_json_file(options.config.string()), options.config.string());
  const std::string name = folder_name(options.out);
  if (!is_name(name))
    throw InputError(cat("--out ", options.out.string(),
                         ": the folder's name becomes the model's: it must be UTF-8 ",
                         "without control characters"));
  // Everything is read and checked before anything is written.
  AtomicFolder folder(options.out);
  ModelConfig model;
  model.name = name;
  model.sampling = preset.sampling;

  const WeightSource tokenizer_source = WeightSource::open(options.tokenizer);
  TokenizerPart tokenizer = read_tokenizer(tokenizer_source);
  std::optional<WeightSource> generator_source;
  std::optional<GeneratorPart> generator;
  std::map<int64_t, PolicyPart> policies;
  std::vector<fs::path> encoder;
  if (!options.generator.empty()) {
    generator_source = WeightSource::open(options.generator);
    generator = read_generator(*generator_source, options.heads, preset.generator, options.config.string());
    if (generator->config.codes != tokenizer.config.codes)
      throw InputError(cat(options.generator.string(), ": has ", generator->config.codes, " codes, ",
                           options.tokenizer.string(), " has ", tokenizer.config.codes,
                           "; they do not belong together"));
    model.class_names = class_names_for(options, preset, generator->config);
    policies = read_policies(options, preset, generator->config);
    model.sampling.steps = default_steps(options, preset, policies);
    model.text_encoder = preset.text_encoder;
    if (!options.text_encoder.empty()) {
      if (generator->config.condition != "text")
        throw InputError(cat("--text-encoder ", options.text_encoder.string(),
                             ": the generator is conditioned on classes, it reads no text"));
      encoder = read_text_encoder(options.text_encoder, generator->config, model.text_encoder.pad_token);
    }
  }
  model.image_size = tokenizer.config.image_size =
      image_size_for(options, preset, tokenizer, generator ? &*generator : nullptr);

  check_interrupt();
  note_left_out(tokenizer_source, tokenizer.weights.left_out);
  write_tokenizer(folder.path() / "tokenizer.safetensors", tokenizer.config,
                  stored(tokenizer_source, tokenizer_source.read(tokenizer.weights.names), options.dtype));
  check_interrupt();
  if (generator) {
    note_left_out(*generator_source, generator->weights.left_out);
    const fs::path file = folder.path() / "generator.safetensors";
    write_generator(
        file, generator->config,
        stored(*generator_source, generator_source->read(generator->weights.names), options.dtype));
    check_interrupt();
    const std::string hash = policies.empty() ? "" : sha256_file(file.string());
    for (auto& [steps, part] : policies) {
      part.settings.generator = hash;
      write_policy(folder.path() / policy_file_name(steps), part.settings, part.actor,
                   part.actor.begin()->second.scalar_type());
    }
    if (!encoder.empty())
      copy_files(encoder, folder.path() / kTextEncoderFolder);
    else if (generator->config.condition == "text")
      warning(
          "the folder holds no text encoder: `generate` needs one; convert again with --text-encoder DIR");
  }
  write_model_config(folder.path(), model);
  check_interrupt();
  folder.commit();
}

}  // namespace adanat
