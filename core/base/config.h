// One definition of each config: a plain struct whose fields() lists member, key and help once. From that
// list come reading and writing JSON, --set key.path=value, the help page and the echo of what a run used.
//
//   struct LossConfig {
//     double gain = 1;
//     static constexpr auto fields() { return std::tuple{field("gain", &LossConfig::gain, "> 0")}; }
//     void validate() const;  // throws InputError naming key, bound and value
//   };
//
// Members: bool, int64_t, double, std::string, vectors of the last three, or another such struct.
// Unknown keys and values of the wrong type are errors; missing keys take the member's default.
#pragma once
#include <algorithm>
#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/error.h"

namespace adanat {

using Json = nlohmann::ordered_json;

template <class C, class T>
struct Field {
  const char* name;
  T C::*member;
  const char* help;
};

template <class C, class T>
constexpr Field<C, T> field(const char* name, T C::*member, const char* help) {
  return {name, member, help};
}

template <class C>
concept Config = requires(const C& c) {
  C::fields();
  c.validate();
};

namespace config_detail {

[[noreturn]] void throw_type(const std::string& where, const std::string& path, const char* wanted,
                             const Json& got);
[[noreturn]] void throw_unknown(const std::string& where, const std::string& path,
                                const std::vector<std::string>& known);

void read_value(const Json& j, bool& out, const std::string& where, const std::string& path);
void read_value(const Json& j, int64_t& out, const std::string& where, const std::string& path);
void read_value(const Json& j, double& out, const std::string& where, const std::string& path);
void read_value(const Json& j, std::string& out, const std::string& where, const std::string& path);

template <class T>
void read_value(const Json& j, std::vector<T>& out, const std::string& where, const std::string& path) {
  if (!j.is_array()) throw_type(where, path, "a list", j);
  out.clear();
  for (size_t i = 0; i < j.size(); ++i) {
    T value{};
    read_value(j[i], value, where, path + "[" + std::to_string(i) + "]");
    out.push_back(std::move(value));
  }
}

template <Config C>
void read_value(const Json& j, C& out, const std::string& where, const std::string& path) {
  if (!j.is_object()) throw_type(where, path.empty() ? "the top level" : path, "an object", j);
  const std::string prefix = path.empty() ? "" : path + ".";
  std::vector<std::string> known;
  std::apply(
      [&](auto... f) {
        ((known.emplace_back(f.name),
          j.contains(f.name) ? read_value(j.at(f.name), out.*(f.member), where, prefix + f.name) : void()),
         ...);
      },
      C::fields());
  for (const auto& item : j.items()) {
    if (std::find(known.begin(), known.end(), item.key()) == known.end())
      throw_unknown(where, prefix + item.key(), known);
  }
}

template <class T>
Json to_value(const T& value) {
  return Json(value);
}

template <Config C>
Json to_value(const C& config) {
  Json out = Json::object();
  std::apply([&](auto... f) { ((out[f.name] = to_value(config.*(f.member))), ...); }, C::fields());
  return out;
}

template <class T>
void help_lines(const T& value, const std::string& path, const char* help, std::string& out) {
  out += "  " + path + " = " + to_value(value).dump() + "  " + help + "\n";
}

template <Config C>
void help_lines(const C& config, const std::string& path, const char*, std::string& out) {
  const std::string prefix = path.empty() ? "" : path + ".";
  std::apply([&](auto... f) { (help_lines(config.*(f.member), prefix + f.name, f.help, out), ...); },
             C::fields());
}

}  // namespace config_detail

namespace config_detail {

// "loop." where it is the member `loop` that refuses its values with `message`, "" where it is none.
template <class T>
std::string path_of_refusal(const T&, const std::string&) {
  return "";
}
template <Config C>
std::string path_of_refusal(const C& config, const std::string& message) {
  std::string path;
  const auto look = [&]<class T>(const char* name, const T& member) {
    if constexpr (Config<T>) {
      if (!path.empty()) return;
      const std::string own = std::string(name) + ".";
      if (const std::string below = path_of_refusal(member, message); !below.empty()) {
        path = own + below;
        return;
      }
      try {
        member.validate();
      } catch (const InputError& e) {
        if (e.what() == message && !message.starts_with(own)) path = own;
      }
    }
  };
  std::apply([&](auto... f) { (look(f.name, config.*(f.member)), ...); }, C::fields());
  return path;
}

}  // namespace config_detail

// Reads and validates. `where` names the source in errors (a path, "--set", ...).
template <Config C>
C config_from_json(const Json& j, const std::string& where) {
  C config;
  config_detail::read_value(j, config, where, "");
  try {
    config.validate();
  } catch (const InputError& e) {
    throw InputError(where + ": " + config_detail::path_of_refusal(config, e.what()) + e.what());
  }
  return config;
}

// Every member, also the defaulted ones, in the order of fields().
template <Config C>
Json config_to_json(const C& config) {
  return config_detail::to_value(config);
}

// One line per key: dotted path, default, help.
template <Config C>
std::string config_help() {
  std::string out;
  config_detail::help_lines(C{}, "", "", out);
  return out;
}

// Parses a JSON text with duplicate keys refused; errors name `where` with line and column.
Json parse_json(const std::string& text, const std::string& where);

// Reads a JSON file of at most 64 MiB.
Json read_json_file(const std::string& path);

// Applies "key.path=value" to a JSON object. The value is read as JSON where it parses as such, else as a
// string.
void apply_override(Json& j, const std::string& assignment);

// Throws InputError "key must be ..., got value" unless ok.
template <class T>
void require(bool ok, const char* key, const char* bound, const T& value) {
  if (!ok) throw InputError(cat(key, " must be ", bound, ", got ", value));
}

}  // namespace adanat
