#include "core/io/image.h"

#include "fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  adanat::fuzz::run([&] {
    const auto image = adanat::decode_image(bytes, "fuzz");
    if (image.rgb.size() != static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3)
      std::abort();
  });
  return adanat::fuzz::run([&] { adanat::decode_png_text(bytes, "fuzz"); });
}
