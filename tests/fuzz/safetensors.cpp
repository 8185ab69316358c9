#include "core/io/safetensors.h"

#include "fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const adanat::fuzz::MemoryFile bytes(data, size);
  return adanat::fuzz::run_within(adanat::fuzz::memory_for(size), [&] {
    const auto file = adanat::SafetensorsFile::open(bytes.path());
    uint64_t sum = 0;
    for (const auto& entry : file.entries())
      for (uint64_t i = entry.begin; i < entry.end; ++i)
        sum += std::to_integer<uint64_t>(file.data(entry)[i - entry.begin]);
    if (sum > UINT64_MAX / 2) std::abort();  // keeps the reads
  });
}
