#include "apps/adanat/cli.h"

#include "core/base/log.h"
#include "core/nn/device.h"

namespace adanat {

void ComputeOptions::add_to(CLI::App& command, bool with_dtype) {
  command.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  if (with_dtype) {
    command.add_option("--dtype", dtype, "auto (float32 on CPUs without AMX), float32 or bfloat16")
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
