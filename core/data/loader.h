// Batches for training, decoded ahead by worker threads. What a batch holds depends on the seed and the step
// alone, never on threads or timing, so a run resumed at any step sees the batches it would have seen.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "core/data/dataset.h"

namespace adanat {

// On the CPU. B may be smaller than batch_size in the last batch of an epoch if drop_last is off.
struct Batch {
  at::Tensor images;   // (B, 3, S, S) u8: ADM-cropped, mirrored where flipped is 1
  at::Tensor labels;   // (B) i64
  at::Tensor indices;  // (B) i64: index into the dataset
  at::Tensor flipped;  // (B) u8, 0 or 1
};

struct LoaderOptions {
  int64_t batch_size = 1;                // per rank
  const char* batch_key = "batch_size";  // the config key that sets it, for messages
  int64_t image_size = 32;               // S
  bool shuffle = true;                   // off: file order in every epoch
  bool flip = false;                     // mirror half of the images
  int64_t threads = 1;                   // decoding threads; 0 = decode inside batch()
  uint64_t seed = 0;
  bool drop_last = true;
  int64_t prefetch = 4;              // steps decoded ahead
  int64_t rank = 0, world_size = 1;  // rank r of w takes its batch_size of each step's w*batch_size items
  bool cache_decoded = true;         // keep the cropped images in memory if all of them fit into cache_bytes
  int64_t cache_bytes = int64_t{1} << 30;
};

// Note [Data order]. Item i of epoch e draws philox4x32_10(counter (0, i, e, 3 << 16), key seed): words 0 and
// 1 are its sort key (the order of the epoch is the items sorted by key, then by index), the top bit of word
// 2 mirrors it. Step s is batch s mod batches_per_epoch() of epoch s / batches_per_epoch(). A broken item
// gives its place to the next good one of the epoch's order (cyclically); nothing else moves.
//
// batch() is for one consumer thread; the other methods are thread-safe.
class Loader {
 public:
  // InputError: fewer images than one step needs. RunError: impossible options.
  Loader(std::shared_ptr<const ImageDataset> dataset, LoaderOptions options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The batch of a step >= 0; any order is allowed, ascending steps are the fast case. Throws InputError if
  // every image of the dataset is broken.
  Batch batch(int64_t step);
  int64_t batches_per_epoch() const;
  // Broken items met so far, each counted once (including those met while decoding ahead). The first five are
  // named on stderr.
  int64_t skipped() const;
  // Total time batch() waited for images that were not ready.
  double wait_seconds() const;
  const ImageDataset& dataset() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace adanat
