#include "apps/pipeline/statistics_file.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <cstring>

#include "core/base/error.h"
#include "core/io/npy.h"

namespace adanat {
namespace {

constexpr int64_t kMaxDimensions = 16384;

GaussianStats read_pair(const NpzFile& file, const std::string& mean_name,
                        const std::string& covariance_name) {
  const auto tensor = [&](const std::string& name, size_t rank) {
    const NpyHeader header = file.header(name);
    if (header.shape.size() != rank || header.shape[0] < 1 || header.shape[0] > kMaxDimensions ||
        (rank == 2 && header.shape[1] != header.shape[0]))
      throw InputError(
          cat(file.path().string(), ": ", name, " must have the shape ", rank == 1 ? "(D)" : "(D, D)"));
    const std::vector<double> values =
        file.array(name, uint64_t(kMaxDimensions) * kMaxDimensions * 8 + kMaxNpyHeader).as_float64();
    at::Tensor out = at::empty(header.shape, at::kDouble);
    std::memcpy(out.mutable_data_ptr<double>(), values.data(), values.size() * sizeof(double));
    if (!at::isfinite(out).all().item<bool>())
      throw InputError(cat(file.path().string(), ": ", name, " holds a value that is not a finite number"));
    return out;
  };
  GaussianStats out{0, tensor(mean_name, 1), tensor(covariance_name, 2)};
  const int64_t d = out.mean.size(0);
  if (out.covariance.size(0) != d)
    throw InputError(cat(file.path().string(), ": ", mean_name, " has ", d, " dimensions and ",
                         covariance_name, " ", out.covariance.size(0)));
  const double largest = out.covariance.abs().max().item<double>();
  if ((out.covariance - out.covariance.t()).abs().max().item<double>() > 1e-4 * largest)
    throw InputError(cat(file.path().string(), ": ", covariance_name, " is not symmetric: no covariance"));
  if (out.covariance.diagonal().min().item<double>() < -1e-6 * largest)
    throw InputError(
        cat(file.path().string(), ": ", covariance_name, " has a negative diagonal: no covariance"));
  return out;
}

// "" where there is none, or another program's array of this name.
std::string read_text(const NpzFile& file, const std::string& name) try {
  if (!file.contains(name) || file.header(name).dtype != DType::kU8) return "";
  const NpyArray array = file.array(name, 4096);
  return {reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size()};
} catch (const InputError&) {
  return "";
}

}  // namespace

bool is_statistics_file(const std::filesystem::path& path) {
  if (path.extension() != ".npz" || !std::filesystem::is_regular_file(path)) return false;
  return NpzFile::open(path).contains("mu");
}

StatisticsFile read_statistics(const std::filesystem::path& path) {
  const NpzFile file = NpzFile::open(path);
  StatisticsFile out;
  out.features = read_pair(file, "mu", "sigma");
  if (file.contains("mu_s")) out.spatial = read_pair(file, "mu_s", "sigma_s");
  try {
    const NpyArray count = file.contains("count") ? file.array("count", 4096) : NpyArray{};
    if (count.count() == 1 && count.dtype == DType::kI64)
      out.features.count = std::max<int64_t>(0, count.as_int64()[0]);
  } catch (const InputError&) {  // another program's "count": nothing that the statistics need
  }
  out.protocol = read_text(file, "protocol");
  out.weights_sha256 = read_text(file, "weights_sha256");
  out.has_images = file.contains("arr_0");
  return out;
}

void write_statistics(const std::filesystem::path& path, const StatisticsFile& s) {
  std::vector<TensorBytes> arrays;
  const auto add = [&](const char* name, const at::Tensor& tensor) {
    arrays.push_back({name, DType::kF64, tensor.sizes().vec(), tensor.const_data_ptr(), tensor.nbytes()});
  };
  const at::Tensor mean = s.features.mean.contiguous(), covariance = s.features.covariance.contiguous();
  add("mu", mean), add("sigma", covariance);
  at::Tensor spatial_mean, spatial_covariance;
  if (s.spatial) {
    spatial_mean = s.spatial->mean.contiguous(), spatial_covariance = s.spatial->covariance.contiguous();
    add("mu_s", spatial_mean), add("sigma_s", spatial_covariance);
  }
  arrays.push_back({"count", DType::kI64, {}, &s.features.count, sizeof s.features.count});
  for (const auto& [name, text] : {std::pair<const char*, const std::string&>{"protocol", s.protocol},
                                   {"weights_sha256", s.weights_sha256}})
    arrays.push_back({name, DType::kU8, {int64_t(text.size())}, text.data(), text.size()});
  write_npz(path, arrays);
}

}  // namespace adanat
