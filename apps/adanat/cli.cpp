#include "apps/adanat/cli.h"

#include <charconv>

#include "core/base/log.h"
#include "core/nn/device.h"

namespace adanat {
namespace {

// The same number without what the parser would take for octal.
std::string decimal(const std::string& text) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const bool plus = text.size() > 1 && text[0] == '+' && text[1] != '-';
  const auto [last, code] = std::from_chars(text.data() + (plus ? 1 : 0), end, value);
  if (code == std::errc::result_out_of_range) throw CLI::ValidationError(text + " does not fit 64 bits");
  if (code != std::errc() || last != end) throw CLI::ValidationError("\"" + text + "\" is not an integer");
  return std::to_string(value);
}

}  // namespace

void check_values(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_items_expected_max() == 0) continue;  // a flag
    if (option->get_type_name().starts_with("INT")) {
      option->transform([](const std::string& text) { return decimal(text); });
    } else if (!option->check_lname("held-out")) {  // there, empty means none
      option->check([](const std::string& text) { return text.empty() ? "must not be empty" : ""; });
    }
  }
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) check_values(*command);
}

void ComputeOptions::add_to(CLI::App& command, bool with_dtype) {
  command.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  if (with_dtype) {
    command
        .add_option("--dtype", dtype, "auto (float32 on CPUs without AMX), float32, bfloat16 or int8 (CPU)")
        ->capture_default_str();
  }
  command.add_option("-t,--threads", threads, "CPU threads; 0 = all cores")->capture_default_str();
  command.add_flag("--quiet", quiet, "no progress and no notes on stderr");
}

at::Device ComputeOptions::apply() const {
  set_quiet(quiet);
  set_threads(threads);
  return parse_device(device);
}

}  // namespace adanat
