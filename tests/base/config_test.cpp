#include "core/base/config.h"

#include <gtest/gtest.h>

#include "support/message_of.h"

namespace adanat {
namespace {
using testing::message_of;

struct Inner {
  double ratio = 0.5;
  std::vector<int64_t> sizes = {1, 2};
  static constexpr auto fields() {
    return std::tuple{field("ratio", &Inner::ratio, "0..1"), field("sizes", &Inner::sizes, "some sizes")};
  }
  void validate() const { require(ratio >= 0 && ratio <= 1, "ratio", "in [0, 1]", ratio); }
  bool operator==(const Inner&) const = default;
};

struct Outer {
  int64_t steps = 8;
  std::string name = "x";
  bool on = false;
  Inner inner;
  static constexpr auto fields() {
    return std::tuple{field("steps", &Outer::steps, ">= 1"), field("name", &Outer::name, "any"),
                      field("on", &Outer::on, "switch"), field("inner", &Outer::inner, "more")};
  }
  void validate() const {
    require(steps >= 1, "steps", ">= 1", steps);
    inner.validate();
  }
  bool operator==(const Outer&) const = default;
};

std::string error_of(const std::string& text) {
  return message_of([&] { config_from_json<Outer>(parse_json(text, "f.json"), "f.json"); });
}

TEST(Config, RoundTripsAndTakesDefaults) {
  Outer c{.steps = 3, .name = "y", .on = true, .inner = {.ratio = 0.25, .sizes = {4}}};
  EXPECT_EQ(config_from_json<Outer>(config_to_json(c), "x"), c);
  EXPECT_EQ(config_from_json<Outer>(Json::object(), "x"), Outer{});
  EXPECT_EQ(config_from_json<Outer>(parse_json(R"({"inner":{"ratio":1}})", "x"), "x").inner.ratio, 1);
}

TEST(Config, ErrorsNameFileKeyAndValue) {
  EXPECT_EQ(error_of(R"({"stepz":1})"), "f.json: unknown key \"stepz\"; known here: steps, name, on, inner");
  EXPECT_NE(error_of(R"({"inner":{"x":1}})").find("unknown key \"inner.x\""), std::string::npos);
  // A message is one line, whatever a file calls its keys.
  EXPECT_EQ(error_of(R"({"step\nz":1})"),
            "f.json: unknown key \"step\\nz\"; known here: steps, name, on, inner");
  EXPECT_EQ(error_of(R"({"a\nb":1,"a\nb":2})"), "f.json: key \"a\\nb\" stands twice in one object");
  EXPECT_EQ(error_of(R"({"steps":8.7})"), "f.json: steps must be an integer, got 8.7");
  EXPECT_EQ(error_of(R"({"steps":"8"})"), "f.json: steps must be an integer, got \"8\"");
  EXPECT_EQ(error_of(R"({"steps":18446744073709551615})"),
            "f.json: steps must be a 64-bit integer, got 18446744073709551615");
  EXPECT_EQ(error_of(R"({"on":1})"), "f.json: on must be true or false, got 1");
  EXPECT_EQ(error_of(R"({"inner":3})"), "f.json: inner must be an object, got 3");
  EXPECT_EQ(error_of(R"({"inner":{"sizes":[1,"a"]}})"),
            "f.json: inner.sizes[1] must be an integer, got \"a\"");
  EXPECT_EQ(error_of(R"({"steps":0})"), "f.json: steps must be >= 1, got 0");
  EXPECT_EQ(error_of(R"({"inner":{"ratio":2}})"), "f.json: inner.ratio must be in [0, 1], got 2");
  EXPECT_EQ(error_of(R"({"steps":1,"steps":2})"), "f.json: key \"steps\" stands twice in one object");
  EXPECT_NE(error_of(R"({"steps":)").find("f.json: not valid JSON at line 1"), std::string::npos);
  EXPECT_NE(error_of(std::string(100'000, '[')), "no error");
}

TEST(Config, Overrides) {
  Json j = Json::object();
  apply_override(j, "inner.ratio=0.75");
  apply_override(j, "name=a=b");
  apply_override(j, "inner.sizes=[7,8]");
  apply_override(j, "on=true");
  const Outer c = config_from_json<Outer>(j, "--set");
  EXPECT_EQ(c.inner.ratio, 0.75);
  EXPECT_EQ(c.name, "a=b");
  EXPECT_EQ(c.inner.sizes, (std::vector<int64_t>{7, 8}));
  EXPECT_TRUE(c.on);
  for (const char* bad : {"", "x", "=1", "a..b=1", "name.x=1"})
    EXPECT_THROW(apply_override(j, bad), InputError) << bad;
}

TEST(Config, HelpNamesEveryKey) {
  const std::string help = config_help<Outer>();
  for (const char* key :
       {"steps = 8", "name = \"x\"", "on = false", "inner.ratio = 0.5", "inner.sizes = [1,2]"})
    EXPECT_NE(help.find(key), std::string::npos) << key;
}

}  // namespace
}  // namespace adanat
