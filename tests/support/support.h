// What the tests share: one comparator (itself tested), golden files, procedural weights, temporary folders.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "core/nn/tensor_file.h"

namespace torch::nn {
class Module;
}

namespace adanat::testing {

// Success iff dtype class, sizes and every value agree: |actual - expected| <= atol, equal infinities, no NaN
// on either side. Integers and bools must be equal (atol 0). The failure names the worst element with both
// values.
::testing::AssertionResult close(const at::Tensor& actual, const at::Tensor& expected, double atol);

#define EXPECT_CLOSE(actual, expected, atol) EXPECT_TRUE(::adanat::testing::close(actual, expected, atol))

// The checkout, and its golden files. (Functions, not macros: an absolute path on every compiler line would
// keep the compiler cache from serving another checkout.)
std::filesystem::path source_dir();
std::filesystem::path golden_dir();

// The tensors of tests/golden/data/<name>, read once; `metadata` holds the file's own.
struct Golden {
  TensorMap tensors;
  Metadata metadata;
  const at::Tensor& operator[](const std::string& key) const;
};
const Golden& golden(const std::string& name);

// The fill rule of tests/golden/data/README.md.
uint64_t fnv1a64(const std::string& text);
// u in [0,1) as float64, `count` values for NAME.
at::Tensor procedural_u(const std::string& name, int64_t count);
// Input forms: "input:" is put in front of the name here.
at::Tensor input_float(const std::string& name, at::IntArrayRef shape, double scale, double offset = 0);
at::Tensor input_u(const std::string& name, at::IntArrayRef shape);
at::Tensor input_ids(const std::string& name, at::IntArrayRef shape, int64_t range);
at::Tensor input_gumbel(const std::string& name, at::IntArrayRef shape);
// One parameter or buffer called `name`.
at::Tensor procedural_weight(const std::string& name, at::IntArrayRef shape);
// Every parameter and buffer of the module, under its own name with `prefix` in front.
void fill_procedural(torch::nn::Module& module, const std::string& prefix = "");

// A fresh folder, removed with everything in it when the object goes.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// The shared data folder ($ADANAT_SHARED, default <source>/../shared)/data; empty if absent.
std::filesystem::path shared_data();

// At the start of a test that needs real data: skips without it, but fails where CI=true.
#define ADANAT_NEEDS_DATA()                                                             \
  if (::adanat::testing::shared_data().empty()) {                                       \
    if (const char* ci = std::getenv("CI"); ci != nullptr && std::string(ci) == "true") \
      FAIL() << "no data: set ADANAT_SHARED to the folder that holds data/";            \
    GTEST_SKIP() << "skipped: no data";                                                 \
  }                                                                                     \
  static_assert(true)

}  // namespace adanat::testing
