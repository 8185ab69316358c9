// Small datasets on disk for tests.
#pragma once
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/io/image.h"
#include "io/bytes.h"
#include "io/tar_builder.h"

namespace adanat::testing {

// Without the fsync of our own writer: these tests make many files.
inline void put_file(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string png_bytes(int width, int height, uint8_t tint) {
  return encode_png(test_image(width, height, tint));
}

inline std::string big_endian(const std::vector<uint32_t>& values) {
  std::string out;
  for (const uint32_t value : values)
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
  return out;
}

// `count` images of size x size; image i is filled with i, its label is i mod 3.
inline std::string idx_images(uint32_t count, uint32_t size) {
  std::string out = big_endian({0x803, count, size, size});
  for (uint32_t i = 0; i < count; ++i) out.append(size_t{size} * size, static_cast<char>(i));
  return out;
}
inline std::string idx_labels(uint32_t count) {
  std::string out = big_endian({0x801, count});
  for (uint32_t i = 0; i < count; ++i) out += static_cast<char>(i % 3);
  return out;
}

// Records of label bytes and 3*32*32 values: red i, green i + 1, blue i + 2.
inline std::string cifar_records(const std::vector<std::string>& labels) {
  std::string out;
  for (size_t i = 0; i < labels.size(); ++i) {
    out += labels[i];
    for (size_t c = 0; c < 3; ++c) out.append(1024, static_cast<char>(i + c));
  }
  return out;
}

// `count` good images of 8 x 8 in two classes; image i differs from every other.
inline void put_tree(const std::filesystem::path& folder, int count) {
  for (int i = 0; i < count; ++i)
    put_file(folder / (i % 2 == 0 ? "even" : "odd") /
                 (std::string(i < 10 ? "0" : "") + std::to_string(i) + ".png"),
             png_bytes(8, 8, static_cast<uint8_t>(i * 5)));
}

}  // namespace adanat::testing
