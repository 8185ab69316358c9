// What may stand in names, and how hostile ones are shown.
#pragma once
#include <string>
#include <string_view>

namespace adanat {

// Well-formed UTF-8 (Unicode 15, table 3-7): no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

// UTF-8 without control characters (C0, DEL, C1) and not empty: what a name may be that is stored, listed and
// typed again.
bool is_name(std::string_view text);

// For messages of one line: a line break becomes "\n" in two characters, every other control character and
// every byte that is no UTF-8 a "?".
std::string one_line(std::string_view text);

// The same of what a file calls its parts, cut after 200 bytes: however long a name is, the message stays
// short.
std::string printable(std::string_view text);

}  // namespace adanat
