// Texts from files that go into messages.
#pragma once
#include <string>
#include <string_view>

namespace adanat {

// The text with control characters (line ends, escape sequences) turned into '?', cut after 200 bytes: a
// message stays one line, whatever a file calls its parts.
inline std::string printable(std::string_view text) {
  std::string out(text.substr(0, 200));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = '?';
  if (text.size() > 200) out += "...";
  return out;
}

}  // namespace adanat
