// adanat info PATH: what a model folder, checkpoint, token file, dataset or one of our PNGs holds.
#include <cstdio>
#include <filesystem>

#include "apps/adanat/cli.h"
#include "apps/pipeline/model_folder.h"
#include "core/base/log.h"
#include "core/data/dataset.h"
#include "core/data/token_file.h"
#include "core/io/safetensors.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

struct InfoOptions {
  std::string path;
  bool verify = false, json = false;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Json describe_safetensors(const fs::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  Json j;
  j["kind"] = is_token_file(path) ? "token file" : "safetensors";
  int64_t values = 0;
  Json tensors = Json::array();
  for (const TensorEntry& entry : file.entries()) {
    int64_t count = 1;
    for (const int64_t size : entry.shape) count *= size;
    values += count;
    tensors.push_back({{"name", entry.name}, {"dtype", name_of(entry.dtype)}, {"shape", entry.shape}});
  }
  j["values"] = values;
  j["metadata"] = file.metadata();
  j["tensors"] = tensors;
  return j;
}

Json describe_model(const fs::path& path, bool verify) {
  const ModelConfig config = read_model_config(path);
  Json j;
  j["kind"] = "model folder";
  j["format"] = config.format;
  j["name"] = config.name;
  j["program"] = config.program;
  j["image_size"] = config.image_size;
  j["classes"] = config.class_names;
  j["sampling"] = config_to_json(config.sampling);
  if (config.tokenizer) j["tokenizer"] = config_to_json(*config.tokenizer);
  if (config.generator) j["generator"] = config_to_json(*config.generator);
  for (const auto& [name, hash] : config.files) j["files"][name] = hash;
  if (verify) {
    const auto wrong = verify_model(path, config);
    if (!wrong.empty()) {
      std::string list;
      for (const std::string& w : wrong) list += (list.empty() ? "" : "; ") + w;
      throw InputError(cat(path.string(), ": files do not match config.json: ", list));
    }
    j["verified"] = true;
  }
  return j;
}

Json describe_checkpoint(const fs::path& path) {
  Json j = describe_safetensors(path / "state.safetensors");
  j["kind"] = "checkpoint";
  return j;
}

Json describe_run(const fs::path& path) {
  Json j;
  j["kind"] = "training run";
  j["config"] = read_json_file((path / "config.json").string());
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path / "checkpoints"))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  j["checkpoints"] = names;
  return j;
}

Json describe_dataset(const std::string& path) {
  const auto dataset = open_dataset(path);
  Json j;
  j["kind"] = "dataset";
  j["description"] = dataset->describe();
  j["images"] = dataset->size();
  std::vector<int64_t> counts(dataset->class_names().size());
  for (int64_t i = 0; i < dataset->size(); ++i) ++counts[size_t(dataset->label(i))];
  for (size_t c = 0; c < counts.size(); ++c) j["classes"][dataset->class_names()[c]] = counts[c];
  return j;
}

Json describe_png(const fs::path& path) {
  const Image image = read_image(path);
  Json j;
  j["kind"] = "image";
  j["width"] = image.width, j["height"] = image.height;
  for (const auto& [key, value] : read_png_text(path)) j["text"][key] = value;
  return j;
}

Json describe(const InfoOptions& o) {
  const fs::path path = o.path;
  if (fs::is_directory(path)) {
    if (fs::exists(path / "checkpoints") && fs::exists(path / "config.json")) return describe_run(path);
    if (fs::exists(path / "state.safetensors")) return describe_checkpoint(path);
    if (fs::exists(path / "config.json")) return describe_model(path, o.verify);
  } else if (path.extension() == ".safetensors") {
    return describe_safetensors(path);
  } else if (path.extension() == ".png") {
    return describe_png(path);
  }
  return describe_dataset(o.path);
}

// Indented "key: value" lines; lists of tensors one a line, long texts whole.
void print(const Json& j, int indent) {
  const std::string space(size_t(indent), ' ');
  for (const auto& [key, value] : j.items()) {
    if (key == "tensors") {
      std::printf("%stensors: %zu\n", space.c_str(), value.size());
      for (const Json& t : value)
        std::printf("%s  %s %s %s\n", space.c_str(), t["name"].get<std::string>().c_str(),
                    t["dtype"].get<std::string>().c_str(),
                    shape_text(t["shape"].get<std::vector<int64_t>>()).c_str());
    } else if (value.is_object()) {
      std::printf("%s%s:\n", space.c_str(), key.c_str());
      print(value, indent + 2);
    } else if (value.is_string()) {
      std::printf("%s%s: %s\n", space.c_str(), key.c_str(), value.get<std::string>().c_str());
    } else {
      std::printf("%s%s: %s\n", space.c_str(), key.c_str(),
                  value.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    }
  }
}

}  // namespace

void add_info(CLI::App& app) {
  auto* command =
      app.add_subcommand("info", "what a model folder, checkpoint, token file, dataset or PNG holds");
  auto o = std::make_shared<InfoOptions>();
  command->add_option("path", o->path, "file or folder")->required();
  command->add_flag("--verify", o->verify, "check the files of a model folder against their hashes");
  command->add_flag("--json", o->json, "as JSON");
  command->footer("Examples:\n  adanat info models/signs --verify\n  adanat info out/00000.png");
  command->callback([o] {
    const Json j = describe(*o);
    if (o->json)
      std::printf("%s\n", j.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
    else
      print(j, 0);
  });
}

}  // namespace adanat
