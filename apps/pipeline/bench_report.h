// Reports of `adanat bench` (run_bench in apps/pipeline/bench.h says what they hold): read, shown, compared.
#pragma once
#include <string>

#include "core/base/config.h"

namespace adanat {

// A table for people. Ends with a newline.
std::string bench_table(const Json& report);

// A report read from `file`; InputError: no JSON, or no report of this kind.
Json read_bench_report(const std::string& file);

// One line per stage, dtype and batch that both reports hold: "speedup" = old median / new median, "low" and
// "high" what the quartiles allow, "verdict": faster or slower where 1 lies outside them, else same. What
// else differs (machine, model, threads, steps) is listed under "differs".
Json compare_bench(const Json& old_report, const Json& new_report);
std::string comparison_text(const Json& comparison);

}  // namespace adanat
