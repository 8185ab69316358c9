#include "core/data/token_header.h"

#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/base/error.h"
#include "core/base/text.h"

namespace adanat {
namespace {

std::optional<int64_t> to_int(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

bool says_token_file(const SafetensorsFile& file) {
  const auto found = file.metadata().find("format");
  return found != file.metadata().end() && found->second.starts_with("adanat-tokens-");
}

TokenHeader read_token_header(const SafetensorsFile& file) {
  const std::string where = file.path().string();
  const auto text = [&](const std::string& key) -> const std::string& {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end())
      throw InputError(cat(where, ": is no token file of this program: its metadata has no \"", key, "\""));
    return found->second;
  };
  if (text("format") != kTokenFormat)
    throw InputError(cat(where, ": has the format \"", printable(text("format")),
                         "\", but this program reads \"", kTokenFormat,
                         "\"; use a matching version of the program"));
  TokenHeader result;
  const std::string& grid = text("grid");
  const size_t cross = grid.find('x');
  const auto height = to_int(std::string_view(grid).substr(0, cross));
  const auto width =
      cross == std::string::npos ? std::nullopt : to_int(std::string_view(grid).substr(cross + 1));
  if (!height || !width)
    throw InputError(cat(where, ": metadata \"grid\" must read HEIGHTxWIDTH, not \"", printable(grid), "\""));
  const auto vocab = to_int(text("vocab"));
  if (!vocab)
    throw InputError(
        cat(where, ": metadata \"vocab\" must be a number, not \"", printable(text("vocab")), "\""));
  result.grid_height = *height;
  result.grid_width = *width;
  result.vocab = *vocab;
  result.tokenizer_hash = text("tokenizer_hash");
  result.dataset = text("dataset");
  // Parsed without exceptions and without recursion into anything but a flat list of texts.
  const auto names = nlohmann::json::parse(text("class_names"), nullptr, false);
  if (!names.is_array())
    throw InputError(cat(where, ": metadata \"class_names\" must be a JSON list of texts"));
  for (const auto& name : names) {
    if (!name.is_string())
      throw InputError(cat(where, ": metadata \"class_names\" must be a JSON list of texts"));
    result.class_names.push_back(name.get<std::string>());
  }
  return result;
}

}  // namespace adanat
