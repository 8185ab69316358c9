#include "support/support.h"

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "core/base/error.h"

namespace adanat::testing {

::testing::AssertionResult close(const at::Tensor& actual, const at::Tensor& expected, double atol) {
  const auto fail = [] { return ::testing::AssertionFailure(); };
  if (!actual.defined() || !expected.defined()) return fail() << "undefined tensor";
  if (actual.sizes() != expected.sizes())
    return fail() << "shape " << actual.sizes() << " against " << expected.sizes();
  if (actual.is_floating_point() != expected.is_floating_point())
    return fail() << "dtype " << actual.dtype() << " against " << expected.dtype();
  if (actual.numel() == 0) return ::testing::AssertionSuccess();
  const at::Tensor a = actual.detach().cpu().to(at::kDouble).flatten().contiguous();
  const at::Tensor e = expected.detach().cpu().to(at::kDouble).flatten().contiguous();
  const double* pa = a.const_data_ptr<double>();
  const double* pe = e.const_data_ptr<double>();
  double worst = -1;
  int64_t at_index = 0, bad = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    double error = pa[i] == pe[i] ? 0 : std::abs(pa[i] - pe[i]);  // equal infinities have no difference
    if (std::isnan(error)) error = INFINITY;
    if (!(error <= atol)) ++bad;
    if (error > worst) worst = error, at_index = i;
  }
  if (bad == 0) return ::testing::AssertionSuccess() << "largest difference " << worst;
  return fail() << bad << " of " << a.numel() << " values differ by more than " << atol
                << "; worst at flat index " << at_index << ": " << pa[at_index] << " against " << pe[at_index]
                << " (difference " << worst << ")";
}

const at::Tensor& Golden::operator[](const std::string& key) const {
  const auto it = tensors.find(key);
  if (it == tensors.end()) throw std::out_of_range("golden file has no tensor " + key);
  return it->second;
}

std::filesystem::path source_dir() {
  return ADANAT_SOURCE_DIR;
}
std::filesystem::path golden_dir() {
  return source_dir() / "tests/golden/data";
}

const Golden& golden(const std::string& name) {
  static std::map<std::string, Golden> cache;
  auto it = cache.find(name);
  if (it == cache.end()) {
    Golden g;
    g.tensors = read_tensors(golden_dir() / name, &g.metadata);
    it = cache.emplace(name, std::move(g)).first;
  }
  return it->second;
}

uint64_t fnv1a64(const std::string& text) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const unsigned char c : text) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

at::Tensor procedural_u(const std::string& name, int64_t count) {
  const uint64_t h0 = fnv1a64(name);
  at::Tensor out = at::empty({count}, at::kDouble);
  double* p = out.mutable_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    uint64_t x = h0 + uint64_t(i + 1) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 30, x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27, x *= 0x94D049BB133111EBull;
    x ^= x >> 31;
    p[i] = double(x >> 40) * 0x1p-24;
  }
  return out;
}

at::Tensor input_float(const std::string& name, at::IntArrayRef shape, double scale, double offset) {
  const at::Tensor u = procedural_u("input:" + name, c10::multiply_integers(shape));
  return (offset + scale * (2 * u - 1)).to(at::kFloat).view(shape);
}

at::Tensor input_u(const std::string& name, at::IntArrayRef shape) {
  return procedural_u("input:" + name, c10::multiply_integers(shape)).to(at::kFloat).view(shape);
}

at::Tensor input_ids(const std::string& name, at::IntArrayRef shape, int64_t range) {
  return (procedural_u("input:" + name, c10::multiply_integers(shape)) * double(range))
      .floor()
      .to(at::kLong)
      .view(shape);
}

at::Tensor input_gumbel(const std::string& name, at::IntArrayRef shape) {
  const at::Tensor u =
      procedural_u("input:" + name, c10::multiply_integers(shape)).clamp(0x1p-25, 1 - 0x1p-25);
  return (-(-u.log()).log()).to(at::kFloat).view(shape);
}

at::Tensor procedural_weight(const std::string& name, at::IntArrayRef shape) {
  const int64_t count = c10::multiply_integers(shape);
  const at::Tensor u = procedural_u(name, count), v = 2 * u - 1;
  const auto ends_with = [&](const std::string& tail) {
    return name.size() >= tail.size() && name.compare(name.size() - tail.size(), tail.size(), tail) == 0;
  };
  at::Tensor value;
  if (ends_with("running_var")) {
    value = 1 + 0.5 * u;
  } else if (ends_with("running_mean")) {
    value = 0.1 * v;
  } else if (shape.size() >= 2) {
    value = v * std::sqrt(3.0 / (double(count) / double(shape[0])));
  } else if (ends_with(".weight")) {
    value = 1 + 0.1 * v;
  } else {
    value = 0.1 * v;
  }
  return value.to(at::kFloat).view(shape);
}

void fill_procedural(torch::nn::Module& module, const std::string& prefix) {
  const at::NoGradGuard no_grad;
  const auto fill = [&](const std::string& name, at::Tensor tensor) {
    if (tensor.is_floating_point()) tensor.copy_(procedural_weight(prefix + name, tensor.sizes()));
  };
  for (auto& item : module.named_parameters()) fill(item.key(), item.value());
  for (auto& item : module.named_buffers()) fill(item.key(), item.value());
}

TempDir::TempDir() {
  std::string name = (std::filesystem::temp_directory_path() / "adanat-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr)
    throw std::runtime_error("cannot make a temporary folder like " + name);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path shared_data() {
  const char* variable = std::getenv("ADANAT_SHARED");
  const std::filesystem::path root = variable != nullptr && *variable != 0
                                         ? std::filesystem::path(variable)
                                         : source_dir().parent_path() / "shared";
  return std::filesystem::is_directory(root / "data") ? root / "data" : std::filesystem::path();
}

}  // namespace adanat::testing
