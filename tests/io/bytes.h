// Small tools for tests that make and break files.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/io/image.h"

namespace adanat::testing {

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

inline std::string from_hex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return out;
}

// A 64-bit generator for corruption tests (splitmix64): the same damage on every machine.
class Damage {
 public:
  explicit Damage(uint64_t seed) : state_(seed) {}
  uint64_t next(uint64_t limit) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return (z ^ z >> 31) % limit;
  }
  // Flips one random bit of 1 to 4 random bytes.
  std::string apply(std::string bytes) {
    for (uint64_t n = 1 + next(4); n > 0; --n) bytes[next(bytes.size())] ^= static_cast<char>(1 << next(8));
    return bytes;
  }

 private:
  uint64_t state_;
};

// A picture with edges and gradients.
inline Image test_image(int width, int height, uint8_t tint = 0) {
  Image image;
  image.width = width;
  image.height = height;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (const int v : {x * 7 + tint, y * 11, (x * y) ^ (x < y ? 255 : 0)})
        image.rgb.push_back(static_cast<uint8_t>(v));
  return image;
}

// Runs `call`, which must throw an InputError whose one-line message holds every given part.
template <class Call>
void expect_input_error(Call call, std::initializer_list<const char*> parts,
                        const std::string& context = "") {
  try {
    call();
    ADD_FAILURE() << context << ": no error";
  } catch (const InputError& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos)
          << context << ": \"" << part << "\" is not in: " << message;
  }
}

}  // namespace adanat::testing
