// What the tests of convert() share: a small generator, tokenizer and policy on disk, and what is looked at.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>

#include "apps/pipeline/convert_parts.h"
#include "apps/pipeline/pipeline.h"
#include "core/base/list_names.h"
#include "core/nn/module_state.h"
#include "support/checkpoints.h"

namespace adanat::testing {

inline GeneratorConfig small_generator(const std::string& condition = "class") {
  GeneratorConfig config = uvit_class_config();
  config.width = 12, config.heads = 3, config.condition = condition;
  config.text_width = 20;
  return config;
}

// Hidden 8, channels 4, mlp 10, on the 4x4 grid of the small generator.
inline ShapeMap small_actor() {
  return published_actor_shapes(12, 8, 4, 10, 16);
}

// Tensors of these shapes, each a view of one and the same number: what torch makes of expand().
inline void write_hollow(const std::filesystem::path& file, const ShapeMap& shapes) {
  std::string pickle;
  const auto number = [](int32_t value) {
    return "J" + std::string(reinterpret_cast<const char*>(&value), 4);
  };
  const auto text = [&](const std::string& value) {
    const auto size = uint32_t(value.size());
    return "X" + std::string(reinterpret_cast<const char*>(&size), 4) + value;
  };
  for (const auto& [name, shape] : shapes) {
    pickle += text(name) + "ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") +
              "ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(1) + "tQ" + number(0) + "(";
    for (const int64_t size : shape) pickle += number(int32_t(size));
    pickle += "t(";
    for (size_t i = 0; i < shape.size(); ++i) pickle += number(0);
    pickle += "t\x89}tR";
  }
  pickle = "\x80\x02}(" + pickle + "u.";
  const float one = 1;
  ZipWriter zip(file);
  const std::span<const std::byte> object[] = {std::as_bytes(std::span(pickle))};
  const std::span<const std::byte> storage[] = {std::as_bytes(std::span(&one, 1))};
  zip.add("a/data.pkl", object, false), zip.add("a/data/0", storage, false);
  zip.commit();
}

class ConvertFixture : public ::testing::Test {
 protected:
  ConvertFixture() {
    write_tensors(dir_ / "vq.safetensors", procedural_weights(tokenizer_shapes(tiny_tokenizer_config(32))));
    write_tensors(dir_ / "gen.safetensors", procedural_weights(generator_shapes(small_generator())));
    write_pth(dir_ / "policy.pth", policy_checkpoint(procedural_actor(small_actor()), policy_args(1, 8)));
    write_pth(dir_ / "bare.pth", PthValue::dict(procedural_actor(small_actor())));
  }

  ConvertOptions options() const {
    ConvertOptions o;
    o.generator = dir_ / "gen.safetensors", o.tokenizer = dir_ / "vq.safetensors";
    o.heads = 3;
    o.out = dir_ / "out";
    return o;
  }
  // The message of the error that converting gives; nothing may be left then.
  std::string error(const ConvertOptions& o) {
    try {
      convert(o);
    } catch (const InputError& e) {
      std::string left;
      for (const auto& entry : std::filesystem::directory_iterator(dir_.path()))
        if (entry.path().filename().string().find("out") != std::string::npos) left += entry.path().string();
      EXPECT_EQ(left, "");
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      return e.what();
    }
    std::filesystem::remove_all(o.out);
    return "no error";
  }
  void expect_error(const ConvertOptions& o, std::initializer_list<const char*> parts) {
    const std::string message = error(o);
    for (const char* part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
  }
  // `weights` as the file `file`, without the names that begin with one of `gone`: the error must name them
  // all, and nothing else.
  void expect_all_named(const ConvertOptions& o, const std::filesystem::path& file, const TensorMap& weights,
                        const std::vector<std::string>& gone) {
    TensorMap left;
    std::vector<std::string> missing;
    for (const auto& [name, tensor] : weights) {
      const auto begins = [&](const std::string& prefix) { return name.starts_with(prefix); };
      if (std::any_of(gone.begin(), gone.end(), begins))
        missing.push_back(name);
      else
        left.emplace(name, tensor);
    }
    write_pth(file, PthValue::dict(left));
    EXPECT_EQ(error(o), cat(file.string(), ": lacks ", list_names(missing),
                            "; is it the file of another part, or a damaged download? `adanat info` lists "
                            "what is in the file"));
  }
  // Converts, checks that the part holds exactly `tensors`, and removes the folder again.
  void expect_part(const ConvertOptions& o, const char* part, const TensorMap& tensors) {
    convert(o);
    const TensorMap made = read_tensors(o.out / part);
    ASSERT_EQ(made.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      ASSERT_TRUE(made.contains(name)) << name;
      EXPECT_EQ(made.at(name).scalar_type(), tensor.scalar_type()) << name;
      EXPECT_TRUE(at::equal(made.at(name), tensor)) << name;
    }
    std::filesystem::remove_all(o.out);
  }

  TempDir dir_;
};

}  // namespace adanat::testing
