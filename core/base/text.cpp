#include "core/base/text.h"

#include <cstddef>
#include <cstdint>

namespace adanat {
namespace {

// Bytes of the character that begins `text` (not empty), or 0 if it is not well-formed.
size_t character(std::string_view text, uint32_t& code) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t first = byte(0);
  const size_t size = first < 0x80         ? 1
                      : first >> 5 == 0x6  ? 2
                      : first >> 4 == 0xe  ? 3
                      : first >> 3 == 0x1e ? 4
                                           : 0;
  if (size == 0 || size > text.size()) return 0;
  code = size == 1 ? first : first & (0x7fu >> size);
  for (size_t i = 1; i < size; ++i) {
    if (byte(i) >> 6 != 2) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  return code < kSmallest[size] || code > 0x10ffff || surrogate ? 0 : size;
}

bool is_control(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0);
}

// Calls visit(bytes, code) for every character, and for every byte that is none with the code UINT32_MAX.
template <class Visit>
void for_each_character(std::string_view text, Visit visit) {
  while (!text.empty()) {
    uint32_t code = 0;
    const size_t size = character(text, code);
    visit(text.substr(0, size == 0 ? 1 : size), size == 0 ? UINT32_MAX : code);
    text.remove_prefix(size == 0 ? 1 : size);
  }
}

}  // namespace

bool is_utf8(std::string_view text) {
  bool good = true;
  for_each_character(text, [&](std::string_view, uint32_t code) { good = good && code != UINT32_MAX; });
  return good;
}

bool is_name(std::string_view text) {
  bool good = !text.empty();
  for_each_character(
      text, [&](std::string_view, uint32_t code) { good = good && code != UINT32_MAX && !is_control(code); });
  return good;
}

std::string one_line(std::string_view text) {
  std::string line;
  for_each_character(text, [&](std::string_view bytes, uint32_t code) {
    if (code == '\n')
      line += "\\n";
    else if (code == UINT32_MAX || is_control(code))
      line += '?';
    else
      line += bytes;
  });
  return line;
}

std::string printable(std::string_view text) {
  return one_line(text.substr(0, 200)) + (text.size() > 200 ? "..." : "");
}

}  // namespace adanat
