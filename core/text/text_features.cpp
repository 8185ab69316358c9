#include "core/text/text_features.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/interrupt.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/io/atomic_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFormat = "adanat-text-1";
constexpr int64_t kBatch = 32;

// Header of a safetensors file whose tensors stand in the given order: what write_safetensors cannot make
// without all of the bytes.
std::string header_of(const std::vector<TensorEntry>& tensors, const nlohmann::ordered_json& metadata) {
  nlohmann::ordered_json j;
  j["__metadata__"] = metadata;
  for (const TensorEntry& tensor : tensors)
    j[tensor.name] = {{"dtype", name_of(tensor.dtype)},
                      {"shape", tensor.shape},
                      {"data_offsets", {tensor.begin, tensor.end}}};
  std::string text = j.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string out;
  for (int shift = 0; shift < 64; shift += 8) out.push_back(char(uint64_t(text.size()) >> shift & 0xFF));
  return out + text;
}

}  // namespace

void TextFeatures::write(const fs::path& path, const ClipTextEncoder& encoder, const std::string& hash,
                         const std::vector<std::string>& texts) {
  std::vector<std::string> distinct = texts;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  if (distinct.empty() || !distinct[0].empty()) distinct.insert(distinct.begin(), "");
  const ClipTextConfig& c = encoder.config();
  const auto count = int64_t(distinct.size());
  const int64_t row = c.positions * c.width + c.projected;
  std::string bytes;
  std::vector<int64_t> ends;
  for (const std::string& text : distinct) {
    bytes += text;
    ends.push_back(int64_t(bytes.size()));
  }
  const uint64_t ends_size = ends.size() * sizeof(int64_t),
                 features_end = ends_size + uint64_t(count * row) * 2;
  note(cat(path.string(), ": encoding ", count, " texts, ", features_end >> 20, " MiB"));
  AtomicFile file(path);
  file.write(
      header_of({{"text_ends", DType::kI64, {count}, 0, ends_size},
                 {"features", DType::kF16, {count, row}, ends_size, features_end},
                 {"texts", DType::kU8, {int64_t(bytes.size())}, features_end, features_end + bytes.size()}},
                {{"format", kFormat},
                 {"encoder", hash},
                 {"tokens", std::to_string(c.positions)},
                 {"width", std::to_string(c.width)},
                 {"pooled", std::to_string(c.projected)}}));
  file.write(ends.data(), ends_size);
  Progress progress("encode texts", count, "texts");
  int64_t cut = 0;
  for (int64_t begin = 0; begin < count; begin += kBatch) {
    check_interrupt();
    const int64_t size = std::min(kBatch, count - begin);
    const ClipTextOutput made =
        encoder.encode({distinct.begin() + begin, distinct.begin() + begin + size}, kBatch, &cut);
    const at::Tensor rows =
        at::cat({made.states.reshape({size, -1}), made.pooled}, 1).to(at::kHalf).cpu().contiguous();
    if (!at::isfinite(rows).all().item<bool>())
      throw RunError(cat(path.string(), ": a state of the text encoder is beyond what 16 bits hold"));
    file.write(rows.const_data_ptr(), rows.nbytes());
    progress.update(begin + size);
  }
  file.write(bytes);
  file.commit();
  if (cut > 0)
    warning(cat(path.string(), ": ", cut, " of ", count, " texts are over ", c.positions,
                " tokens long, the rest of them was cut off"));
}

TextFeatures TextFeatures::open(const fs::path& path) {
  TextFeatures out(SafetensorsFile::open(path));
  const SafetensorsFile& file = out.file_;
  const auto fail = [&](const std::string& what) { throw InputError(cat(path.string(), ": ", what)); };
  const auto text = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end())
      fail(cat("is no file of encoded texts: its metadata has no \"", key, "\""));
    return found->second;
  };
  if (text("format") != kFormat)
    fail(cat("has the format \"", printable(text("format")), "\", this program reads \"", kFormat, "\""));
  out.encoder_ = text("encoder");
  const auto number = [&](const char* key, int64_t& value) {
    const std::string digits = text(key);
    const auto [last, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (code != std::errc() || last != digits.data() + digits.size() || value < 1 || value > (1 << 20))
      fail(cat("metadata \"", key, "\" must be 1..1048576, not \"", printable(digits), "\""));
  };
  number("tokens", out.tokens_), number("width", out.width_), number("pooled", out.pooled_);
  const auto tensor = [&](const char* name, DType dtype, size_t dims) -> const TensorEntry& {
    const TensorEntry& entry = file.at(name);
    if (entry.dtype != dtype || entry.shape.size() != dims)
      fail(cat("\"", name, "\" must be ", name_of(dtype), " of ", dims,
               dims == 1 ? " dimension" : " dimensions"));
    return entry;
  };
  out.features_ = read_tensor(file, tensor("features", DType::kF16, 2));
  const at::Tensor ends = read_tensor(file, tensor("text_ends", DType::kI64, 1));
  const TensorEntry& bytes = tensor("texts", DType::kU8, 1);
  const int64_t count = ends.size(0), row = out.tokens_ * out.width_ + out.pooled_;
  if (out.features_.size(0) != count || out.features_.size(1) != row || count < 1)
    fail(cat("\"features\" has shape ", out.features_.sizes(), ", must be [", count, ", ", row, "] for its ",
             count, " texts"));
  const std::string_view all(reinterpret_cast<const char*>(file.data(bytes)),
                             size_t(bytes.end - bytes.begin));
  out.ends_.assign(ends.const_data_ptr<int64_t>(), ends.const_data_ptr<int64_t>() + count);
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t end = out.ends_[size_t(i)];
    if (end < begin || end > int64_t(all.size()) || (i == 0 && end != 0))
      fail(cat("\"text_ends\" holds ", end, " at position ", i, ", outside [", begin, ", ", all.size(), "]"));
    if (!out.rows_.emplace(all.substr(size_t(begin), size_t(end - begin)), i).second)
      fail(cat("text ", i, " stands there twice"));
    begin = end;
  }
  if (begin != int64_t(all.size())) fail("\"texts\" goes on behind the last text");
  return out;
}

at::Tensor TextFeatures::rows_of(const std::vector<std::string>& texts) const {
  at::Tensor rows = at::empty({int64_t(texts.size())}, at::kLong);
  auto* row = rows.mutable_data_ptr<int64_t>();
  for (const std::string& text : texts) {
    const auto found = rows_.find(text);
    if (found == rows_.end())
      throw InputError(cat(file_.path().string(), ": does not hold the caption \"", printable(text),
                           "\"; remove the file, and it is made again"));
    *row++ = found->second;
  }
  return rows;
}

at::Tensor TextFeatures::states(const at::Tensor& rows) const {
  return features_.narrow(1, 0, tokens_ * width_).index_select(0, rows).view({-1, tokens_, width_});
}

at::Tensor TextFeatures::pooled(const at::Tensor& rows) const {
  return features_.narrow(1, tokens_ * width_, pooled_).index_select(0, rows);
}

}  // namespace adanat
