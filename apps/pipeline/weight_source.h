// Weights from elsewhere, by name, before anything is known about the model: one file (safetensors, or a
// PyTorch file of either container), or a Hugging Face folder with one file or several shards. Headers are
// read at once, tensors when they are asked for. Nothing in a file is executed.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/nn/module_state.h"

namespace adanat {

class WeightSource {
 public:
  // InputError naming the file: missing, damaged, of neither kind, or a folder without weights.
  static WeightSource open(const std::filesystem::path& path);

  struct Entry {
    DType dtype;
    std::vector<int64_t> shape;
    size_t file, index;  // which of the files, and which of its tensors
  };
  const std::map<std::string, Entry, std::less<>>& entries() const { return entries_; }
  // Counters, texts and settings of a PyTorch file by dotted path; a Namespace is a plain map. Else empty.
  const std::map<std::string, PthScalar>& scalars() const;
  // The metadata of a safetensors file; else empty.
  const Metadata& metadata() const { return metadata_; }
  // The path as it was given, for messages.
  const std::string& where() const { return where_; }

  // Tensors over the mapped bytes where that is possible. `names`: name in the result -> name here.
  // InputError: damaged bytes, numbers that are no fractions, NaN or infinity, or copies that would take far
  // more memory than the files are long (only hostile files do).
  TensorMap read(const std::map<std::string, std::string>& names) const;

 private:
  void add_file(const std::filesystem::path& file);
  void add_folder(const std::filesystem::path& folder);

  std::string where_;
  std::vector<SafetensorsFile> safetensors_;  // in all files or ...
  std::vector<PthFile> pth_;                  // ... in all files
  std::map<std::string, Entry, std::less<>> entries_;
  Metadata metadata_;
  uint64_t bytes_ = 0;  // of all files
};

// One model among the tensors of a source.
struct WeightNames {
  std::string prefix;                        // what stands in front of its names: "", "module.", "nnet_ema."
  std::map<std::string, std::string> names;  // the model's name -> the source's
  std::vector<std::string> left_out;         // names of the source that belong to something else

  // Shapes by the model's names.
  ShapeMap shapes(const WeightSource& source) const;
};

// Finds the model that has a tensor `anchor`, wherever it stands: wrappers ("model", "state_dict") and
// "module." are prefixes of its names. Of several the averaged one ("ema" in its prefix) is taken; nothing
// where there is none. `position_ids`, which old versions stored, are left out without a word. InputError:
// several, and none or many of them averaged.
std::optional<WeightNames> find_model(const WeightSource& source, std::string_view anchor);

// As check_names, then InputError for the first shape that differs, with both sides. `expected` comes from
// sizes that were inferred from some of the same tensors.
void check_weights(const std::string& where, const ShapeMap& found, const ShapeMap& expected);

// A size of a tensor, for inferring the others. InputError: no such tensor, or not of `rank` dimensions.
int64_t size_of_tensor(const std::string& where, const ShapeMap& found, const std::string& name, size_t rank,
                       size_t dimension);

}  // namespace adanat
