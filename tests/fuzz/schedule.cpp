#include "core/sampling/schedule_table.h"

#include "fuzz/fuzz.h"

// read_schedule_file without its file.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return adanat::fuzz::run_within(adanat::fuzz::memory_for(size), [&] {
    const std::string text(reinterpret_cast<const char*>(data), size);
    adanat::config_from_json<adanat::ScheduleTable>(adanat::parse_json(text, "fuzz"), "fuzz").validate();
  });
}
