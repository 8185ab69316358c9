#include "core/nn/tensor_file.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>

#include "core/base/error.h"
#include "core/io/zip.h"
#include "support/support.h"

namespace adanat {
namespace {

using testing::TempDir;

std::filesystem::path checkpoint(const std::string& name) {
  return testing::golden_dir() / "checkpoints" / name;
}

TEST(TensorFileTest, BothPyTorchContainersGiveTheSame) {
  const TensorMap zip = read_tensors(checkpoint("mixed_zip.pth")),
                  legacy = read_tensors(checkpoint("mixed_legacy.pth"));
  ASSERT_EQ(zip.size(), legacy.size());
  for (const auto& [name, tensor] : zip) {
    ASSERT_TRUE(legacy.contains(name)) << name;
    EXPECT_EQ(tensor.scalar_type(), legacy.at(name).scalar_type()) << name;
    EXPECT_TRUE(tensor.is_contiguous()) << name;
    if (name == "special") continue;  // holds NaN
    EXPECT_TRUE(tensor.equal(legacy.at(name))) << name;
  }
  EXPECT_TRUE(zip.at("transposed_view").equal(zip.at("base").t()));
  EXPECT_EQ(zip.at("bf16").scalar_type(), at::kBFloat16);
  EXPECT_EQ(zip.at("scalar_i64").dim(), 0);
}

TEST(TensorFileTest, StateDictIsUnwrapped) {
  const TensorMap wrapped = read_tensors(checkpoint("wrapped_state_dict.pth"));
  const TensorMap plain = read_tensors(checkpoint("small_zip.pth"));
  ASSERT_EQ(wrapped.size(), plain.size());
  for (const auto& [name, tensor] : plain) EXPECT_TRUE(wrapped.at(name).equal(tensor)) << name;
}

TEST(TensorFileTest, ContentDecidesNotTheName) {
  const TempDir dir;
  std::filesystem::copy_file(checkpoint("small_legacy.pth"), dir / "a.safetensors");
  EXPECT_EQ(read_tensors(dir / "a.safetensors").size(), 4u);
  write_tensors(dir / "b.pth", {{"x", at::tensor({1.5f})}}, {{"key", "value"}});
  Metadata metadata;
  EXPECT_EQ(read_tensors(dir / "b.pth", &metadata).at("x").item<float>(), 1.5f);
  EXPECT_EQ(metadata.at("key"), "value");
  read_tensors(dir / "a.safetensors", &metadata);
  EXPECT_TRUE(metadata.empty());
}

TEST(TensorFileTest, TensorsLiveLongerThanTheirFile) {
  const TempDir dir;
  std::filesystem::copy_file(checkpoint("deflated_zip.pth"), dir / "a.pth");
  const TensorMap tensors = read_tensors(dir / "a.pth");
  std::filesystem::remove(dir / "a.pth");
  for (const auto& [name, tensor] : read_tensors(checkpoint("small_zip.pth")))
    EXPECT_TRUE(tensors.at(name).equal(tensor)) << name;
}

TEST(TensorFileTest, ExpandedTensorsAreBounded) {
  // float32 of shape (2^20, 2^20), strides 0, over one storage of one element.
  const TempDir dir;
  const std::string size("J\x00\x00\x10\x00", 5);
  const std::string pickle = std::string(
                                 "\x80\x02"
                                 "ctorch._utils\n_rebuild_tensor_v2\n((") +
                             "\x8c\x07storage" + "ctorch\nFloatStorage\n" +
                             "\x8c\x01"
                             "0" +
                             "\x8c\x03"
                             "cpu" +
                             "K\x01tQ" + std::string("K\0", 2) + size + size + "\x86" +
                             std::string("K\0K\0\x86", 5) + "\x89}tR.";
  const float one = 1;
  ZipWriter writer(dir / "a.pth");
  const std::span<const std::byte> content[] = {std::as_bytes(std::span(pickle))};
  const std::span<const std::byte> storage[] = {std::as_bytes(std::span(&one, 1))};
  writer.add("a/data.pkl", content, false);
  writer.add("a/data/0", storage, false);
  writer.commit();
  EXPECT_THROW(read_tensors(dir / "a.pth"), InputError);
}

TEST(TensorFileTest, HostileFilesAreRefused) {
  for (const char* name :
       {"hostile_zip.pth", "hostile_legacy.pth", "hostile_eval.pth", "bitflip_zip_data.pth"})
    EXPECT_THROW(read_tensors(checkpoint(name)), InputError) << name;
}

}  // namespace
}  // namespace adanat
