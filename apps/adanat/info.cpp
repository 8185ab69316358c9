// adanat info PATH: what a model folder, checkpoint, tensor file (safetensors, PyTorch, numpy), token file,
// dataset or one of our PNGs holds.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <span>

#include "apps/adanat/cli.h"
#include "apps/pipeline/model_folder.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/data/dataset.h"
#include "core/data/token_file.h"
#include "core/io/npy.h"
#include "core/io/png.h"
#include "core/io/pth.h"
#include "core/io/safetensors.h"
#include "core/io/zip.h"
#include "core/train/trainer.h"

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

// Texts of files from elsewhere: JSON wants valid UTF-8, a terminal no control characters.
std::string shown(std::string_view text) {
  return one_line(text.substr(0, 1000)) + (text.size() > 1000 ? "..." : "");
}

Json shown(const PthScalar& value) {
  switch (value.kind) {
    case PthScalar::Kind::kNone:
      return nullptr;
    case PthScalar::Kind::kBool:
      return value.integer != 0;
    case PthScalar::Kind::kInt:
      return value.integer;
    case PthScalar::Kind::kFloat:  // JSON has no such numbers
      if (std::isnan(value.real)) return "nan";
      if (std::isinf(value.real)) return value.real > 0 ? "inf" : "-inf";
      return value.real;
    case PthScalar::Kind::kText:
    case PthScalar::Kind::kOther:
      return shown(value.text);
    case PthScalar::Kind::kList: {
      std::string text;
      for (const PthScalar& item : value.first) text += shown(item).dump() + ", ";
      return cat("[", text, "...] (", value.integer, " values)");
    }
  }
  return nullptr;
}

// At the end of an object, in the time of one: by its key, every value before would be looked at.
void append(Json& object, const std::string& key, Json value) {
  auto& pairs = object.get_ref<Json::object_t&>();
  pairs.Json::object_t::Container::emplace_back(key, std::move(value));
}

Json describe_pth(const fs::path& path, bool verify) {
  // Names that no tensor needs are listed here instead of refused: this is the command to look at such a file
  // with.
  const PthFile file = PthFile::open(path, UnknownNames::kList);
  Json j;
  j["kind"] = cat("PyTorch file (", file.container(), ")");
  Json tensors = Json::array();
  uint64_t values = 0;
  for (const PthTensor& tensor : file.tensors()) {
    if (__builtin_add_overflow(values, tensor.count(), &values)) values = UINT64_MAX;
    tensors.push_back(
        {{"name", one_line(tensor.name)}, {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}});
    if (verify) file.storage(tensor);
  }
  j["values"] = values;
  if (!file.refused().empty()) {
    j["refused"] = Json::array();
    for (const std::string& name : file.refused()) j["refused"].push_back(shown(name));
  }
  if (!file.scalars().empty()) {
    Json& plain = j["plain"] = Json::object();
    for (const auto& [name, value] : file.scalars()) append(plain, one_line(name), shown(value));
  }
  if (file.left_out() > 0) j["plain_left_out"] = file.left_out();
  j["tensors"] = tensors;
  if (verify) j["verified"] = true;
  return j;
}

Json describe_npz(const fs::path& path, bool verify) {
  const NpzFile file(path);
  Json j;
  j["kind"] = "numpy archive";
  Json tensors = Json::array();
  for (const std::string& name : file.names()) {
    try {
      const NpyHeader header = file.header(name);
      tensors.push_back({{"name", shown(name)}, {"dtype", name_of(header.dtype)}, {"shape", header.shape}});
    } catch (const InputError& error) {
      // One array of a type that is not read (texts, objects) hides none of the others.
      j["unreadable"].push_back(shown(error.what()));
    }
  }
  if (verify) file.verify();
  j["tensors"] = tensors;
  if (verify) j["verified"] = true;
  return j;
}

Json describe_npy(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const NpyHeader header = parse_npy_header(file->bytes(), path.string());
  Json j;
  j["kind"] = "numpy array";
  j["tensors"] = Json::array({{{"name", ""}, {"dtype", name_of(header.dtype)}, {"shape", header.shape}}});
  return j;
}

// What its first bytes say: the length of a JSON object that is in the file.
bool begins_as_safetensors(std::span<const std::byte> bytes) {
  uint64_t length = 0;
  if (bytes.size() <= sizeof length || bytes[sizeof length] != std::byte{'{'}) return false;
  std::memcpy(&length, bytes.data(), sizeof length);
  return length <= bytes.size() - sizeof length;
}

// Files of tensors, by content; null for anything else.
Json describe_tensors(const fs::path& path, bool verify) {
  const auto file = MappedFile::open(path);
  if (is_zip(file->bytes())) {
    const ZipFile zip = ZipFile::open(file);  // outlives the loop over its entries
    for (const ZipEntry& entry : zip.entries())
      if (entry.name.ends_with(".npy")) return describe_npz(path, verify);
    return describe_pth(path, verify);
  }
  if (is_pth(file->bytes())) return describe_pth(path, verify);
  if (begins_as_safetensors(file->bytes())) return describe_safetensors(path);
  const std::string_view head(reinterpret_cast<const char*>(file->data()), std::min<size_t>(file->size(), 6));
  if (head == "\x93NUMPY") return describe_npy(path);
  return nullptr;
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
  if (config.from_texts()) j["text_encoder"] = config_to_json(config.text_encoder);
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
  for (const fs::path& folder : checkpoints_in(path)) names.push_back(folder.filename());
  j["checkpoints"] = names;
  return j;
}

Json describe_dataset(const std::string& path) {
  const auto dataset = open_dataset(path);
  Json j;
  j["kind"] = "dataset";
  j["description"] = dataset->describe();
  j["images"] = dataset->size();
  j["captioned"] = dataset->has_captions();
  std::vector<int64_t> counts(dataset->class_names().size());
  for (int64_t i = 0; i < dataset->size(); ++i) ++counts[size_t(dataset->label(i))];
  for (size_t c = 0; c < counts.size(); ++c) j["classes"][dataset->class_names()[c]] = counts[c];
  return j;
}

Json describe_png(const fs::path& path, bool verify) {
  const auto file = MappedFile::open(path);
  const std::span<const std::byte> header = read_png_chunks(file->bytes(), path.string()).front().data;
  const auto number = [&](size_t at) {  // big-endian
    uint32_t value = 0;
    for (size_t i = 0; i < 4; ++i) value = value << 8 | std::to_integer<uint32_t>(header[at + i]);
    return value;
  };
  if (header.size() < 8)
    throw InputError(cat(path.string(), ": its header is cut short; the file is damaged"));
  Json j;
  j["kind"] = "image";
  j["width"] = number(0), j["height"] = number(4);
  if (verify) decode_image(file->bytes(), path.string()), j["verified"] = true;
  for (const auto& [key, value] : decode_png_text(file->bytes(), path.string())) j["text"][key] = value;
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
    return describe_png(path, o.verify);
  } else if (fs::is_regular_file(path)) {
    if (is_png(MappedFile::open(path)->bytes())) return describe_png(path, o.verify);  // whatever its name
    if (Json j = describe_tensors(path, o.verify); !j.is_null()) return j;
    // Names that only checkpoints have: say what is wrong with the checkpoint, not that it is no dataset.
    for (const char* suffix : {".pth", ".pt", ".ckpt"})
      if (path.extension() == suffix) return describe_pth(path, o.verify);
    if (path.extension() == ".npz") return describe_npz(path, o.verify);
  }
  return describe_dataset(o.path);
}

// Indented "key: value" lines; lists of tensors one a line, long texts whole. What a file says goes through
// one_line: it may hold what a terminal obeys.
void print(const Json& j, int indent) {
  const std::string space(size_t(indent), ' ');
  for (const auto& [key, value] : j.items()) {
    if (key == "tensors" && value.is_array()) {
      std::printf("%stensors: %zu\n", space.c_str(), value.size());
      for (const Json& t : value)
        std::printf("%s  %s %s %s\n", space.c_str(), one_line(t["name"].get<std::string>()).c_str(),
                    t["dtype"].get<std::string>().c_str(),
                    shape_text(t["shape"].get<std::vector<int64_t>>()).c_str());
    } else if (value.is_object()) {
      std::printf("%s%s:\n", space.c_str(), one_line(key).c_str());
      print(value, indent + 2);
    } else if (value.is_string()) {
      std::printf("%s%s: %s\n", space.c_str(), one_line(key).c_str(),
                  one_line(value.get<std::string>()).c_str());
    } else {
      std::printf("%s%s: %s\n", space.c_str(), one_line(key).c_str(),
                  one_line(value.dump(-1, ' ', false, Json::error_handler_t::replace)).c_str());
    }
  }
}

}  // namespace

void add_info(CLI::App& app) {
  auto* command = app.add_subcommand(
      "info", "what a model folder, checkpoint, tensor file, token file, dataset or PNG holds");
  auto o = std::make_shared<InfoOptions>();
  command->add_option("path", o->path, "file or folder")->required();
  command->add_flag(
      "--verify", o->verify,
      "check the files of a model folder against their hashes, the checksums inside PyTorch and "
      "numpy files, the pixels of a PNG");
  command->add_flag("--json", o->json, "as JSON");
  command->footer(
      "Examples:\n  adanat info models/signs --verify\n  adanat info out/00000.png\n  adanat info "
      "nnet_ema.pth --json");
  command->callback([o] {
    const Json j = describe(*o);
    if (o->verify && !j.contains("verified")) note(cat(o->path, ": nothing to verify: holds no checksums"));
    if (o->json)
      std::printf("%s\n", j.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
    else
      print(j, 0);
  });
}

}  // namespace adanat
