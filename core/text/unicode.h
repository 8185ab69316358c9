// What CLIP's tokenizer asks of Unicode: composed characters, small letters, and what counts as a letter, a
// number or a space. Free of torch; the character data is utf8proc's (Unicode 15).
#pragma once
#include <string>
#include <string_view>

namespace adanat {

// Normalization form C of well-formed UTF-8. RunError where it is none (check is_utf8 first).
std::string compose(std::string_view utf8);

// The code points of well-formed UTF-8.
std::u32string to_code_points(std::string_view utf8);
void append_utf8(char32_t c, std::string& out);

// Small letters, character by character and without regard to the neighbours: a final capital sigma becomes
// the same small sigma as any other. One character, but for U+0130 (I with a dot), which becomes two.
std::u32string to_lower(std::u32string_view text);

bool is_letter(char32_t c);  // categories L*
bool is_number(char32_t c);  // categories N*
bool is_space(char32_t c);   // property White_Space: not the controls U+001C..U+001F, not U+200B

}  // namespace adanat
