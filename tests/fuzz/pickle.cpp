#include "core/io/pickle.h"

#include "fuzz/fuzz.h"

// The interpreter alone, without a container whose checksums turn most inputs away.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto unknown = data[0] & 1 ? adanat::UnknownNames::kList : adanat::UnknownNames::kRefuse;
  return adanat::fuzz::run_within(adanat::fuzz::memory_for(size), [&] {
    const auto pickle =
        adanat::Pickle::parse({reinterpret_cast<const std::byte*>(data) + 1, size - 1}, "fuzz", unknown);
    if (pickle.size() > size - 1) std::abort();
    pickle.find(pickle.root(), "key");
  });
}
