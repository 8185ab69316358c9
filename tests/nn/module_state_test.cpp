#include "core/nn/module_state.h"

#include <ATen/ATen.h>
#include <torch/nn/modules/linear.h>

#include "core/base/error.h"
#include "core/nn/device.h"
#include "support/support.h"

namespace adanat {
namespace {

TEST(TensorFile, RoundTripsEveryType) {
  const testing::TempDir dir;
  TensorMap in;
  for (const auto type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16,
                          at::kFloat, at::kDouble})
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
    try {
      load_module_state(*layer, tensors, "f");
    } catch (const InputError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message({{"weight", at::zeros({2, 3})}}), "f: lacks the tensors bias");
  EXPECT_EQ(message({{"weight", at::zeros({2, 3})}, {"bias", at::zeros({2})}, {"x", at::zeros({1})}}),
            "f: holds tensors that the model does not have: x");
  EXPECT_EQ(message({{"weight", at::zeros({3, 2})}, {"bias", at::zeros({2})}}),
            "f: weight has shape [3, 2], the model's config wants [2, 3]");
  EXPECT_TRUE(at::equal(layer->weight, at::ones({2, 3})));  // nothing was copied by the failed loads
  EXPECT_EQ(parameter_count(*layer), 8);
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
