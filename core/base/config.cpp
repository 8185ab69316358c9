#include "core/base/config.h"

#include <cmath>
#include <fstream>
#include <set>

#include "core/base/text.h"

namespace adanat {
namespace config_detail {

void throw_type(const std::string& where, const std::string& path, const char* wanted, const Json& got) {
  std::string text = got.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  throw InputError(cat(where, ": ", printable(path), " must be ", wanted, ", got ", text));
}

void throw_unknown(const std::string& where, const std::string& path, const std::vector<std::string>& known) {
  std::string list;
  for (const auto& k : known) list += (list.empty() ? "" : ", ") + k;
  throw InputError(cat(where, ": unknown key \"", printable(path), "\"; known here: ", list));
}

void read_value(const Json& j, bool& out, const std::string& where, const std::string& path) {
  if (!j.is_boolean()) throw_type(where, path, "true or false", j);
  out = j.get<bool>();
}

void read_value(const Json& j, int64_t& out, const std::string& where, const std::string& path) {
  if (j.is_number_unsigned() && j.get<uint64_t>() > uint64_t(INT64_MAX))
    throw_type(where, path, "a 64-bit integer", j);
  if (!j.is_number_integer()) throw_type(where, path, "an integer", j);
  out = j.get<int64_t>();
}

void read_value(const Json& j, double& out, const std::string& where, const std::string& path) {
  if (!j.is_number()) throw_type(where, path, "a number", j);
  out = j.get<double>();
  if (!std::isfinite(out)) throw_type(where, path, "a finite number", j);
}

void read_value(const Json& j, std::string& out, const std::string& where, const std::string& path) {
  if (!j.is_string()) throw_type(where, path, "a string", j);
  out = j.get<std::string>();
}

}  // namespace config_detail

Json parse_json(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> open_objects;
  std::string duplicate;
  const auto watch_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > 200) throw InputError(cat(where, ": nested deeper than 200 levels"));
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key && !open_objects.back().insert(parsed.get<std::string>()).second)
      duplicate = parsed.get<std::string>();
    return true;
  };
  try {
    Json j = Json::parse(text, watch_keys);
    if (!duplicate.empty())
      throw InputError(cat(where, ": key \"", printable(duplicate), "\" stands twice in one object"));
    return j;
  } catch (const Json::parse_error& e) {
    std::string what = e.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const size_t start = what.find("at line");
    throw InputError(cat(where, ": not valid JSON ", start == std::string::npos ? what : what.substr(start)));
  } catch (const Json::out_of_range&) {
    throw InputError(cat(where, ": holds a number that no double can hold"));
  }
}

Json read_json_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw InputError(cat(path, ": cannot be read (no such file, or no permission)"));
  constexpr size_t kLimit = size_t(64) << 20, kBlock = size_t(64) << 10;
  std::string text;
  // As much memory as the file takes, not as much as it may take; a pipe has no size to ask for.
  while (in && text.size() <= kLimit) {
    const size_t had = text.size();
    text.resize(had + kBlock);
    in.read(text.data() + had, kBlock);
    text.resize(had + size_t(in.gcount()));
  }
  if (in.bad()) throw InputError(cat(path, ": cannot be read"));
  if (text.size() > kLimit) throw InputError(cat(path, ": larger than 64 MiB, which no config is"));
  return parse_json(text, path);
}

void apply_override(Json& j, const std::string& assignment) {
  const size_t eq = assignment.find('=');
  if (eq == std::string::npos || eq == 0)
    throw InputError(cat("--set ", assignment, ": must look like key.path=value"));
  const std::string path = assignment.substr(0, eq), text = assignment.substr(eq + 1);
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) value = text;
  Json* node = &j;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t dot = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, dot - begin);
    if (key.empty()) throw InputError(cat("--set ", assignment, ": empty key in the path"));
    if (!node->is_object() && !node->is_null())
      throw InputError(cat("--set ", assignment, ": ", path.substr(0, begin), " is not an object"));
    node = &(*node)[key];
    begin = dot + 1;
  }
  *node = std::move(value);
}

}  // namespace adanat
