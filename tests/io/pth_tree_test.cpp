// What a pickle's objects are called, and how much of them is kept.
#include <cmath>

#include "io/pickle_fixture.h"

namespace adanat {
namespace {

std::vector<std::string> names(const PthFile& file) {
  std::vector<std::string> out;
  for (const PthTensor& tensor : file.tensors()) out.push_back(tensor.name);
  return out;
}

std::vector<std::string> scalar_names(const PthFile& file) {
  std::vector<std::string> out;
  for (const auto& [name, value] : file.scalars()) out.push_back(name);
  return out;
}

class PthTreeTest : public PickleTest {
 protected:
  static std::string weight() { return tensor("FloatStorage", 6, 0, "K\x06\x85", "K\x01\x85"); }
  // An object of a class that is not known, whose state is `state`.
  static std::string object(const std::string& state) {
    return global("my", "Model") + ")\x81" + state + "b";
  }
};

TEST_F(PthTreeTest, PathsThatReadAlikeAreToldApart) {
  const std::string inner = "}" + text("b") + weight() + "s";
  const PthFile file = open("}(" + text("a.b") + weight() + text("a") + inner + text("a.b") + weight() +
                            number(0) + "K\x07" + text("0") + "K\x08u");
  EXPECT_EQ(names(file), (std::vector<std::string>{"a.b", "a.b#2", "a.b#3"}));
  EXPECT_NE(file.find("a.b#2"), nullptr);
  EXPECT_EQ(file.scalars().at("0").integer, 7);
  EXPECT_EQ(file.scalars().at("0#2").integer, 8);
}

// torch.save(model): the class is unknown, its tensors are there all the same.
TEST_F(PthTreeTest, UnknownObjectsShowWhatTheyWereMadeFrom) {
  const std::string layer = object("}" + text("_parameters") + "}" + text("weight") + weight() + "ss");
  const PthFile model =
      open(object("}(" + text("_modules") + "}" + text("0") + layer + "s" + text("training") + "\x88u"),
           UnknownNames::kList);
  EXPECT_EQ(names(model), std::vector<std::string>{"_modules.0._parameters.weight"});
  EXPECT_EQ(model.scalars().at("training").integer, 1);
  EXPECT_EQ(model.refused(), std::vector<std::string>{"my.Model"});
  // Two objects of one class are two.
  const std::string stored = global("my", "Model") + "q\x01";
  const PthFile two =
      open("](" + stored + ")\x81}" + text("x") + weight() + "sbh\x01)\x81}" + text("y") + weight() + "sbe",
           UnknownNames::kList);
  EXPECT_EQ(names(two), (std::vector<std::string>{"0.x", "1.y"}));
  // Made by a call: its arguments.
  const PthFile called = open(global("my", "rebuild") + weight() + "K\x03\x86R", UnknownNames::kList);
  EXPECT_EQ(names(called), std::vector<std::string>{"0"});
  EXPECT_EQ(called.scalars().at("1").integer, 3);
}

// class AttributeDict(dict), class Layers(list): what is put into them comes before their state.
TEST_F(PthTreeTest, UnknownContainersShowTheirItems) {
  const std::string made = global("my", "Dict") + ")\x81";
  const PthFile dict = open(made + "(" + text("a") + weight() + text("n") + "K\x02u}" + text("k") + "K\x03sb",
                            UnknownNames::kList);
  EXPECT_EQ(names(dict), std::vector<std::string>{"0.a"});
  EXPECT_EQ(dict.scalars().at("0.n").integer, 2);
  EXPECT_EQ(dict.scalars().at("1.k").integer, 3);
  const PthFile list = open(made + weight() + "a(" + weight() + "K\x05" + "e", UnknownNames::kList);
  EXPECT_EQ(names(list), (std::vector<std::string>{"0", "1"}));
  EXPECT_EQ(list.scalars().at("2").integer, 5);
}

TEST_F(PthTreeTest, LongListsAreOneValue) {
  std::string list = "](";
  for (int i = 0; i < 1000; ++i) list += "K\x05";
  const PthFile file = open("}(" + text("long") + list + "e" + text("short") +
                            "](K\x01K\x02"
                            "e" +
                            text("mixed") + list + weight() + "eu");
  const PthScalar& value = file.scalars().at("long");
  EXPECT_EQ(value.kind, PthScalar::Kind::kList);
  EXPECT_EQ(value.integer, 1000);
  ASSERT_EQ(value.first.size(), 8u);
  EXPECT_EQ(value.first[7].integer, 5);
  EXPECT_EQ(file.scalars().at("short.1").integer, 2);
  EXPECT_EQ(names(file), std::vector<std::string>{"mixed.1000"});
  EXPECT_EQ(file.scalars().size(), 1u + 2 + 1000);
  // Under many keys it costs what it shows.
  std::string shared = "}(" + text("first") + list + "eq\x01";
  for (int i = 0; i < 200; ++i) shared += number(i) + "h\x01";
  EXPECT_EQ(open(shared + "u").scalars().size(), 201u);
}

TEST_F(PthTreeTest, ValuesOfOtherKinds) {
  const PthFile file =
      open("}(" + text("bytes") + "C\x03" + "abc" + text("dtype") + global("torch", "float32") + text("nan") +
           std::string("G\x7f\xf8\0\0\0\0\0\0", 9) + text("device") + global("torch", "device") +
           text("cuda") + "K\x01\x86Ru");
  EXPECT_EQ(file.scalars().at("bytes").text, "3 bytes");
  EXPECT_EQ(file.scalars().at("dtype").text, "torch.float32");
  EXPECT_TRUE(std::isnan(file.scalars().at("nan").real));
  EXPECT_EQ(file.scalars().at("device").text, "cuda:1");
}

TEST_F(PthTreeTest, TypesThatNothingIsComputedWith) {
  const PthFile file = open(tensor("ComplexFloatStorage", 3, 0, "K\x03\x85", "K\x01\x85"));
  EXPECT_EQ(file.tensors().at(0).dtype, DType::kC64);
  EXPECT_EQ(file.storage(file.tensors()[0]).size(), 24u);
  const std::string small = global("torch._utils", "_rebuild_tensor_v3") + "((" + text("storage") +
                            global("torch.storage", "UntypedStorage") + text("0") + text("cpu") + number(24) +
                            "tQ" + number(0) + "K\x18\x85K\x01\x85\x89}" + global("torch", "float8_e4m3fn") +
                            "tR";
  EXPECT_EQ(open(small).tensors().at(0).dtype, DType::kF8E4M3);
}

// {"neg": True}: the numbers in the file have the other sign.
TEST_F(PthTreeTest, NegationThatWasPutOffIsNotOverlooked) {
  std::string negated = weight(), plain = weight();
  negated.replace(negated.rfind("}tR"), 3, "}}" + text("neg") + "\x88stR");
  plain.replace(plain.rfind("}tR"), 3, "}}" + text("neg") + "\x89stR");
  EXPECT_EQ(open(plain).tensors().size(), 1u);
  refused(negated, {"a.pth", "resolve_neg()"});
  const PthFile listed = open(negated, UnknownNames::kList);
  EXPECT_TRUE(listed.tensors().empty());
  EXPECT_EQ(listed.refused().size(), 1u);
}

TEST_F(PthTreeTest, DeepAndCyclicObjects) {
  EXPECT_EQ(scalar_names(open(std::string(101, ']') + "N" + std::string(101, 'a'))).at(0).size(), 201u);
  refused(std::string(600, ']') + std::string(599, 'a'), {"nested deeper"});
  // A list in itself: what else is in it is there once.
  EXPECT_EQ(scalar_names(open("]q\x01(h\x01K\x05"
                              "e")),
            std::vector<std::string>{"1"});
}

TEST_F(PthTreeTest, SharedObjectsAreBounded) {
  // Each list holds the one before twice: 2^40 paths through 200 bytes.
  std::string bomb = std::string("]q\0", 3);
  for (char i = 1; i <= 40; ++i) bomb += std::string("](h") + char(i - 1) + "h" + char(i - 1) + "eq" + i;
  refused("](" + bomb + "e", {"again and again"});
  // One settings object whose state is set again and again.
  std::string repeat = global("argparse", "Namespace") + ")\x81q\x01}(";
  for (int i = 0; i < 100; ++i) repeat += number(i) + "N";
  repeat +=
      "uq\x02"
      "b";
  for (int i = 0; i < 400; ++i)
    repeat +=
        "h\x02"
        "b";
  refused(repeat, {"again and again"});
  // One tensor in thousands of places: more than the memory for them.
  std::string tensors = "](" + weight() + "q\x01";
  for (int i = 0; i < 8000; ++i) tensors += "h\x01";
  refused(tensors + "e", {"the same tensors", "again and again"});
  // Unknown objects whose states are such objects, named again and again: the way through all is counted.
  const std::string fresh = "h\x01)\x81";
  std::string chain = fresh;
  for (int i = 0; i < 400; ++i) chain = fresh + chain + "b";
  chain = global("my", "Object") + "q\x01" + "0](" + chain + std::string(60000, '2') + "e";
  testing::expect_input_error([&] { open(chain, UnknownNames::kList); },
                              {"a.pth: the same objects are in it"});
  // Of plain values as many are kept as there is memory for.
  std::string values = "}(" + text(std::string(200, 'x')) + "q\x01N";
  for (int i = 0; i < 20000; ++i) values += "h\x01N";
  const PthFile file = open(values + "u");
  EXPECT_GT(file.left_out(), 15000u);
  EXPECT_EQ(file.left_out() + file.scalars().size(), 20001u);
}

TEST_F(PthTreeTest, DeflatedPicklesAreBounded) {
  // As many values as may be in a file, but deflated to a thousandth.
  const std::string values = "](" + std::string(2 << 20, 'N') + "e";
  testing::expect_input_error([&] { open(values); }, {"a.pth", "data.pkl", "are more than the"});
}

}  // namespace
}  // namespace adanat
