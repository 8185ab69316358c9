#include "apps/pipeline/bench_report.h"

#include <cstdio>

namespace adanat {
namespace {

std::string text(const char* format, auto... values) {
  char line[256];
  std::snprintf(line, sizeof line, format, values...);
  return line;
}

// "1.23 s", "4.56 ms", "7.8 us" in eleven columns.
std::string duration(double seconds) {
  if (seconds >= 1) return text("%8.3f s ", seconds);
  if (seconds >= 1e-3) return text("%8.3f ms", seconds * 1e3);
  return text("%8.2f us", seconds * 1e6);
}

std::string key_of(const Json& result) {
  return cat(result.at("stage").get<std::string>(), " ", result.at("dtype").get<std::string>(), " ",
             result.at("batch").get<int64_t>());
}

}  // namespace

std::string bench_table(const Json& report) {
  std::string out = text("%-12s %-9s %5s  %-11s %-11s %-23s %10s %12s %6s\n", "stage", "dtype", "batch",
                         "median", "processor", "quartiles", "images/s", "tokens/s", "gemm");
  for (const Json& r : report.at("results")) {
    const Json& s = r.at("seconds");
    out += text("%-12s %-9s %5lld  %s %s %s..%s", r.at("stage").get<std::string>().c_str(),
                r.at("dtype").get<std::string>().c_str(), (long long)r.at("batch").get<int64_t>(),
                duration(s.at("median")).c_str(), duration(r.at("processor_seconds")).c_str(),
                duration(s.at("low")).c_str(), duration(s.at("high")).c_str());
    out += r.contains("images_per_second") ? text(" %10.1f", r["images_per_second"].get<double>())
                                           : text(" %10s", "");
    out += r.contains("tokens_per_second") ? text(" %12.0f", r["tokens_per_second"].get<double>())
                                           : text(" %12s", "");
    out += r.contains("gemm_share") ? text(" %5.0f%%\n", 100 * r["gemm_share"].get<double>()) : "\n";
  }
  for (const Json& m : report.at("memory"))
    out += text("peak memory, %s, batch %lld: %.0f MiB\n", m.at("dtype").get<std::string>().c_str(),
                (long long)m.at("batch").get<int64_t>(), m.at("peak_mib").get<double>());
  for (const Json& g : report.at("gemm"))
    out += text("largest matrix product, %s: %.1f GFLOP/s\n", g.at("dtype").get<std::string>().c_str(),
                g.at("flops_per_second").get<double>() * 1e-9);
  return out;
}

Json read_bench_report(const std::string& file) {
  const Json j = read_json_file(file);
  const auto fail = [&](const std::string& what) {
    return InputError(cat(file, ": is no report of adanat bench (", what, ")"));
  };
  if (!j.is_object() || !j.contains("results") || !j["results"].is_array()) throw fail("no \"results\"");
  for (size_t i = 0; i < j["results"].size(); ++i) {
    const Json& r = j["results"][i];
    const auto lacks = [&](const char* key, bool good) {
      if (!good) throw fail(cat("results[", i, "].", key));
    };
    lacks("stage", r.is_object() && r.contains("stage") && r["stage"].is_string());
    lacks("dtype", r.contains("dtype") && r["dtype"].is_string());
    lacks("batch", r.contains("batch") && r["batch"].is_number_integer());
    lacks("seconds", r.contains("seconds") && r["seconds"].is_object());
    for (const char* key : {"median", "low", "high"})
      lacks("seconds", r["seconds"].contains(key) && r["seconds"][key].is_number() &&
                           r["seconds"][key].get<double>() > 0);
  }
  return j;
}

Json compare_bench(const Json& old_report, const Json& new_report) {
  Json out;
  out["differs"] = Json::array();
  for (const char* key : {"program", "platform", "device", "threads", "schedule", "steps", "model"})
    if (old_report.value(key, Json()) != new_report.value(key, Json())) out["differs"].push_back(key);
  out["lines"] = Json::array();
  for (const Json& now : new_report.at("results")) {
    for (const Json& before : old_report.at("results")) {
      if (key_of(now) != key_of(before)) continue;
      const Json &a = before.at("seconds"), &b = now.at("seconds");
      const double low = a.at("low").get<double>() / b.at("high").get<double>();
      const double high = a.at("high").get<double>() / b.at("low").get<double>();
      out["lines"].push_back({{"stage", now["stage"]},
                              {"dtype", now["dtype"]},
                              {"batch", now["batch"]},
                              {"old_seconds", a["median"]},
                              {"new_seconds", b["median"]},
                              {"speedup", a.at("median").get<double>() / b.at("median").get<double>()},
                              {"low", low},
                              {"high", high},
                              {"verdict", low > 1    ? "faster"
                                          : high < 1 ? "slower"
                                                     : "same"}});
      break;
    }
  }
  return out;
}

std::string comparison_text(const Json& comparison) {
  std::string out;
  if (!comparison.at("differs").empty()) {
    out += "not the same in both:";
    for (const Json& key : comparison["differs"]) out += " " + key.get<std::string>();
    out += "\n";
  }
  out += text("%-12s %-9s %5s  %-11s %-11s %8s  %-14s\n", "stage", "dtype", "batch", "old", "new", "speedup",
              "range");
  for (const Json& l : comparison.at("lines"))
    out += text("%-12s %-9s %5lld  %s %s %7.2fx  %.2f..%.2f  %s\n", l.at("stage").get<std::string>().c_str(),
                l.at("dtype").get<std::string>().c_str(), (long long)l.at("batch").get<int64_t>(),
                duration(l.at("old_seconds")).c_str(), duration(l.at("new_seconds")).c_str(),
                l.at("speedup").get<double>(), l.at("low").get<double>(), l.at("high").get<double>(),
                l.at("verdict").get<std::string>().c_str());
  return out;
}

}  // namespace adanat
