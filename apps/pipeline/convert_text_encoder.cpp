#include <array>
#include <set>

#include "apps/pipeline/convert_parts.h"
#include "core/base/text.h"
#include "core/io/atomic_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kMaxTextFile = uint64_t{64} << 20;

void copy_whole(const fs::path& from, const fs::path& to) {
  AtomicFile copy(to);
  const auto source = MappedFile::open(from);
  copy.write(source->data(), source->size());
  copy.commit();
}

// vocab.json and merges.txt stand with the weights, or, where a pipeline was saved, in a folder of their own.
std::array<fs::path, 3> tokenizer_places(const fs::path& folder) {
  return {folder, folder / "tokenizer", folder / "../tokenizer"};
}

fs::path tokenizer_file(const fs::path& folder, const char* name) {
  for (const fs::path& place : tokenizer_places(folder))
    if (fs::exists(place / name)) return place / name;
  throw InputError(
      cat(folder.string(), ": lacks ", name, " (nor is it in a folder tokenizer there or beside it)"));
}

int64_t encoder_width(const fs::path& config) {
  const Json j = read_json_file(config.string());
  const Json* text = &j;
  if (j.is_object() && j.contains("text_config") && j["text_config"].is_object()) text = &j["text_config"];
  if (!text->is_object() || !text->contains("hidden_size") || !(*text)["hidden_size"].is_number_integer())
    throw InputError(
        cat(config.string(), ": lacks the integer key \"hidden_size\"; it is no CLIP text encoder's"));
  return (*text)["hidden_size"].get<int64_t>();
}

}  // namespace

void copy_text_encoder(const fs::path& from, const fs::path& to, int64_t text_width) {
  if (!fs::is_directory(from))
    throw InputError(
        cat("--text-encoder ", from.string(), ": is no folder; give a Hugging Face folder of CLIP"));
  const fs::path config = from / "config.json";
  if (!fs::exists(config)) throw InputError(cat(from.string(), ": lacks config.json"));
  if (const int64_t width = encoder_width(config); width != text_width)
    throw InputError(cat(config.string(), ": the encoder's states are ", width, " wide, the generator reads ",
                         text_width, "; it was trained with another encoder"));
  std::map<std::string, fs::path> files = {{"config.json", config}};
  for (const char* name : {"vocab.json", "merges.txt"}) {
    files[name] = tokenizer_file(from, name);
    if (fs::file_size(files[name]) > kMaxTextFile)
      throw InputError(cat(files[name].string(), ": longer than the ", kMaxTextFile, " bytes allowed"));
  }
  // They say how short texts are filled up, where they are there.
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"})
    for (const fs::path& place : tokenizer_places(from))
      if (!files.contains(name) && fs::exists(place / name) && fs::file_size(place / name) <= kMaxTextFile)
        files[name] = place / name;
  const WeightSource weights = WeightSource::open(from);  // one file or all shards, headers checked
  std::set<std::string> held;
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() ||
        !(name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")))
      continue;
    if (name.ends_with(".safetensors")) SafetensorsFile::open(entry.path());
    files[name] = entry.path();
    held.insert(name);
  }
  if (held.empty())
    throw InputError(
        cat(weights.where(), ": holds no *.safetensors; save the encoder with safe_serialization"));
  fs::create_directory(to);
  for (const auto& [name, file] : files) copy_whole(file, to / name);
}

}  // namespace adanat
