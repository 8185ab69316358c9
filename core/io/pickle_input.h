// The bytes of a pickle, from front to back (inside core/io only).
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace adanat {

class PickleInput {
 public:
  static constexpr size_t kMaxName = 256;

  // Both must outlive it.
  PickleInput(std::span<const std::byte> bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  const std::string& where() const { return where_; }
  size_t at() const { return at_; }
  size_t size() const { return bytes_.size(); }
  void step_back() { --at_; }

  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(
        cat(where_, ": the pickle is damaged or no data of tensors, near its byte ", at_, ": ", what));
  }

  std::span<const std::byte> take(uint64_t size) {
    if (size > bytes_.size() - at_) fail("it is cut short");
    const auto out = bytes_.subspan(at_, static_cast<size_t>(size));
    at_ += static_cast<size_t>(size);
    return out;
  }
  // Little-endian.
  template <class T>
  T number() {
    T value = 0;
    const auto bytes = take(sizeof(T));
    for (size_t i = sizeof(T); i > 0; --i)
      value = static_cast<T>(value << 8 | std::to_integer<T>(bytes[i - 1]));
    return value;
  }
  std::string_view text(uint64_t size) {
    const auto out = take(size);
    return {reinterpret_cast<const char*>(out.data()), out.size()};
  }
  std::string_view line() {
    const auto rest = bytes_.subspan(at_, std::min(bytes_.size() - at_, kMaxName));
    const auto end = std::find(rest.begin(), rest.end(), std::byte{'\n'});
    if (end == rest.end()) fail("a name without end");
    const std::string_view out = text(static_cast<uint64_t>(end - rest.begin()));
    ++at_;
    return out;
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace adanat
