#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <initializer_list>
#include <span>
#include <string>

#include "core/io/pth.h"
#include "core/io/zip.h"
#include "io/bytes.h"
#include "support/support.h"

namespace adanat {

// A zip checkpoint around a pickle that is written by hand.
class PickleTest : public ::testing::Test {
 protected:
  PthFile open(const std::string& pickle, UnknownNames unknown = UnknownNames::kRefuse,
               const std::string& storage = std::string(24, '\1'), const std::string& byteorder = "little") {
    ZipWriter writer(dir_ / "a.pth");
    const auto add = [&](const std::string& name, const std::string& content, bool deflate) {
      const std::span<const std::byte> pieces[] = {testing::as_bytes(content)};
      writer.add(name, pieces, deflate);
    };
    add("a/data.pkl", "\x80\x02" + pickle + ".", true);
    add("a/byteorder", byteorder, false);
    add("a/data/0", storage, deflate_);
    writer.commit();
    return PthFile::open(dir_ / "a.pth", unknown);
  }
  void refused(const std::string& pickle, std::initializer_list<const char*> parts) {
    testing::expect_input_error([&] { open(pickle); }, parts, pickle);
  }
  static std::string global(const std::string& module, const std::string& name) {
    return "c" + module + "\n" + name + "\n";
  }
  static std::string text(const std::string& text) {
    return std::string("\x8c") + static_cast<char>(text.size()) + text;
  }
  static std::string number(int32_t value) {
    return "J" + std::string(reinterpret_cast<const char*>(&value), 4);
  }
  // A tensor over storage 0 of `count` elements of a type, or over a view of it.
  static std::string tensor(const std::string& type, int count, int offset, const std::string& shape,
                            const std::string& strides, const std::string& view = "") {
    return global("torch._utils", "_rebuild_tensor_v2") + "((" + text("storage") + global("torch", type) +
           text("0") + text("cpu") + number(count) + view + "tQ" + number(offset) + shape + strides +
           "\x89}tR";
  }
  static std::string view(int begin, int count) { return text("v") + number(begin) + number(count) + "\x87"; }
  // The container before the zip archive: pickles in a row, then storage 0 of `count` elements.
  PthFile legacy(const std::string& pickle, const std::string& storage, uint64_t count, bool little = true) {
    const auto whole = [](const std::string& body) { return "\x80\x02" + body + "."; };
    std::ofstream(dir_ / "a.pth", std::ios::binary)
        << whole("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") << whole(number(1001))
        << whole("}(" + text("little_endian") + (little ? "\x88" : "\x89") + "u") << whole(pickle)
        << whole("](" + text("0") + "e") << std::string(reinterpret_cast<const char*>(&count), 8) << storage;
    return PthFile::open(dir_ / "a.pth");
  }
  testing::TempDir dir_;
  bool deflate_ = false;
};

}  // namespace adanat
