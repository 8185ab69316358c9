// Rows of the class embedding by name.
#include "core/generator/generator_init.h"

#include <ATen/ATen.h>

#include "support/support.h"

namespace adanat {
namespace {

constexpr const char* kRows = "context_embed.word_embeddings.weight";

// Row i of class i holds i; the empty condition holds -1. A stranger beside it is passed through.
GeneratorInit numbered(std::vector<std::string> names, int64_t classes, at::ScalarType type = at::kFloat) {
  GeneratorInit init;
  init.where = "--init x";
  init.config.classes = classes;
  init.class_names = std::move(names);
  at::Tensor rows = at::arange(classes + 1, at::kFloat).unsqueeze(1).repeat({1, 3});
  rows[classes].fill_(-1);
  init.weights = {{kRows, rows.to(type)}, {"norm.bias", at::ones({3})}};
  return init;
}

std::vector<float> column_of(const GeneratorInit& init, const std::vector<std::string>& names,
                             int64_t classes) {
  GeneratorConfig config = init.config;
  config.classes = classes;
  const TensorMap weights = initial_weights(init, config, names, init.tokenizer_hash);
  EXPECT_EQ(weights.size(), init.weights.size());
  const at::Tensor column = weights.at(kRows).to(at::kFloat).select(1, 2).contiguous();
  return {column.const_data_ptr<float>(), column.const_data_ptr<float>() + column.numel()};
}

using Values = std::vector<float>;

TEST(GeneratorInit, RowsFollowTheNames) {
  const GeneratorInit init = numbered({"cat", "dog", "fox"}, 3);
  EXPECT_EQ(column_of(init, {"fox", "cat", "dog"}, 3), Values({2, 0, 1, -1}));  // sorted otherwise
  EXPECT_EQ(column_of(init, {"dog"}, 1), Values({1, -1}));
  EXPECT_EQ(column_of(init, {"ant", "bee", "cat", "dog"}, 4), Values({1, 1, 0, 1, -1}));  // the mean is 1
  EXPECT_EQ(column_of(init, {"Cat", "dog "}, 2), Values({1, 1, -1}));  // names are compared to the letter
}

TEST(GeneratorInit, ClassesWithoutNamesAreTheirNumbers) {
  const GeneratorInit bare = numbered({}, 4), named = numbered({"2", "0", "x"}, 3);
  EXPECT_EQ(column_of(bare, {}, 2), Values({0, 1, -1}));
  EXPECT_EQ(column_of(bare, {}, 6), Values({0, 1, 2, 3, 1.5, 1.5, -1}));
  EXPECT_EQ(column_of(bare, {"3", "three"}, 2), Values({3, 1.5, -1}));
  EXPECT_EQ(column_of(named, {}, 3), Values({1, 1, 0, -1}));
}

TEST(GeneratorInit, TheSameClassesAreTheSameTensor) {
  for (const std::vector<std::string>& names : {std::vector<std::string>{"a", "b"}, {}}) {
    const GeneratorInit init = numbered(names, 2, at::kHalf);
    const TensorMap weights = initial_weights(init, init.config, names, "");
    EXPECT_TRUE(weights.at(kRows).is_same(init.weights.at(kRows)));
  }
}

}  // namespace
}  // namespace adanat
