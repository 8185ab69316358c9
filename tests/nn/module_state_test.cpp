#include "core/nn/module_state.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/linear.h>

#include <cmath>

#include "core/base/error.h"
#include "core/nn/device.h"
#include "support/message_of.h"
#include "support/support.h"

namespace adanat {
namespace {
using testing::message_of;

const std::string kHint = std::string(kWhyMissing) + " `adanat info` lists what is in the file";

TEST(TensorFile, RoundTripsEveryType) {
  const testing::TempDir dir;
  TensorMap in;
  for (const auto type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf,
                          at::kBFloat16, at::kFloat, at::kDouble})
    in[c10::toString(type)] = at::arange(7).to(type);
  in["scalar"] = at::scalar_tensor(3.5);
  in["empty"] = at::zeros({0, 4});
  in["strided"] = at::arange(12).view({3, 4}).t();
  write_tensors(dir / "x.safetensors", in, {{"key", "value"}});
  Metadata metadata;
  const TensorMap out = read_tensors(dir / "x.safetensors", &metadata);
  ASSERT_EQ(out.size(), in.size());
  for (const auto& [name, tensor] : in) {
    EXPECT_EQ(out.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(out.at(name), tensor)) << name;
  }
  EXPECT_EQ(metadata.at("key"), "value");
}

TEST(ModuleState, LoadsStrictly) {
  const at::NoGradGuard no_grad;
  torch::nn::Linear layer(3, 2);
  const TensorMap good = {{"weight", at::ones({2, 3}, at::kHalf)}, {"bias", at::ones({2})}};
  load_module_state(*layer, good, "f");
  EXPECT_TRUE(at::equal(layer->weight, at::ones({2, 3})));
  const auto message = [&](const TensorMap& tensors) -> std::string {
    return message_of([&] { load_module_state(*layer, tensors, "f"); });
  };
  EXPECT_EQ(message({{"weight", at::zeros({2, 3})}}), "f: lacks bias" + kHint);
  EXPECT_EQ(message({{"weight", at::zeros({2, 3})}, {"bias", at::zeros({2})}, {"x", at::zeros({1})}}),
            "f: holds x, which the model does not have; `adanat info` lists what is in the file");
  EXPECT_EQ(message({{"weight", at::zeros({3, 2})}, {"bias", at::zeros({2})}}),
            "f: weight has shape [3, 2], the model's config wants [2, 3]");
  EXPECT_TRUE(at::equal(layer->weight, at::ones({2, 3})));  // nothing was copied by the failed loads
  EXPECT_EQ(parameter_count(*layer), 8);
}

TEST(ModuleState, RefusesIntegersForFractions) {
  torch::nn::Linear layer(3, 2);
  EXPECT_EQ(
      message_of([&] {
        load_module_state(*layer, {{"weight", at::ones({2, 3}, at::kInt)}, {"bias", at::ones({2})}}, "f");
      }),
      "f: weight holds I32, the model wants F32");
}

TEST(ModuleState, ChecksAHeaderWithoutTheModule) {
  const testing::TempDir dir;
  write_tensors(dir / "x.safetensors", {{"a", at::zeros({2, 3})}, {"b", at::zeros({4})}});
  const SafetensorsFile file = SafetensorsFile::open(dir / "x.safetensors");
  const std::string where = file.path().string();
  check_shapes(file, {{"a", {2, 3}}, {"b", {4}}});
  const int64_t huge = int64_t(1) << 40;
  EXPECT_EQ(message_of([&] {
              check_shapes(file, {{"a", {huge, huge}}, {"b", {4}}});
            }),
            where + ": a has shape [2, 3], the model's config wants [1099511627776, 1099511627776]");
  EXPECT_EQ(message_of([&] {
              check_shapes(file, {{"a", {2, 3}}});
            }),
            where + ": holds b, which the model does not have; `adanat info` lists what is in the file");
  EXPECT_EQ(message_of([&] {
              check_shapes(file, {{"a", {2, 3}}, {"b", {4}}, {"c", {1}}});
            }),
            where + ": lacks c" + kHint);
}

TEST(ModuleState, FindsWhatIsNotFinite) {
  const auto with = [](double value, at::ScalarType type) {
    at::Tensor x = at::full({5, 7}, 3.0, type);
    x[4][6] = value;
    return message_of([&] {
      check_finite({{"fine", at::ones({2}, type)}, {"x", x}, {"ids", at::ones({2}, at::kLong)}}, "f");
    });
  };
  for (const auto type : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
    EXPECT_EQ(with(1, type), "no error") << type;
    for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)})
      EXPECT_NE(with(bad, type).find("f: x holds NaN or infinity"), std::string::npos) << type << " " << bad;
  }
  EXPECT_NE(with(1e300, at::kDouble), "no error");     // no float32 holds it
  check_finite({{"x", at::full({1000}, 3e38)}}, "f");  // only the sum overflows
  check_finite({{"x", at::full({4000}, 60000, at::kHalf)}}, "f");
}

TEST(Device, ParsesOrExplains) {
  EXPECT_EQ(parse_device("cpu"), at::Device(at::kCPU));
  EXPECT_THROW(parse_device("gpu"), InputError);
  EXPECT_THROW(parse_device("cuda:"), InputError);
  EXPECT_THROW(parse_dtype("float64", at::kCPU), InputError);
  EXPECT_EQ(parse_dtype("bfloat16", at::kCPU), at::kBFloat16);
  EXPECT_THROW(set_threads(-1), InputError);
  EXPECT_EQ(set_threads(1), 1);
}

}  // namespace
}  // namespace adanat
