#include "core/data/token_file.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/data/token_header.h"
#include "core/io/safetensors.h"

namespace adanat {
namespace {

namespace fs = std::filesystem;

// A copy: the bytes of the file may be unaligned, and token files are small beside what is done with them.
at::Tensor read_tensor(const SafetensorsFile& file, const std::string& name, DType dtype, at::ScalarType type,
                       size_t rank) {
  const TensorEntry& entry = file.at(name);
  if (entry.dtype != dtype || entry.shape.size() != rank)
    throw InputError(cat(file.path().string(), ": \"", name, "\" is ", name_of(entry.dtype), " with ",
                         entry.shape.size(), " dimensions, but ", name_of(dtype), " with ", rank,
                         " was expected"));
  at::Tensor tensor = at::empty(entry.shape, type);
  if (tensor.numel() > 0) std::memcpy(tensor.mutable_data_ptr(), file.data(entry), tensor.nbytes());
  return tensor;
}

// Calls fail(text) for the first value outside [0, limit); limit -1 = no upper bound.
template <class T, class Fail>
void check_range(const at::Tensor& tensor, const char* name, int64_t limit, const Fail& fail) {
  const T* values = tensor.const_data_ptr<T>();
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (values[i] < 0 || (limit >= 0 && static_cast<int64_t>(values[i]) >= limit))
      fail(cat("\"", name, "\" holds ", static_cast<int64_t>(values[i]), " at position ", i, ", outside [0, ",
               limit >= 0 ? std::to_string(limit) : "..", ")"));
}

// What token_file.h promises about the values, for reading (InputError) and writing (RunError) alike.
template <class Fail>
void check_content(const TokenFile& file, const Fail& fail) {
  const int64_t rows = file.tokens.size(0), positions = file.tokens.size(1);
  if (file.grid_height < 1 || file.grid_width < 1 || file.grid_height > 4096 || file.grid_width > 4096 ||
      file.grid_height * file.grid_width != positions)
    fail(cat("\"tokens\" has ", positions, " tokens per image, but the grid is ", file.grid_height, "x",
             file.grid_width));
  if (file.vocab < 1 || file.vocab > INT32_MAX) fail(cat("vocab ", file.vocab, " is out of range"));
  if (file.classes.size(0) != rows)
    fail(cat("\"classes\" has ", file.classes.size(0), " entries for ", rows, " images"));
  if (file.flipped.size(0) != rows)
    fail(cat("\"flipped\" has ", file.flipped.size(0), " entries for ", rows, " images"));
  check_range<int32_t>(file.tokens, "tokens", file.vocab, fail);
  const auto classes = static_cast<int64_t>(file.class_names.size());
  check_range<int64_t>(file.classes, "classes", classes > 0 ? classes : -1, fail);
  check_range<uint8_t>(file.flipped, "flipped", 2, fail);
}

// All captions in one piece and where each ends.
struct PackedTexts {
  std::string bytes;
  std::vector<int64_t> ends;
};
PackedTexts pack(const std::vector<std::string>& texts) {
  PackedTexts out;
  for (const std::string& text : texts) {
    out.bytes += text;
    out.ends.push_back(int64_t(out.bytes.size()));
  }
  return out;
}

std::vector<std::string> read_captions(const SafetensorsFile& file, int64_t rows) {
  const std::string where = file.path().string();
  const bool some = file.find("captions") != nullptr, both = some && file.find("caption_ends") != nullptr;
  if (!some && file.find("caption_ends") == nullptr) return {};
  if (!both)
    throw InputError(cat(where, ": \"captions\" and \"caption_ends\" belong together, one is missing"));
  const at::Tensor bytes = read_tensor(file, "captions", DType::kU8, at::kByte, 1);
  const at::Tensor ends = read_tensor(file, "caption_ends", DType::kI64, at::kLong, 1);
  if (ends.size(0) != rows)
    throw InputError(cat(where, ": \"caption_ends\" has ", ends.size(0), " entries for ", rows, " images"));
  const auto* text = reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>());
  std::vector<std::string> out;
  int64_t begin = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t end = ends.const_data_ptr<int64_t>()[i];
    if (end < begin || end > bytes.size(0))
      throw InputError(cat(where, ": \"caption_ends\" holds ", end, " at position ", i, ", outside [", begin,
                           ", ", bytes.size(0), "]"));
    out.emplace_back(text + begin, size_t(end - begin));
    if (!is_utf8(out.back())) throw InputError(cat(where, ": caption ", i, " is not valid UTF-8"));
    begin = end;
  }
  if (begin != bytes.size(0))
    throw InputError(
        cat(where, ": \"captions\" has ", bytes.size(0) - begin, " bytes behind the last caption"));
  return out;
}

TensorBytes bytes_of(const char* name, DType dtype, const at::Tensor& tensor) {
  return {name, dtype, tensor.sizes().vec(), tensor.const_data_ptr(), tensor.nbytes()};
}

TokenFile parse(const SafetensorsFile& file) {
  const std::string where = file.path().string();
  TokenHeader header = read_token_header(file);
  TokenFile result;
  result.tokens = read_tensor(file, "tokens", DType::kI32, at::kInt, 2);
  result.classes = read_tensor(file, "classes", DType::kI64, at::kLong, 1);
  result.flipped = read_tensor(file, "flipped", DType::kU8, at::kByte, 1);
  result.captions = read_captions(file, result.tokens.size(0));
  result.grid_height = header.grid_height;
  result.grid_width = header.grid_width;
  result.vocab = header.vocab;
  result.tokenizer_hash = std::move(header.tokenizer_hash);
  result.class_names = std::move(header.class_names);
  result.dataset = std::move(header.dataset);
  check_content(result, [&](const std::string& what) { throw InputError(cat(where, ": ", what)); });
  return result;
}

}  // namespace

TokenFile read_token_file(const fs::path& path) {
  return parse(SafetensorsFile::open(path));
}

void write_token_file(const fs::path& path, const TokenFile& file) {
  const auto fail = [&](const std::string& what) {
    throw RunError(cat(path.string(), ": cannot write tokens: ", what));
  };
  if (file.tokens.dim() != 2 || file.classes.dim() != 1 || file.flipped.dim() != 1 ||
      file.tokens.scalar_type() != at::kInt || file.classes.scalar_type() != at::kLong ||
      file.flipped.scalar_type() != at::kByte)
    fail("tokens must be (M, N) int32, classes (M) int64, flipped (M) uint8");
  TokenFile checked = file;
  checked.tokens = file.tokens.cpu().contiguous();
  checked.classes = file.classes.cpu().contiguous();
  checked.flipped = file.flipped.cpu().contiguous();
  check_content(checked, fail);
  std::string names;
  try {
    names = nlohmann::json(file.class_names).dump();
  } catch (const nlohmann::json::exception&) {
    fail("a class name is not valid UTF-8");
  }
  std::vector<TensorBytes> tensors = {bytes_of("tokens", DType::kI32, checked.tokens),
                                      bytes_of("classes", DType::kI64, checked.classes),
                                      bytes_of("flipped", DType::kU8, checked.flipped)};
  const PackedTexts captions = pack(file.captions);
  if (!file.captions.empty()) {
    if (int64_t(file.captions.size()) != checked.tokens.size(0))
      fail(cat(file.captions.size(), " captions for ", checked.tokens.size(0), " images"));
    for (const std::string& caption : file.captions)
      if (!is_utf8(caption)) fail("a caption is not valid UTF-8");
    tensors.push_back({"captions",
                       DType::kU8,
                       {int64_t(captions.bytes.size())},
                       captions.bytes.data(),
                       captions.bytes.size()});
    tensors.push_back({"caption_ends",
                       DType::kI64,
                       {int64_t(captions.ends.size())},
                       captions.ends.data(),
                       captions.ends.size() * sizeof(int64_t)});
  }
  write_safetensors(path, std::move(tensors),
                    {{"format", kTokenFormat},
                     {"tokenizer_hash", file.tokenizer_hash},
                     {"grid", cat(file.grid_height, "x", file.grid_width)},
                     {"vocab", std::to_string(file.vocab)},
                     {"class_names", names},
                     {"dataset", file.dataset}});
}

bool is_token_file(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;
  try {
    return says_token_file(SafetensorsFile::open(path));
  } catch (const InputError&) {
    return false;
  }
}

SavedTokens read_saved_tokens(const fs::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  SavedTokens result;
  if (says_token_file(file)) {
    TokenFile tokens = parse(file);
    result = {tokens.tokens.to(at::kLong), tokens.classes,    tokens.vocab,
              tokens.grid_height,          tokens.grid_width, std::move(tokens.tokenizer_hash)};
    return result;
  }
  result.tokens = read_tensor(file, "tokens", DType::kI64, at::kLong, 2);
  result.classes = read_tensor(file, "classes", DType::kI64, at::kLong, 1);
  const auto fail = [&](const std::string& what) { throw InputError(cat(path.string(), ": ", what)); };
  if (result.classes.size(0) != result.tokens.size(0))
    fail(cat("\"classes\" has ", result.classes.size(0), " entries for ", result.tokens.size(0), " images"));
  check_range<int64_t>(result.tokens, "tokens", -1, fail);
  if (const auto hash = file.metadata().find("tokenizer_hash"); hash != file.metadata().end())
    result.tokenizer_hash = hash->second;
  return result;
}

}  // namespace adanat
