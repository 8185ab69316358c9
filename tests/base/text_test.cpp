#include "core/base/text.h"

#include <gtest/gtest.h>

namespace adanat {
namespace {

TEST(Text, Utf8) {
  for (const char* good :
       {"", "abc", "caf\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"})
    EXPECT_TRUE(is_utf8(good)) << good;
  for (const char* bad : {"\xff", "a\x80", "\xc3", "\xc3(", "\xe2\x82", "\xc0\xaf", "\xe0\x80\xaf",
                          "\xf0\x80\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80"})
    EXPECT_FALSE(is_utf8(bad)) << bad;
}

TEST(Text, Names) {
  EXPECT_TRUE(is_name("stop sign"));
  EXPECT_TRUE(is_name("\xc2\xa0"));  // the first character after the C1 controls
  for (const std::string& bad : {std::string(), std::string("a\0b", 3), std::string("a\n"),
                                 std::string("\x7f"), std::string("\xc2\x9b"), std::string("\xff")})
    EXPECT_FALSE(is_name(bad)) << bad;
}

TEST(Text, OneLine) {
  EXPECT_EQ(one_line("a\nb\tc\x1b[0m"), "a\\nb?c?[0m");
  EXPECT_EQ(one_line("caf\xc3\xa9 \xff\xc2\x9b"), "caf\xc3\xa9 ??");
}

TEST(Text, PrintableNamesAreShortAndOneLine) {
  EXPECT_EQ(printable("a\nb\x1b[2J"), "a\\nb?[2J");
  EXPECT_EQ(printable(std::string(200, 'x')), std::string(200, 'x'));
  EXPECT_EQ(printable(std::string(201, 'x')), std::string(200, 'x') + "...");
}

}  // namespace
}  // namespace adanat
