#include "core/io/npy.h"

#include "fuzz/fuzz.h"

// The first byte chooses: an archive, or one array alone.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  constexpr uint64_t kLimit = 1 << 22;   // deflate makes much out of little, within what the caller allows
  constexpr size_t kMost = 24 * kLimit;  // and eight times that as float64
  const adanat::fuzz::MemoryFile bytes(data + 1, size - 1);
  if (data[0] & 1)
    return adanat::fuzz::run_within(kMost, [&] { adanat::read_npy(bytes.path(), kLimit).as_float64(); });
  return adanat::fuzz::run_within(kMost, [&] {
    const adanat::NpzFile file(bytes.path());
    for (const auto& name : file.names()) {
      adanat::fuzz::run([&] { file.array(name, kLimit).as_float64(); });
      adanat::fuzz::run([&] {
        auto stream = file.stream(name);
        std::vector<std::byte> row;
        if (stream.row_bytes() > kLimit) return;
        row.resize(static_cast<size_t>(stream.row_bytes()));
        for (int64_t i = 0; i < stream.rows() && i < 100; ++i) stream.read(row.data(), 1);
      });
    }
  });
}
