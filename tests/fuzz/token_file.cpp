#include "core/data/token_header.h"
#include "fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const adanat::fuzz::MemoryFile bytes(data, size);
  return adanat::fuzz::run_within(adanat::fuzz::memory_for(size), [&] {
    adanat::read_token_header(adanat::SafetensorsFile::open(bytes.path()));
  });
}
