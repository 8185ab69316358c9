// adanat train tokenizer|generator|policy|classifier (docs/command-line.md, "A training run").
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <filesystem>

#include "apps/adanat/cli.h"
#include "apps/pipeline/conditions.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/features/classifier_recipe.h"
#include "core/features/feature_net.h"
#include "core/generator/generator_init.h"
#include "core/generator/generator_recipe.h"
#include "core/generator/shapes.h"
#include "core/io/atomic_file.h"
#include "core/nn/device.h"
#include "core/nn/module_state.h"
#include "core/train/trainer.h"
#include "policy/policy_recipe.h"
#include "policy/reward.h"
#include "tokenizer/tokenizer_recipe.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

struct TrainOptions {
  std::string config, data, out, model, init, steps;
  std::string config_told;  // the --config that a run which goes on began with
  std::optional<std::string> held_out, dtype;
  std::vector<std::string> overrides;
  std::optional<int64_t> seed;
  bool resume = false;
  ComputeOptions compute;
};

// Where the config comes from: the file that is named, that of the run that goes on, or "".
std::string config_file(const TrainOptions& o) {
  const fs::path own = fs::path(o.out) / "config.json";
  return o.config.empty() && o.resume && fs::exists(own) ? own.string() : o.config;
}

// The config file with --set, --data, --held-out, --seed and --dtype on top.
Json load_config(const TrainOptions& o) {
  const std::string file = config_file(o);
  Json j = file.empty() ? Json::object() : read_json_file(file);
  if (!j.is_object()) throw InputError(cat(file, ": must hold one JSON object"));
  // A run's own config.json can be given back as it is.
  j.erase("run");
  j.erase("trained_on");
  for (const std::string& assignment : o.overrides) apply_override(j, assignment);
  if (!o.data.empty()) j["data"] = o.data;
  if (o.held_out) j["held_out"] = *o.held_out;
  if (o.seed) j["seed"] = *o.seed;
  if (o.dtype) j["dtype"] = *o.dtype;
  if (o.steps == "any") {
    j["steps"] = 0;
  } else if (!o.steps.empty()) {
    const bool digits = o.steps.size() < 6 && o.steps.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoll(o.steps) < 1 || std::stoll(o.steps) > 1000)
      throw InputError(cat("--steps ", o.steps, ": must be 1 to 1000, or any"));
    j["steps"] = std::stoll(o.steps);
  }
  return j;
}

// -m and --init of the run that goes on, where they are not given again.
void take_folders_of_run(TrainOptions& o) {
  const fs::path file = fs::path(o.out) / "config.json";
  if (!fs::exists(file)) return;
  const Json config = read_json_file(file.string());
  const Json run = config.is_object() && config.contains("run") ? config["run"] : Json::object();
  const auto take = [&](const char* key, std::string& to) {
    if (to.empty() && run.is_object() && run.contains(key) && run[key].is_string()) to = run[key];
  };
  // Sums that are cut for another number of threads differ in their last bits.
  if (o.compute.threads == 0 && run.is_object() && run.contains("threads") &&
      run["threads"].is_number_unsigned() && run["threads"] <= 1024)
    o.compute.threads = run["threads"].get<int64_t>();
  take("model", o.model), take("init", o.init), take("config_file", o.config_told);
  // The checkpoint holds the weights: a folder that is gone by now is needed by nothing but the comparison of
  // a policy's start.
  if (!o.init.empty() && !fs::exists(o.init)) o.init.clear();
}

template <Config C>
C parse_config(const TrainOptions& o, const Json& j) {
  const std::string file = config_file(o);
  C config = config_from_json<C>(j, file.empty() ? "the command line" : file);
  if (config.data.empty()) throw InputError("--data: give the data to train on (or the config key \"data\")");
  return config;
}
template <Config C>
C parse_config(const TrainOptions& o) {
  return parse_config<C>(o, load_config(o));
}

Json run_info(const TrainOptions& o, at::Device device) {
  Json j;
  j["program"] = cat("adanat ", ADANAT_VERSION);
  j["platform"] = platform_line();
  j["device"] = device.str();
  j["config_file"] = o.config.empty() ? o.config_told : o.config;
  j["model"] = o.model;
  j["init"] = o.init;
  j["threads"] = at::get_num_threads();
  return j;
}

// What the finished folder is told besides its own new part: `describe` gives name, size and classes.
std::function<void(const fs::path&)> finish_with(const TrainOptions& o, ModelConfig describe) {
  return [from = o.model, describe](const fs::path& folder) {
    if (!from.empty()) copy_missing_parts(from, folder);
    write_model_config(folder, describe);
  };
}

// "signs" for --out runs/signs, and for runs/signs/generator: a run named after its stage belongs to the
// folder above.
std::string model_name(const fs::path& out) {
  const fs::path absolute = fs::absolute(out).lexically_normal();
  const std::string name = folder_name(absolute);
  for (const char* stage : {"features", "measure", "tokenizer", "generator", "policy"})
    if (name == stage) return folder_name(fs::path(absolute / "..").lexically_normal());
  return name;
}

// Name, image size and classes of a new folder; sampling defaults come along from -m.
ModelConfig describe_model(const TrainOptions& o, int64_t image_size,
                           const std::vector<std::string>& class_names) {
  ModelConfig config;
  if (!o.model.empty()) {
    const ModelConfig given = read_model_config(o.model);
    if (given.image_size != image_size)
      throw InputError(cat(o.model, ": its parts are for ", given.image_size,
                           "-pixel images, this run makes ", image_size));
    config.sampling = given.sampling;
    config.text_encoder = given.text_encoder;
  }
  config.name = model_name(o.out);
  config.image_size = image_size;
  config.class_names = class_names;
  return config;
}

RecipeContext make_context(at::Device device, int64_t seed) {
  RecipeContext context;
  context.device = device;
  context.seed = uint64_t(seed);
  context.threads = std::max(1, at::get_num_threads() / 2);  // decoding is light; the other cores compute
  return context;
}

// A part of the folder --init: there, and the one that a config.json beside it lists.
fs::path part_of_init(const TrainOptions& o, const std::string& part) {
  const fs::path file = fs::path(o.init) / part;
  if (!fs::exists(file)) throw InputError(cat("--init ", o.init, ": holds no ", part));
  if (fs::exists(fs::path(o.init) / "config.json")) check_part_hash(read_model_config(o.init), file);
  return file;
}

std::optional<TensorMap> load_init(const TrainOptions& o, const std::string& part) {
  if (o.init.empty()) return std::nullopt;
  return read_tensors(part_of_init(o, part));
}

void train_classifier(const TrainOptions& o) {
  const at::Device device = o.compute.apply();
  const auto config = parse_config<ClassifierTrainConfig>(o);
  const std::shared_ptr<const ImageDataset> data = open_dataset(config.data);
  note(data->describe());
  const auto held_out = open_held_out(config.held_out, config.data);
  RecipeContext context = make_context(device, config.seed);
  const ModelConfig described = describe_model(o, config.model.image_size, data->class_names());
  if (!o.model.empty()) {
    const ModelConfig given = read_model_config(o.model);
    const bool same = given.class_names.empty() ? given.generator && given.generator->classes ==
                                                                         int64_t(described.class_names.size())
                                                : given.class_names == described.class_names;
    if (given.generator && !given.from_texts() && !same)
      throw InputError(cat("-m ", o.model, ": its generator knows other classes than ", data->describe(),
                           ", and the two would not fit into one folder; leave -m away"));
  }
  context.finish_model = finish_with(o, described);
  const auto init = load_init(o, config.role + ".safetensors");  // its own role's: the measure stays apart
  const auto recipe = make_classifier_recipe(config, data, held_out, context, init ? &*init : nullptr);
  run_training(*recipe, o.out, o.resume, run_info(o, device));
}

// The network of the perceptual loss: the one that the config names, else that of -m; null where there is
// none. Never the one that judges.
std::shared_ptr<FeatureNet> perceptual_network(const TrainOptions& o, const std::string& named) {
  const fs::path measure = o.model.empty() ? fs::path() : fs::path(o.model) / "measure.safetensors";
  const fs::path own = o.model.empty() ? fs::path() : fs::path(o.model) / "features.safetensors";
  if (named.empty() && (own.empty() || !fs::exists(own))) return nullptr;
  if (named.empty()) check_part_hash(read_model_config(o.model), own);
  // Published networks have no role.
  if (!named.empty() && !named.ends_with(".safetensors")) return load_feature_net(named);
  return load_unless_measure(named.empty() ? own : fs::path(named),
                             fs::exists(measure) ? measure : fs::path(), "train tokenizer");
}

void train_tokenizer(const TrainOptions& o) {
  const at::Device device = o.compute.apply();
  const auto config = parse_config<TokenizerTrainConfig>(o);
  const std::shared_ptr<const ImageDataset> data = open_dataset(config.data);
  note(data->describe());
  const auto held_out = open_held_out(config.held_out, config.data);
  const std::shared_ptr<FeatureNet> perceptual = perceptual_network(o, config.features);
  RecipeContext context = make_context(device, config.seed);
  context.finish_model = finish_with(o, describe_model(o, config.model.image_size, data->class_names()));
  if (!o.model.empty() && fs::exists(fs::path(o.model) / "generator.safetensors"))
    note(cat(o.model, ": its generator belongs to its own tokenizer and does not come along"));
  const auto init = load_init(o, "tokenizer.safetensors");
  const auto recipe =
      make_tokenizer_recipe(config, data, held_out, perceptual, context, init ? &*init : nullptr);
  run_training(*recipe, o.out, o.resume, run_info(o, device));
}

// A grid of the first classes, or of captions from all over `texts`, under the cosine schedule, the same
// seeds each time.
SampleImages sample_grid(Tokenizer tokenizer, SamplingDefaults defaults, std::optional<TextFeatures> texts,
                         at::Device device) {
  return [tokenizer, defaults, texts, device](GeneratorImpl& generator) mutable {
    const int64_t count =
        texts ? 16 : std::min<int64_t>(64, std::max<int64_t>(16, generator.config().classes));
    const at::Tensor index = at::arange(count, at::kLong);
    const auto schedule = make_table_schedule("cosine", cosine_table(defaults.steps, defaults.table));
    SamplerStart start;
    if (texts) {
      const at::Tensor rows = (index * texts->size()).div(count, "trunc");
      const auto states = [&](const at::Tensor& of) { return texts->states(of).to(device).to(at::kFloat); };
      start = plain_start(generator, TextConditions{states(rows), states(at::zeros({1}, at::kLong))}, index,
                          42, index);
    } else {
      start = plain_start(generator, index % generator.config().classes, 42, index);
    }
    const at::Tensor tokens = sample(generator, start, *schedule);
    const auto [rows, columns] = grid_shape(count);
    return std::vector<NamedImage>{
        {"samples", make_grid(decode_to_bytes(*tokenizer, tokens), rows, columns)}};
  };
}

// What a generator's training starts from, with what must fit the run.
std::optional<GeneratorInit> load_generator_init(const TrainOptions& o) {
  if (o.init.empty()) return std::nullopt;
  const ModelConfig given = read_model_config(o.init);
  if (!given.generator) throw InputError(cat("--init ", o.init, ": holds no generator"));
  const SafetensorsFile file = open_part(o.init, given, "generator.safetensors");
  check_shapes(file, generator_shapes(*given.generator));
  GeneratorInit init{"--init " + o.init, *given.generator, given.class_names, "", {}};
  if (given.files.contains("tokenizer.safetensors"))
    init.tokenizer_hash = given.files.at("tokenizer.safetensors");
  for (const TensorEntry& entry : file.entries()) init.weights.emplace(entry.name, read_tensor(file, entry));
  check_finite(init.weights, file.path().string());
  return init;
}

// The config of a generator; the sizes that it does not say are those of --init.
GeneratorTrainConfig parse_generator_config(const TrainOptions& o, const std::optional<GeneratorInit>& init) {
  Json j = load_config(o);
  Json& model = j["model"];
  if (model.is_null()) model = Json::object();
  if (init && model.is_object()) {
    for (const auto& [key, size] : {std::pair{"width", init->config.width},
                                    {"depth", init->config.depth},
                                    {"heads", init->config.heads}})
      if (!model.contains(key)) model[key] = size;
  }
  return parse_config<GeneratorTrainConfig>(o, j);
}

// Whether captions are the condition: where the config says so, or where they are all that tells images
// apart.
bool wants_texts(const GeneratorTrainConfig& config, const TokenFile& tokens) {
  return config.model.condition == "text" || (!tokens.captions.empty() && tokens.class_names.size() <= 1);
}

// The encoded captions in `file` as they were kept, or made now; "" = beside `data`, its extension replaced.
TextFeatures text_features(const TrainOptions& o, fs::path file, const fs::path& data,
                           const ModelConfig& given, const std::vector<std::string>& captions,
                           at::Device device) {
  const ClipTextEncoder encoder = open_text_encoder(o.model, given, device);
  const std::string hash = encoder.hash();
  if (file.empty()) {
    file = data;
    file.replace_extension(cat(".text-", hash.substr(0, 12), ".safetensors"));
  }
  if (fs::exists(file)) {
    const auto opened = [&] {
      try {
        return TextFeatures::open(file);
      } catch (const InputError& e) {
        throw InputError(cat(e.what(), "; remove the file, and it is made again"));
      }
    };
    TextFeatures kept = opened();
    if (kept.encoder_hash() != hash)
      throw InputError(cat(file.string(), ": was made by the text encoder ",
                           printable(kept.encoder_hash().substr(0, 12)), ", but ", o.model, " holds ",
                           hash.substr(0, 12),
                           "; remove the file, or name another with --set text_features=FILE"));
    const auto known = [&](const std::string& caption) { return kept.contains(caption); };
    if (std::all_of(captions.begin(), captions.end(), known)) return kept;
    note(cat(file.string(), ": lacks some of the captions and is made again"));
  }
  TextFeatures::write(file, encoder, hash, captions);
  return TextFeatures::open(file);
}

void train_generator(const TrainOptions& o) {
  const at::Device device = o.compute.apply();
  if (o.model.empty())
    throw InputError("-m: give the model folder with the tokenizer that made the token file");
  const std::optional<GeneratorInit> init = load_generator_init(o);
  const GeneratorTrainConfig config = parse_generator_config(o, init);
  const ModelConfig given = read_model_config(o.model);
  if (fs::is_directory(config.data) || fs::path(config.data).extension() != ".safetensors")
    throw InputError(
        cat("--data ", config.data,
            ": a generator is trained on a token file (FILE.safetensors); make one of your images "
            "with `adanat tokenize encode`"));
  TokenFile tokens = read_token_file(config.data);
  const std::string hash =
      given.files.contains("tokenizer.safetensors") ? given.files.at("tokenizer.safetensors") : "";
  if (tokens.tokenizer_hash != hash)
    throw InputError(cat(config.data, ": was encoded by the tokenizer ", tokens.tokenizer_hash.substr(0, 12),
                         ", but ", o.model, " holds ", hash.substr(0, 12),
                         "; encode again with `adanat tokenize encode`"));
  note(cat(config.data, ": ", tokens.tokens.size(0), " images of ", tokens.tokens.size(1), " tokens"));
  std::optional<TextFeatures> texts;
  if (wants_texts(config, tokens)) {
    std::vector<std::string> captions = tokens.captions;
    if (captions.empty())
      throw InputError(
          cat(config.data, ": holds no captions; encode a captioned data set with `adanat tokenize encode`"));
    if (!config.held_out.empty()) {
      const TokenFile held_out = read_token_file(config.held_out);
      captions.insert(captions.end(), held_out.captions.begin(), held_out.captions.end());
    }
    texts = text_features(o, config.text_features, config.data, given, captions, device);
  }
  RecipeContext context = make_context(device, config.seed);
  ModelConfig described = describe_model(o, given.image_size, tokens.class_names);
  if (texts) described.class_names = {};
  context.finish_model = finish_with(o, described);
  const auto recipe = make_generator_recipe(
      config, std::move(tokens), init ? &*init : nullptr, context,
      sample_grid(open_tokenizer(o.model, given, device), given.sampling, texts, device), texts);
  run_training(*recipe, o.out, o.resume, run_info(o, device));
}

// The config of a policy; where it does not say the options of the cosine table, they are the model folder's.
PolicyTrainConfig parse_policy_config(const TrainOptions& o, const ModelConfig& given) {
  Json j = load_config(o);
  Json cosine = config_to_json(given.sampling.table);
  if (!j.contains("cosine") || j["cosine"].is_object()) {
    if (j.contains("cosine")) cosine.update(j["cosine"]);
    j["cosine"] = std::move(cosine);
  }
  const std::string file = config_file(o);
  auto config = config_from_json<PolicyTrainConfig>(j, file.empty() ? "the command line" : file);
  if (config.data.empty())
    throw InputError("--data: give the images to train against (or the config key \"data\")");
  return config;
}

// The type that `auto` stands for goes into the run's config, and a run that goes on keeps its own: on
// another machine `auto` may be another.
at::ScalarType settle_dtype(const TrainOptions& o, PolicyTrainConfig& config, at::Device device) {
  config.validate();
  const fs::path own = fs::path(o.out) / "config.json";
  if (config.dtype == "auto" && o.resume && fs::exists(own)) {
    if (const std::string stored = dtype_of_run(read_json_file(own.string())); !stored.empty())
      config.dtype = stored;
  }
  const at::ScalarType dtype = parse_dtype(config.dtype, device);
  config.dtype = dtype_name(dtype);
  return dtype;
}

void train_policy(const TrainOptions& o) {
  const at::Device device = o.compute.apply();
  if (o.model.empty())
    throw InputError("-m: give the model folder with the generator that the policy is for");
  const fs::path folder = o.model;
  const ModelConfig given = read_model_config(folder);
  PolicyTrainConfig config = parse_policy_config(o, given);
  const at::ScalarType dtype = settle_dtype(o, config, device);
  PolicyParts parts;
  parts.generator = open_generator(folder, given, device, dtype);
  parts.tokenizer = open_tokenizer(folder, given, device);
  if (device.is_cuda() && dtype == at::kBFloat16) parts.tokenizer->decode_in_bfloat16();
  if (given.files.contains("generator.safetensors"))
    parts.generator_hash = given.files.at("generator.safetensors");
  if (given.files.contains("tokenizer.safetensors"))
    parts.tokenizer_hash = given.files.at("tokenizer.safetensors");
  parts.class_names = given.class_names;
  RewardContext reward;
  reward.image_size = given.image_size;
  reward.classes = given.generator->classes;
  reward.device = device;
  reward.seed = uint64_t(config.seed);
  if (fs::exists(folder / "features.safetensors")) {
    reward.features = folder / "features.safetensors";
    check_part_hash(given, reward.features);
    parts.features = load_feature_net(reward.features);
    parts.features->to(device);
  }
  if (fs::exists(folder / "measure.safetensors")) reward.measure = folder / "measure.safetensors";
  parts.make_reward = [&] { return make_reward(config.reward, reward); };
  parts.grid = [](const at::Tensor& images) {
    const auto [rows, columns] = grid_shape(images.size(0));
    return make_grid(images, rows, columns);
  };
  parts.diagnostics = fs::path(o.out) / "diagnostics";
  const std::shared_ptr<const ImageDataset> data = open_dataset(config.data);
  note(data->describe());
  if (given.from_texts()) {
    const fs::path run = fs::absolute(fs::path(o.out) / "x").lexically_normal().parent_path();
    fs::create_directories(run.parent_path());
    std::vector<std::string> broken;  // the recipe says it, and takes the empty text for them
    parts.texts = text_features(o, config.text_features, run.string() + ".x", given,
                                captions_of(*data, broken), device);
    reward.text_width = parts.texts->pooled_width();
  }
  std::optional<PolicyFile> init;
  if (!o.init.empty()) init = read_policy(part_of_init(o, policy_file_name(config.steps)));
  RecipeContext context = make_context(device, config.seed);
  context.finish_model = finish_with(o, describe_model(o, given.image_size, given.class_names));
  const auto recipe = make_policy_recipe(config, std::move(parts), data, init ? &*init : nullptr, context);
  run_training(*recipe, o.out, o.resume, run_info(o, device));
}

void add_kind(CLI::App& train, const std::string& kind, const std::string& help,
              const std::string& config_keys, const std::string& example, void (*run)(const TrainOptions&)) {
  auto* command = train.add_subcommand(kind, help);
  auto o = std::make_shared<TrainOptions>();
  command->add_option(
      "--config", o->config,
      "FILE.json; missing keys take their defaults (with --resume and without --config: the run's own)");
  command->add_option("--set", o->overrides, "key.path=value on top of the config; may be repeated")
      ->take_all();
  command->add_option("--data", o->data, "dataset (or token file, for a generator)");
  command->add_option("--held-out", o->held_out,
                      "data that is only measured on; #test or @9000: refer to --data; \"\" = none");
  command->add_option("--out", o->out, "folder of the run")->required();
  command->add_option("-m,--model", o->model, "model folder with the parts that are not trained here");
  command->add_option("--init", o->init, "model folder to start from");
  command->add_flag(
      "--resume", o->resume,
      "go on from the newest checkpoint in --out; config, -m and --init are the run's where not given");
  command->add_option("--seed", o->seed, "seed; default: the config's");
  command->add_option("--dtype", o->dtype, "auto, float32 or bfloat16; default: the config's, else auto");
  if (kind == "policy")
    command->add_option("--steps", o->steps, "generation steps T, or any; default: the config's");
  o->compute.add_to(*command, /*with_dtype=*/false);
  command->footer("Config keys:\n" + config_keys + "\nExample:\n  " + example);
  command->callback([o, run] {
    install_interrupt_handlers();
    check_run_folder(o->out, o->resume);
    if (o->resume) take_folders_of_run(*o);
    run(*o);
  });
}

}  // namespace

void add_train(CLI::App& app) {
  auto* train = app.add_subcommand("train", "train and resume");
  train->require_subcommand(1);
  train->footer(
      "Order: classifier (twice: features and measure), tokenizer, `adanat tokenize encode`, generator, "
      "policy.\n"
      "Example:\n"
      "  adanat train classifier --config configs/signs/features.json --data signs.tar.gz --out "
      "runs/features");
  add_kind(
      *train, "classifier", "a small network for losses (features) or for measuring (measure)",
      config_help<ClassifierTrainConfig>(),
      "adanat train classifier --config configs/signs/features.json --data signs.tar.gz --out runs/features",
      train_classifier);
  add_kind(*train, "tokenizer", "images <-> tokens", config_help<TokenizerTrainConfig>(),
           "adanat train tokenizer --config configs/signs/tokenizer.json --data signs.tar.gz -m "
           "runs/features/model "
           "--out runs/tokenizer",
           train_tokenizer);
  add_kind(*train, "generator", "the masked-token transformer, from a token file",
           config_help<GeneratorTrainConfig>(),
           "adanat train generator --config configs/signs/generator.json --data tokens.safetensors "
           "-m runs/tokenizer/model --out runs/signs",
           train_generator);
  add_kind(
      *train, "policy", "the schedule learned per image, by PPO against a discriminator",
      config_help<PolicyTrainConfig>(),
      "adanat train policy --config configs/signs/policy.json --data signs.tar.gz -m models/signs --steps 4 "
      "--out runs/signs/policy",
      train_policy);
}

}  // namespace adanat
