#include "core/base/list_names.h"

#include <algorithm>
#include <unordered_map>

#include "core/base/error.h"

namespace adanat {
namespace {

constexpr size_t kListed = 100;
constexpr size_t kFolded = 6;  // numbers of a name; more are in hostile files only
constexpr size_t kRanges = 64;
constexpr size_t kDigits = 18;  // more are no index, and would not fit

// One name, or several that are equal but for their numbers.
struct Pattern {
  std::vector<std::string> texts;             // in front of each number and behind the last
  std::vector<std::vector<int64_t>> numbers;  // what stands there, rising; one fewer than texts
  size_t names = 1;
};

// "0,2-4": at most `most` of them, then "...".
std::string ranges(const std::vector<int64_t>& numbers, size_t most) {
  std::string out;
  for (size_t i = 0, shown = 0; i < numbers.size(); ++shown) {
    if (shown == most) return out + ",...";
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (last < i + 2) last = i;  // two are no range
    out += cat(i == 0 ? "" : ",", numbers[i], last == i ? "" : cat("-", numbers[last]));
    i = last + 1;
  }
  return out;
}

// Only as a number is written: "00" stays a text.
bool is_number(const std::string& text) {
  return !text.empty() && text.size() <= kDigits && (text == "0" || text[0] != '0') &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

Pattern pattern_of(const std::string& name) {
  Pattern out{{""}, {}};
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (begin > 0) out.texts.back() += '.';
    if (is_number(part) && out.numbers.size() < kFolded)
      out.numbers.push_back({std::stoll(part)}), out.texts.emplace_back();
    else
      out.texts.back() += part;
    begin = end + 1;
  }
  return out;
}

std::string text_of(const Pattern& pattern) {
  std::string out = pattern.texts[0];
  for (size_t i = 0; i < pattern.numbers.size(); ++i) {
    const std::string numbers = list_numbers(pattern.numbers[i]);
    out += (pattern.numbers[i].size() > 1 ? "{" + numbers + "}" : numbers) + pattern.texts[i + 1];
  }
  return out;
}

// All but the numbers at `place`, apart from what a name may hold.
std::string all_but(const Pattern& pattern, size_t place) {
  std::string out;
  for (size_t i = 0; i < pattern.numbers.size(); ++i) {
    out += pattern.texts[i] + '\0';
    out += (i == place ? "" : ranges(pattern.numbers[i], SIZE_MAX)) + '\0';
  }
  return out + pattern.texts.back();
}

// Those with a number at `place` and all else equal, as one.
std::vector<Pattern> fold(std::vector<Pattern> patterns, size_t place) {
  std::vector<Pattern> out;
  std::unordered_map<std::string, size_t> known;  // what is equal -> where it stands in `out`
  for (Pattern& pattern : patterns) {
    size_t at = out.size();
    if (place < pattern.numbers.size()) at = known.emplace(all_but(pattern, place), at).first->second;
    if (at == out.size()) {
      out.push_back(std::move(pattern));
      continue;
    }
    const std::vector<int64_t>& more = pattern.numbers[place];
    out[at].numbers[place].insert(out[at].numbers[place].end(), more.begin(), more.end());
    out[at].names += pattern.names;
  }
  for (const auto& [others, at] : known) {
    std::vector<int64_t>& numbers = out[at].numbers[place];
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  }
  return out;
}

}  // namespace

std::string list_numbers(const std::vector<int64_t>& numbers) {
  return ranges(numbers, kRanges);
}

std::string list_names(const std::vector<std::string>& names) {
  std::vector<Pattern> patterns;
  for (const std::string& name : names) patterns.push_back(pattern_of(name));
  for (size_t place = 0; place < kFolded; ++place) patterns = fold(std::move(patterns), place);
  std::string out;
  size_t listed = 0;
  for (size_t i = 0; i < patterns.size() && i < kListed; ++i) {
    out += (i == 0 ? "" : ", ") + text_of(patterns[i]);
    listed += patterns[i].names;
  }
  if (listed < names.size()) out += cat(" and ", names.size() - listed, " more");
  return out;
}

}  // namespace adanat
