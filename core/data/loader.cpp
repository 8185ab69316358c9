#include "core/data/loader.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/data/data_order.h"
#include "core/data/item_store.h"

namespace adanat {

struct Loader::Impl {
  Impl(std::shared_ptr<const ImageDataset> dataset, const LoaderOptions& given)
      : options(given),
        size(dataset->size()),
        store(std::move(dataset), given.image_size, given.cache_decoded ? given.cache_bytes : 0) {
    const int64_t global = options.batch_size * options.world_size;
    per_epoch = options.drop_last ? size / global : (size + global - 1) / global;
  }

  using Order = std::shared_ptr<const std::vector<int64_t>>;

  // The order of an epoch; the last two are kept, since decoding ahead crosses the border between epochs.
  Order order_of(int64_t epoch) {
    const std::lock_guard lock(order_mutex);
    for (const auto& [known, order] : orders)
      if (known == epoch) return order;
    auto order = std::make_shared<const std::vector<int64_t>>(epoch_order(options.seed, epoch, size));
    orders.emplace_back(epoch, order);
    if (orders.size() > 2) orders.erase(orders.begin());
    return order;
  }

  // A pure function of the options and the step.
  Batch make_batch(int64_t step) {
    const int64_t epoch = step / per_epoch;
    const int64_t global = options.batch_size * options.world_size;
    const int64_t begin = step % per_epoch * global + options.rank * options.batch_size;
    const int64_t count = std::clamp<int64_t>(size - begin, 0, options.batch_size);
    const Order order = options.shuffle ? order_of(epoch) : nullptr;
    const int64_t side = options.image_size, item_bytes = 3 * side * side;
    Batch batch;
    batch.images = at::empty({count, 3, side, side}, at::kByte);
    batch.labels = at::empty({count}, at::kLong);
    batch.indices = at::empty({count}, at::kLong);
    batch.flipped = at::empty({count}, at::kByte);
    for (int64_t row = 0; row < count; ++row) {
      // A broken item's place goes to the next good one.
      bool found = false;
      for (int64_t tried = 0; tried < size && !found; ++tried) {
        const int64_t position = (begin + row + tried) % size;
        const int64_t item = order ? (*order)[static_cast<size_t>(position)] : position;
        const bool flipped = options.flip && is_flipped(options.seed, epoch, item);
        found = store.read(item, flipped, batch.images.mutable_data_ptr<uint8_t>() + row * item_bytes);
        if (!found) continue;
        batch.labels.mutable_data_ptr<int64_t>()[row] = store.dataset().label(item);
        batch.indices.mutable_data_ptr<int64_t>()[row] = item;
        batch.flipped.mutable_data_ptr<uint8_t>()[row] = flipped;
      }
      if (!found)
        throw InputError(cat(store.dataset().describe(), ": not one of the ", size,
                             " images can be read, for example ", store.dataset().item_name(0)));
    }
    return batch;
  }

  // One step that is wanted: queued, being made by a worker, or made (batch or error).
  struct Slot {
    bool taken = false, made = false;
    Batch batch;
    std::exception_ptr error;
  };

  void work() {
    std::unique_lock lock(mutex);
    while (true) {
      auto next = slots.end();
      wanted.wait(lock, [&] {
        next = std::find_if(slots.begin(), slots.end(), [](const auto& slot) { return !slot.second->taken; });
        return stopping || next != slots.end();
      });
      if (stopping) return;
      const int64_t step = next->first;
      const std::shared_ptr<Slot> slot = next->second;  // outlives its removal from the map
      slot->taken = true;
      lock.unlock();
      Batch batch;
      std::exception_ptr error;
      try {
        batch = make_batch(step);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      slot->batch = std::move(batch);
      slot->error = error;
      slot->made = true;
      ready.notify_all();
    }
  }

  Batch take(int64_t step) {
    std::unique_lock lock(mutex);
    // Steps out of reach are forgotten (a worker may still be busy with one; nobody will ask for it).
    const int64_t last = step + std::max<int64_t>(options.prefetch, 0);
    std::erase_if(slots, [&](const auto& slot) { return slot.first < step || slot.first > last; });
    for (int64_t s = step; s <= last; ++s)
      if (!slots.contains(s)) slots.emplace(s, std::make_shared<Slot>());
    wanted.notify_all();
    const std::shared_ptr<Slot> slot = slots.at(step);
    if (!slot->made) {
      const double begin = monotonic_seconds();
      ready.wait(lock, [&] { return slot->made; });
      waited += monotonic_seconds() - begin;
    }
    slots.erase(step);
    if (slot->error) std::rethrow_exception(slot->error);
    return std::move(slot->batch);
  }

  LoaderOptions options;
  int64_t size;
  int64_t per_epoch;
  ItemStore store;

  std::mutex order_mutex;
  std::vector<std::pair<int64_t, Order>> orders;

  mutable std::mutex mutex;  // everything below
  std::condition_variable wanted, ready;
  std::map<int64_t, std::shared_ptr<Slot>> slots;
  bool stopping = false;
  double waited = 0;
  std::vector<std::thread> workers;
};

Loader::Loader(std::shared_ptr<const ImageDataset> dataset, LoaderOptions options) {
  if (options.batch_size < 1 || options.image_size < 1 || options.image_size > kMaxImageSide ||
      options.threads < 0 || options.world_size < 1 || options.rank < 0 ||
      options.rank >= options.world_size || options.cache_bytes < 0)
    throw RunError(cat("impossible loader options: batch ", options.batch_size, ", image size ",
                       options.image_size, ", threads ", options.threads, ", rank ", options.rank, " of ",
                       options.world_size, ", cache ", options.cache_bytes));
  impl_ = std::make_unique<Impl>(std::move(dataset), options);
  if (impl_->per_epoch < 1)
    throw InputError(
        cat(impl_->store.dataset().describe(), ": fewer images than one step takes (", options.batch_size,
            options.world_size > 1 ? cat(" on each of ", options.world_size, " ranks") : std::string(),
            "); use a smaller one (--set ", options.batch_key, "=N)"));
  for (int64_t i = 0; i < options.threads; ++i)
    impl_->workers.emplace_back([impl = impl_.get()] { impl->work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->wanted.notify_all();
  for (std::thread& worker : impl_->workers) worker.join();
}

Batch Loader::batch(int64_t step) {
  if (step < 0) throw RunError(cat("loader: step ", step, " is negative"));
  if (!impl_->workers.empty()) return impl_->take(step);
  const double begin = monotonic_seconds();
  Batch batch = impl_->make_batch(step);
  const std::lock_guard lock(impl_->mutex);
  impl_->waited += monotonic_seconds() - begin;
  return batch;
}

int64_t Loader::batches_per_epoch() const {
  return impl_->per_epoch;
}
int64_t Loader::skipped() const {
  return impl_->store.broken();
}
double Loader::wait_seconds() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->waited;
}
const ImageDataset& Loader::dataset() const {
  return impl_->store.dataset();
}

}  // namespace adanat
