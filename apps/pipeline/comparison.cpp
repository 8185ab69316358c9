#include "apps/pipeline/comparison.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "core/io/atomic_file.h"

namespace adanat {
namespace {

std::string text_of(const Json& j, const char* key) {
  if (!j.contains(key) || j.at(key).is_null()) return "-";
  return j.at(key).is_string() ? j.at(key).get<std::string>() : j.at(key).dump();
}

// The protocol's settings without its labels: these matter where images were generated, and then the result
// says which were used.
Json settings_of(const Json& result) {
  Json out = result.contains("protocol_settings") ? result.at("protocol_settings") : Json();
  if (out.is_object()) out.erase("labels");
  return out;
}

std::string number(double value) {
  char out[32];
  std::snprintf(out, sizeof out, "%.6g", value);
  return out;
}

}  // namespace

EvalResult read_eval_result(const std::string& file) {
  EvalResult out{file, parse_json(read_file(file, 64u << 20), file)};
  const Json& j = out.json;
  const bool whole = j.is_object() && j.contains("protocol") && j.contains("count") &&
                     j.contains("metrics") && j.at("metrics").is_object() && j.at("protocol").is_string();
  if (!whole)
    throw InputError(cat(file, ": is no result of `adanat eval`: it lacks protocol, count or metrics"));
  for (const auto& [name, metric] : j.at("metrics").items())
    if (!metric.is_object() || !metric.contains("value") || !metric.at("value").is_number())
      throw InputError(cat(file, ": metrics.", name, " has no value"));
  return out;
}

std::vector<std::string> differences(const Json& first, const Json& other) {
  std::vector<std::string> out;
  const auto check = [&](const char* key, const char* what) {
    if (text_of(first, key) != text_of(other, key)) out.emplace_back(what);
  };
  check("protocol", "other protocol");
  if (out.empty() && settings_of(first) != settings_of(other)) out.emplace_back("other settings");
  check("count", "other count");
  // A statistics file is known by its hash, wherever it lies; images by what was read.
  const bool hashed = first.contains("reference_sha256") && other.contains("reference_sha256");
  const char* identity = hashed ? "reference_sha256" : "reference";
  if (text_of(first, identity) != text_of(other, identity) ||
      text_of(first, "reference_count") != text_of(other, "reference_count"))
    out.emplace_back("other reference");
  check("weights_sha256", "other weights");
  check("tokenizer", "reconstructions against others");
  if (first.contains("crop") && other.contains("crop")) check("crop", "other crop");
  if (text_of(first, "labels") != text_of(other, "labels") && first.contains("labels") &&
      other.contains("labels"))
    out.emplace_back("other labels");
  return out;
}

std::string comparison_table(const std::vector<EvalResult>& results) {
  std::vector<std::string> metrics;
  for (const EvalResult& r : results)
    for (const auto& [name, value] : r.json.at("metrics").items())
      if (std::find(metrics.begin(), metrics.end(), name) == metrics.end()) metrics.push_back(name);
  std::vector<std::vector<std::string>> rows{
      {"result", "protocol", "count", "reference", "weights", "schedule", "steps"}};
  for (const std::string& name : metrics) rows[0].push_back(name);
  rows[0].push_back("comparable");
  for (const EvalResult& r : results) {
    const Json& j = r.json;
    std::vector<std::string> row{r.file,
                                 text_of(j, "protocol"),
                                 text_of(j, "count"),
                                 text_of(j, "reference_count"),
                                 text_of(j, "weights_sha256").substr(0, 8),
                                 text_of(j, "schedule"),
                                 text_of(j, "steps")};
    for (const std::string& name : metrics) {
      if (!j.at("metrics").contains(name)) {
        row.emplace_back("-");
        continue;
      }
      const Json& metric = j.at("metrics").at(name);
      const bool spread = metric.contains("std") && metric.at("std").is_number();
      row.push_back(number(metric.at("value").get<double>()) +
                    (spread ? " +- " + number(metric.at("std").get<double>()) : ""));
    }
    std::string why;
    for (const std::string& d : differences(results[0].json, j)) why += (why.empty() ? "NO: " : ", ") + d;
    row.push_back(&r == &results[0] ? "(first)" : why.empty() ? "yes" : why);
    rows.push_back(std::move(row));
  }
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) line += row[c] + std::string(widths[c] - row[c].size() + 2, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

StepCurves step_curves(const std::vector<EvalResult>& results, const std::string& metric) {
  StepCurves out;
  out.metric = metric;
  if (metric.empty() && !results[0].json.at("metrics").empty())
    out.metric = results[0].json.at("metrics").begin().key();
  struct Point {
    double value, deviation;
  };
  std::vector<std::string> names;  // in the order of the files
  std::map<std::string, std::map<double, Point>> curves;
  for (const EvalResult& r : results) {
    const Json& j = r.json;
    const auto differ = differences(results[0].json, j);
    std::string why = differ.empty() ? "" : differ[0];
    if (why.empty() && !(j.contains("steps") && j.at("steps").is_number())) why = "no steps";
    if (why.empty() && !j.at("metrics").contains(out.metric)) why = "no " + out.metric;
    if (why.empty() && !(can_be_plotted(j.at("steps").get<double>()) &&
                         can_be_plotted(j.at("metrics").at(out.metric).at("value").get<double>())))
      why = "a value too large to draw";
    const std::string name = text_of(j, "model") == "-" ? text_of(j, "schedule")
                                                        : text_of(j, "model") + " " + text_of(j, "schedule");
    if (why.empty() && curves[name].contains(j.at("steps").get<double>()))
      why = "the same steps as another file of its curve";
    if (!why.empty()) {
      out.left_out.push_back(r.file + ": " + why);
      continue;
    }
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    const Json& m = j.at("metrics").at(out.metric);
    const bool repeats = m.contains("values") && m.contains("std") && m.at("std").is_number();
    curves[name][j.at("steps").get<double>()] = {m.at("value").get<double>(),
                                                 repeats ? m.at("std").get<double>() : 0};
  }
  for (const std::string& name : names) {
    PlotSeries series;
    series.name = name;
    bool band = false;
    for (const auto& [steps, point] : curves[name]) {
      series.x.push_back(steps), series.y.push_back(point.value);
      series.low.push_back(point.value - point.deviation),
          series.high.push_back(point.value + point.deviation);
      band = band || point.deviation > 0;
    }
    if (!band) series.low.clear(), series.high.clear();
    out.series.push_back(std::move(series));
  }
  if (out.series.empty())
    throw InputError(cat("--plot: none of the results has steps and a value that can be drawn of the metric ",
                         out.metric.empty() ? "asked for" : out.metric));
  return out;
}

}  // namespace adanat
