#include "apps/pipeline/feature_cache.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"
#include "core/nn/tensor_file.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

constexpr double kFlushSeconds = 30;

std::string piece_name(int64_t begin) {
  char name[48];
  std::snprintf(name, sizeof name, "rows-%010lld.safetensors", static_cast<long long>(begin));
  return name;
}

void remove_oldest(const fs::path& folder, const fs::path& keep, uint64_t limit) {
  struct Entry {
    fs::file_time_type used;
    fs::path path;
    uint64_t bytes = 0;
  };
  std::vector<Entry> entries;
  uint64_t total = 0;
  std::error_code error;
  for (const auto& item : fs::directory_iterator(folder, error)) {
    // Only what looks like an entry is ever removed.
    if (!item.is_directory(error) || !fs::exists(item.path() / "key.json", error) || item.path() == keep)
      continue;
    Entry entry{fs::last_write_time(item.path() / "key.json", error), item.path()};
    for (const auto& file : fs::directory_iterator(item.path(), error))
      if (const auto bytes = fs::file_size(file.path(), error); !error) entry.bytes += bytes;
    total += entry.bytes;
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  for (const Entry& entry : entries) {
    if (total <= limit) return;
    fs::remove_all(entry.path, error);
    total -= entry.bytes;
  }
}

}  // namespace

fs::path FeatureCache::default_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/')
    return fs::path(cache) / "adanat/features";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache/adanat/features";
  return {};
}

FeatureCache::FeatureCache(fs::path folder, const Json& key, uint64_t limit_bytes)
    : limit_bytes_(limit_bytes), flushed_at_(monotonic_seconds()) {
  if (folder.empty()) return;
  const std::string text = key.dump();
  const fs::path entry = folder / sha256_hex(text.data(), text.size()).substr(0, 32);
  try {
    fs::create_directories(entry);
    key_ = text + "\n";
    write_file_atomic(entry / "key.json", key_);  // also marks the entry as used now
    remove_oldest(folder, entry, limit_bytes);
    entry_ = entry;
  } catch (const std::exception& e) {
    warning(cat("no feature cache, a stopped measurement starts anew: ", e.what()));
  }
}

int64_t FeatureCache::load(const std::function<void(const FeatureRows&)>& visit) {
  while (!entry_.empty()) {
    const fs::path path = entry_ / piece_name(begin_);
    std::error_code error;
    if (!fs::exists(path, error)) break;
    std::vector<FeatureRows> pieces;
    try {
      const TensorMap tensors = read_tensors(path);
      const at::Tensor sizes = tensors.at("sizes"), pool = tensors.at("pool"), logits = tensors.at("logits");
      const bool spatial = tensors.contains("spatial");
      if (sizes.scalar_type() != at::kLong || sizes.dim() != 1 || pool.dim() != 2 || logits.dim() != 2 ||
          pool.size(0) != logits.size(0) || sizes.sum().item<int64_t>() != pool.size(0) || pool.size(0) < 1)
        throw InputError(cat(path.string(), ": is no piece of a feature cache"));
      int64_t row = 0;
      for (int64_t i = 0; i < sizes.numel(); ++i) {
        const int64_t n = sizes.const_data_ptr<int64_t>()[i];
        if (n < 1 || n > pool.size(0) - row)
          throw InputError(cat(path.string(), ": is no piece of a feature cache"));
        pieces.push_back({pool.narrow(0, row, n), logits.narrow(0, row, n),
                          spatial ? tensors.at("spatial").narrow(0, row, n) : at::Tensor()});
        row += n;
      }
      begin_ += row;
      bytes_ += fs::file_size(path);
    } catch (const std::exception& e) {
      warning(cat("feature cache: what follows image ", begin_, " is computed anew: ", e.what()));
      break;
    }
    // Outside of the try: what the visitor throws is not the cache's to judge.
    for (const FeatureRows& rows : pieces) visit(rows);
  }
  return begin_;
}

void FeatureCache::add(const FeatureRows& rows) {
  if (entry_.empty()) return;
  pending_.push_back(rows);
  if (monotonic_seconds() - flushed_at_ > kFlushSeconds) flush();
}

void FeatureCache::flush() {
  flushed_at_ = monotonic_seconds();
  if (entry_.empty() || pending_.empty()) return;
  try {
    std::vector<at::Tensor> pool, logits, spatial;
    std::vector<int64_t> sizes;
    int64_t count = 0;
    for (const FeatureRows& rows : pending_) {
      pool.push_back(rows.pool), logits.push_back(rows.logits);
      if (rows.spatial.defined()) spatial.push_back(rows.spatial);
      sizes.push_back(rows.size());
      count += rows.size();
    }
    TensorMap tensors{
        {"pool", at::cat(pool)}, {"logits", at::cat(logits)}, {"sizes", at::tensor(sizes, at::kLong)}};
    if (!spatial.empty()) tensors["spatial"] = at::cat(spatial);
    for (const auto& [name, tensor] : tensors) bytes_ += tensor.nbytes();
    if (bytes_ > limit_bytes_) throw RunError(cat("it would hold more than ", limit_bytes_ >> 20, " MiB"));
    fs::create_directories(entry_);
    // Another run's limit may have removed the entry meanwhile; without its key nothing would ever remove it.
    if (!fs::exists(entry_ / "key.json")) write_file_atomic(entry_ / "key.json", key_);
    write_tensors(entry_ / piece_name(begin_), tensors);
    begin_ += count;
    pending_.clear();
  } catch (const std::exception& e) {
    warning(cat("the feature cache ends at image ", begin_,
                ", a stopped measurement goes on from there: ", e.what()));
    entry_.clear();
    pending_.clear();
  }
}

}  // namespace adanat
