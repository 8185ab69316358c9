#include "apps/pipeline/weight_source.h"

#include <algorithm>
#include <set>

#include "core/base/config.h"
#include "core/base/list_names.h"
#include "core/base/text.h"
#include "core/io/pth.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

// Names of whole models in Hugging Face folders, in the order they are looked for.
constexpr const char* kSingleFiles[] = {"model.safetensors", "diffusion_pytorch_model.safetensors",
                                        "pytorch_model.safetensors", "pytorch_model.bin",
                                        "diffusion_pytorch_model.bin"};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

bool is_fraction(DType dtype) {
  return dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF32 || dtype == DType::kF64;
}

bool has_pytorch_name(const fs::path& file) {
  for (const char* suffix : {".pth", ".pt", ".ckpt", ".bin"})
    if (file.extension() == suffix) return true;
  return false;
}

}  // namespace

WeightSource WeightSource::open(const fs::path& path) {
  WeightSource out;
  out.where_ = path.string();
  if (fs::is_directory(path))
    out.add_folder(path);
  else
    out.add_file(path);
  return out;
}

void WeightSource::add_file(const fs::path& file) {
  const auto mapping = MappedFile::open(file);
  const auto bytes = mapping->bytes();
  bytes_ += bytes.size();
  const auto add = [&](const std::string& name, const Entry& entry) {
    if (!entries_.emplace(name, entry).second)
      throw InputError(cat(file.string(), ": the tensor ", printable(name), " is in another file as well"));
  };
  // A name that only PyTorch files have: what is wrong with it as such is the better message.
  if (is_pth(bytes) || has_pytorch_name(file)) {
    const PthFile& pth = pth_.emplace_back(PthFile::open(file));
    for (size_t i = 0; i < pth.tensors().size(); ++i) {
      const PthTensor& tensor = pth.tensors()[i];
      add(tensor.name, {tensor.dtype, tensor.shape, pth_.size() - 1, i});
    }
    return;
  }
  const SafetensorsFile& safe = safetensors_.emplace_back(SafetensorsFile::open(file));
  if (safetensors_.size() == 1) metadata_ = safe.metadata();
  for (size_t i = 0; i < safe.entries().size(); ++i) {
    const TensorEntry& tensor = safe.entries()[i];
    add(tensor.name, {tensor.dtype, tensor.shape, safetensors_.size() - 1, i});
  }
}

void WeightSource::add_folder(const fs::path& folder) {
  for (const char* name : kSingleFiles) {
    if (fs::exists(folder / name)) return add_file(folder / name);
    const fs::path index = folder / cat(name, ".index.json");
    if (!fs::exists(index)) continue;
    const Json j = read_json_file(index.string());
    if (!j.is_object() || !j.contains("weight_map") || !j["weight_map"].is_object())
      throw InputError(cat(index.string(), ": lacks the object \"weight_map\""));
    std::set<std::string> shards;
    for (const auto& [tensor, shard] : j["weight_map"].items()) {
      const std::string file = shard.is_string() ? shard.get<std::string>() : "";
      if (file.empty() || fs::path(file).filename() != file)
        throw InputError(
            cat(index.string(), ": weight_map.", printable(tensor), ": must name a file beside it"));
      shards.insert(file);
    }
    for (const std::string& shard : shards) {
      if (!fs::exists(folder / shard))
        throw InputError(cat(index.string(), ": names the file ", printable(shard),
                             ", which is not there; fetch it as well"));
      add_file(folder / shard);
    }
    for (const auto& [tensor, shard] : j["weight_map"].items())
      if (!entries_.contains(tensor))
        throw InputError(cat(index.string(), ": the tensor ", printable(tensor), " is in none of its files"));
    if (!pth_.empty() && !safetensors_.empty())
      throw InputError(cat(index.string(), ": its files are of two kinds"));
    return;
  }
  throw InputError(cat(folder.string(), ": holds no weights (none of ", kSingleFiles[0], ", ",
                       kSingleFiles[1], ", ", kSingleFiles[3], " or their shards)"));
}

const std::map<std::string, PthScalar>& WeightSource::scalars() const {
  static const std::map<std::string, PthScalar> kNone;
  return pth_.size() == 1 ? pth_[0].scalars() : kNone;
}

TensorMap WeightSource::read(const std::map<std::string, std::string>& names) const {
  // Many tensors may look at the same bytes, and one element may stand for many.
  const uint64_t limit = 16 * bytes_ + (uint64_t{64} << 20);
  uint64_t total = 0;
  TensorMap out;
  for (const auto& [name, source_name] : names) {
    const Entry& entry = entries_.at(source_name);
    if (!is_fraction(entry.dtype))
      throw InputError(cat(where_, ": ", printable(source_name), " holds ", name_of(entry.dtype),
                           ", weights are F32, F16, BF16 or F64"));
    uint64_t size = size_of(entry.dtype);
    for (const int64_t n : entry.shape)
      if (__builtin_mul_overflow(size, uint64_t(n), &size)) size = UINT64_MAX / 2;
    if (size > limit || (total += size) > limit)
      throw InputError(cat(where_, ": its tensors would take more than ", limit, " bytes of memory (",
                           printable(source_name), " stands for far more than is in the file); refused"));
    if (pth_.empty()) {
      const SafetensorsFile& file = safetensors_[entry.file];
      out.emplace(name, read_tensor(file, file.entries()[entry.index]));
    } else {
      const PthFile& file = pth_[entry.file];
      out.emplace(name, read_tensor(file, file.tensors()[entry.index]));
    }
  }
  check_finite(out, where_);
  return out;
}

ShapeMap WeightNames::shapes(const WeightSource& source) const {
  ShapeMap out;
  for (const auto& [name, source_name] : names) out.emplace(name, source.entries().at(source_name).shape);
  return out;
}

std::optional<WeightNames> find_model(const WeightSource& source, std::string_view anchor) {
  std::vector<std::string> prefixes, averaged;
  for (const auto& [name, entry] : source.entries()) {
    if (!name.ends_with(anchor)) continue;
    const std::string prefix = name.substr(0, name.size() - anchor.size());
    if (!prefix.empty() && !prefix.ends_with('.')) continue;
    prefixes.push_back(prefix);
    if (prefix.find("ema") != std::string::npos) averaged.push_back(prefix);
  }
  if (prefixes.empty()) return std::nullopt;
  if (prefixes.size() > 1 && averaged.size() != 1) {
    std::vector<std::string> shown;
    for (const std::string& prefix : prefixes) shown.push_back(printable(prefix + std::string(anchor)));
    throw InputError(cat(source.where(), ": holds several models (", list_names(shown),
                         "); save the one that is wanted alone"));
  }
  WeightNames out;
  out.prefix = prefixes.size() == 1 ? prefixes[0] : averaged[0];
  for (const auto& [name, entry] : source.entries()) {
    if (!name.starts_with(out.prefix))
      out.left_out.push_back(name);
    else if (!name.ends_with("position_ids"))
      out.names.emplace(name.substr(out.prefix.size()), name);
  }
  return out;
}

void check_weights(const std::string& where, const ShapeMap& found, const ShapeMap& expected) {
  check_names(where, found, expected);
  for (const auto& [name, shape] : expected)
    if (found.at(name) != shape)
      throw InputError(cat(where, ": ", name, " has shape ", shape_text(found.at(name)),
                           ", by the other tensors it should have ", shape_text(shape)));
}

int64_t size_of_tensor(const std::string& where, const ShapeMap& found, const std::string& name, size_t rank,
                       size_t dimension) {
  const auto it = found.find(name);
  if (it == found.end()) throw InputError(cat(where, ": lacks ", name, kWhyMissing));
  if (it->second.size() != rank || it->second[dimension] < 1)
    throw InputError(cat(where, ": ", name, " has shape ", shape_text(it->second), ", it should have ", rank,
                         rank == 1 ? " dimension" : " dimensions", ", none of them 0"));
  return it->second[dimension];
}

}  // namespace adanat
