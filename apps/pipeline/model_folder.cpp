#include "apps/pipeline/model_folder.h"

#include <algorithm>

#include "core/base/edit_distance.h"
#include "core/base/sha256.h"
#include "core/base/text.h"
#include "core/generator/generator_recipe.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "policy/policy_schedule.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char *kTokenizerFile = "tokenizer.safetensors", *kGeneratorFile = "generator.safetensors";

bool is_part(const fs::path& file) {
  return file.extension() == ".safetensors";
}

// The regular files of a folder, sorted; none where there is no such folder.
std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> out;
  if (!fs::is_directory(folder)) return out;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file() && !entry.path().filename().string().starts_with('.'))
      out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

void copy_durably(const fs::path& from, const fs::path& to) {
  AtomicFile copy(to);  // durable, and it says so where the disk is full
  const auto source = MappedFile::open(from);
  copy.write(source->data(), source->size());
  copy.commit();
}

template <Config C>
std::optional<C> config_of_part(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  const SafetensorsFile part = SafetensorsFile::open(file);
  const auto it = part.metadata().find("config");
  if (it == part.metadata().end())
    throw InputError(cat(file.string(), ": its metadata lacks the key \"config\""));
  return config_from_json<C>(parse_json(it->second, file.string()), file.string());
}

}  // namespace

void SamplingDefaults::validate() const {
  require(steps >= 1 && steps <= 1000, "steps", "1..1000", steps);
  table.validate();
}

std::string folder_name(const fs::path& folder) {
  const fs::path clean = fs::absolute(folder).lexically_normal();
  return clean.has_filename() ? clean.filename().string() : clean.parent_path().filename().string();
}

ModelConfig read_model_config(const fs::path& folder) {
  const std::string where = (folder / kConfigFile).string();
  if (fs::exists(folder) && !fs::is_directory(folder))
    throw InputError(cat(folder.string(),
                         ": is no model folder but a file; give the folder that it is in, or ",
                         "convert it first (`adanat convert`)"));
  if (!fs::is_directory(folder))
    throw InputError(cat(folder.string(), ": is no model folder (no such folder); give one that `adanat ",
                         "train` or `adanat convert` wrote"));
  if (!fs::exists(folder / kConfigFile))
    throw InputError(cat(folder.string(), ": is no model folder (no config.json)"));
  const Json j = read_json_file(where);
  if (!j.is_object() || !j.contains("format") || !j["format"].is_number_integer())
    throw InputError(cat(where, ": lacks the integer key \"format\""));
  ModelConfig config;
  config.format = j["format"].get<int64_t>();
  if (config.format > kModelFormat)
    throw InputError(cat(where, ": has format ", config.format, ", this program reads up to ", kModelFormat,
                         "; use a newer adanat"));
  if (config.format < 1) throw InputError(cat(where, ": format must be 1 or more, got ", config.format));
  using config_detail::read_value;
  for (const auto& [key, value] : j.items()) {
    if (key == "format") continue;
    if (key == "name")
      read_value(value, config.name, where, key);
    else if (key == "program")
      read_value(value, config.program, where, key);
    else if (key == "image_size")
      read_value(value, config.image_size, where, key);
    else if (key == "preprocessing")
      read_value(value, config.preprocessing, where, key);
    else if (key == "class_names")
      read_value(value, config.class_names, where, key);
    else if (key == "sampling")
      config.sampling = config_from_json<SamplingDefaults>(value, where + ": sampling");
    else if (key == "tokenizer")
      config.tokenizer = config_from_json<TokenizerConfig>(value, where + ": tokenizer");
    else if (key == "generator")
      config.generator = config_from_json<GeneratorConfig>(value, where + ": generator");
    else if (key == "text_encoder")
      config.text_encoder = config_from_json<TextEncoderConfig>(value, where + ": text_encoder");
    else if (key == "files") {
      if (!value.is_object()) config_detail::throw_type(where, key, "an object", value);
      for (const auto& [name, hash] : value.items())
        read_value(hash, config.files[name], where, "files." + name);
    } else {
      config_detail::throw_unknown(where, key,
                                   {"format", "name", "program", "image_size", "preprocessing", "class_names",
                                    "sampling", "tokenizer", "generator", "text_encoder", "files"});
    }
  }
  for (const std::string& name : config.class_names)
    if (!is_name(name))
      throw InputError(
          cat(where, ": class_names: \"", one_line(name), "\" is empty or holds control characters"));
  if (config.image_size < 1 || config.image_size > 16384)
    throw InputError(cat(where, ": image_size must be 1..16384, got ", config.image_size));
  if (config.preprocessing != "adm-center-crop")
    throw InputError(cat(where, ": preprocessing must be adm-center-crop, got ", config.preprocessing));
  if (config.tokenizer && config.generator) {
    const int64_t factor = config.tokenizer->factor();
    if (config.generator->grid_height * factor != config.image_size ||
        config.generator->grid_width * factor != config.image_size)
      throw InputError(cat(where, ": image_size ", config.image_size, " is not the generator's grid of ",
                           config.generator->grid_height, "x", config.generator->grid_width,
                           " times the tokenizer's factor ", factor));
  }
  if (config.generator && config.tokenizer && config.generator->codes != config.tokenizer->codes)
    throw InputError(cat(where, ": the generator has ", config.generator->codes, " codes, the tokenizer ",
                         config.tokenizer->codes));
  if (config.generator && config.generator->condition == "class" && !config.class_names.empty() &&
      int64_t(config.class_names.size()) != config.generator->classes)
    throw InputError(cat(where, ": ", config.class_names.size(), " class names for a generator of ",
                         config.generator->classes, " classes"));
  return config;
}

void write_model_config(const fs::path& folder, ModelConfig config) {
  if (!config.name.empty() && !is_name(config.name))
    throw InputError(cat(folder.string(), ": the model's name \"", one_line(config.name),
                         "\" must be UTF-8 without control characters; rename the folder"));
  config.tokenizer = config_of_part<TokenizerConfig>(folder / kTokenizerFile);
  config.generator = config_of_part<GeneratorConfig>(folder / kGeneratorFile);
  std::vector<fs::path> parts;
  for (const auto& entry : fs::directory_iterator(folder))
    if (is_part(entry.path())) parts.push_back(entry.path());
  std::sort(parts.begin(), parts.end());
  const std::vector<fs::path> encoder = files_in(folder / kTextEncoderFolder);
  Json j;
  j["format"] = kModelFormat;
  j["name"] = config.name;
  j["program"] = cat("adanat ", ADANAT_VERSION);
  j["image_size"] = config.image_size;
  j["preprocessing"] = config.preprocessing;
  j["class_names"] = config.class_names;
  j["sampling"] = config_to_json(config.sampling);
  if (config.tokenizer) j["tokenizer"] = config_to_json(*config.tokenizer);
  if (config.generator) j["generator"] = config_to_json(*config.generator);
  if (!encoder.empty()) j["text_encoder"] = config_to_json(config.text_encoder);
  j["files"] = Json::object();
  for (const fs::path& part : parts) j["files"][part.filename().string()] = sha256_file(part.string());
  for (const fs::path& file : encoder)
    j["files"][cat(kTextEncoderFolder, "/", file.filename().string())] = sha256_file(file.string());
  write_file_atomic(folder / kConfigFile, j.dump(2) + "\n");
}

std::optional<fs::path> policy_for(const fs::path& folder, int64_t steps) {
  if (steps > 0 && fs::exists(folder / policy_file_name(steps))) return folder / policy_file_name(steps);
  const fs::path any = folder / policy_file_name(0);
  if (fs::exists(any) && read_policy(any).settings.fits(steps)) return any;
  return std::nullopt;
}

void copy_missing_parts(const fs::path& from, const fs::path& to) {
  // A generator belongs to its tokenizer, a policy to its generator: neither comes along to another one.
  const bool new_tokenizer = fs::exists(to / kTokenizerFile);
  const bool new_generator = fs::exists(to / kGeneratorFile);
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (!is_part(entry.path()) || fs::exists(to / name)) continue;
    if (new_tokenizer && name == kGeneratorFile) continue;
    if ((new_tokenizer || new_generator) && name.starts_with("policy-")) continue;
    copy_durably(entry.path(), to / name);
  }
  if (fs::exists(to / kTextEncoderFolder)) return;
  for (const fs::path& file : files_in(from / kTextEncoderFolder)) {
    fs::create_directories(to / kTextEncoderFolder);
    const fs::path target = to / kTextEncoderFolder / file.filename();
    std::error_code error;  // another file system, or one without links: then it is copied
    fs::create_hard_link(fs::canonical(file), target, error);
    if (error) copy_durably(file, target);
  }
}

SafetensorsFile open_part(const fs::path& folder, const ModelConfig& config, const std::string& name) {
  SafetensorsFile file = SafetensorsFile::open(folder / name);
  const MappedFile& bytes = *file.mapping();
  if (config.files.contains(name) && bytes.size() <= kHashedAtStart)
    check_part_hash(config, file.path(), sha256_hex(bytes.data(), bytes.size()));
  const char* format = name == kTokenizerFile ? kTokenizerFormat
                       : name == kGeneratorFile
                           ? kGeneratorFormat
                           : nullptr;  // policies and classifiers have readers of their own
  const auto found = file.metadata().find("format");
  if (format != nullptr && found != file.metadata().end() && found->second != format)
    throw InputError(cat(file.path().string(), ": has the format \"", printable(found->second),
                         "\", this program reads \"", format, "\""));
  return file;
}

void check_part_hash(const ModelConfig& config, const fs::path& file, const std::string& actual) {
  const auto known = config.files.find(file.filename().string());
  if (known != config.files.end() && known->second != actual)
    throw InputError(cat(file.string(), ": has hash ", actual.substr(0, 12), "..., config.json says ",
                         known->second.substr(0, 12),
                         "...; the file is damaged or was replaced, fetch or train it again"));
}

void check_part_hash(const ModelConfig& config, const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (!error && size <= kHashedAtStart && config.files.contains(file.filename().string()))
    check_part_hash(config, file, sha256_file(file.string()));
}

std::vector<std::string> verify_model(const fs::path& folder, const ModelConfig& config) {
  std::vector<std::string> wrong;
  for (const auto& [name, hash] : config.files) {
    if (!fs::exists(folder / name)) {
      wrong.push_back(name + ": missing");
    } else if (const std::string actual = sha256_file((folder / name).string()); actual != hash) {
      wrong.push_back(cat(name, ": has hash ", actual.substr(0, 12), "..., config.json says ",
                          hash.substr(0, 12), "..."));
    }
  }
  return wrong;
}

int64_t class_id(const ModelConfig& config, const std::string& text) {
  const int64_t classes = config.generator ? config.generator->classes : int64_t(config.class_names.size());
  const std::string unsigned_part = text.substr(text.starts_with('-') || text.starts_with('+') ? 1 : 0);
  const bool integer = !unsigned_part.empty() && std::all_of(unsigned_part.begin(), unsigned_part.end(),
                                                             [](char c) { return c >= '0' && c <= '9'; });
  if (integer) {
    const int64_t id = unsigned_part.size() < 10 && text[0] != '-' ? std::stoll(unsigned_part) : classes;
    if (id >= classes) throw InputError(cat("--class ", text, ": ids are 0 to ", classes - 1));
    return id;
  }
  const auto found = std::find(config.class_names.begin(), config.class_names.end(), text);
  if (found != config.class_names.end()) return found - config.class_names.begin();
  std::vector<std::string> names = config.class_names;
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return edit_distance(a, text) < edit_distance(b, text);
  });
  std::string close;
  for (size_t i = 0; i < names.size() && i < 3; ++i) close += (i == 0 ? "" : ", ") + names[i];
  throw InputError(cat("--class ", text, ": this model has no such class; close ones: ", close,
                       "; ids are 0 to ", classes - 1));
}

}  // namespace adanat
