#include "core/io/pth.h"

#include <vector>

#include "fuzz/fuzz.h"

// The first byte chooses between the two ways to treat unknown names, so that both are explored.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const adanat::fuzz::MemoryFile bytes(data + 1, size - 1);
  const auto unknown = data[0] & 1 ? adanat::UnknownNames::kList : adanat::UnknownNames::kRefuse;
  // A pickle may be deflated to a thirtieth.
  adanat::fuzz::run_within(adanat::fuzz::memory_for(33 * size + (1 << 16)),
                           [&] { adanat::PthFile::open(bytes.path(), unknown); });
  return adanat::fuzz::run([&] {
    const auto file = adanat::PthFile::open(bytes.path(), unknown);
    for (const auto& tensor : file.tensors()) {
      if (file.find(tensor.name) == nullptr) std::abort();
      const auto storage = file.storage(tensor);
      // Expanded tensors may be larger than anything: those who copy look first, and so does this.
      if (tensor.count() > 16 * storage.size() + 64) continue;
      std::vector<std::byte> out(static_cast<size_t>(tensor.count()) * size_of(tensor.dtype));
      file.copy(tensor, out.data());
    }
  });
}
