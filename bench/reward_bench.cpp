// What each reward costs: scoring and one update, real and fake batches of the same size, in one process.
// Prints one JSON line per kind with the medians in milliseconds. The ViT is DINO ViT-S/16's shape with
// random weights.
//   reward_bench [MODEL_FOLDER] [BATCH]   (default models/signs, 64)
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "core/base/log.h"
#include "core/features/feature_net.h"
#include "core/nn/tensor_file.h"
#include "policy/reward.h"

namespace {

using namespace adanat;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class F>
double milliseconds(F run, int runs) {
  run();  // warms up
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const double start = monotonic_seconds();
    run();
    times.push_back(1e3 * (monotonic_seconds() - start));
  }
  return median(times);
}

TensorMap vit_small() {
  TensorMap out;
  const auto affine = [&](const std::string& key, int64_t rows, int64_t columns) {
    out[key + ".weight"] = columns > 0 ? at::randn({rows, columns}) * 0.02 : at::ones({rows});
    out[key + ".bias"] = at::zeros({rows});
  };
  out["patch_embed.proj.weight"] = at::randn({384, 3, 16, 16}) * 0.02;
  out["patch_embed.proj.bias"] = at::zeros({384});
  out["cls_token"] = at::randn({1, 1, 384}) * 0.02;
  out["pos_embed"] = at::randn({1, 197, 384}) * 0.02;
  for (int i = 0; i < 12; ++i) {
    const std::string base = "blocks." + std::to_string(i) + ".";
    affine(base + "norm1", 384, 0), affine(base + "norm2", 384, 0);
    affine(base + "attn.qkv", 1152, 384), affine(base + "attn.proj", 384, 384);
    affine(base + "mlp.fc1", 1536, 384), affine(base + "mlp.fc2", 384, 1536);
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::filesystem::path model = argc > 1 ? argv[1] : "models/signs";
  const int64_t batch = argc > 2 ? std::atoll(argv[2]) : 64;
  const std::filesystem::path vit =
      std::filesystem::temp_directory_path() / "adanat-reward-bench-vit.safetensors";
  at::manual_seed(1);
  write_tensors(vit, vit_small());
  RewardContext context;
  context.image_size = 32;
  context.features = model / "features.safetensors", context.measure = model / "measure.safetensors";
  context.classes =
      load_feature_net(context.features)->forward(at::rand({1, 3, 32, 32}), {"logits"})[0].size(1);
  const at::Tensor real = at::rand({batch, 3, 32, 32}), fake = at::rand({batch, 3, 32, 32});
  const at::Tensor classes = at::randint(0, context.classes, {batch}, at::kLong);
  for (const std::string kind : {"confidence", "frechet", "conv", "features", "projected"}) {
    RewardConfig config;
    config.kinds = {kind};
    config.vit = vit.string();
    config.frechet_images = 256;
    std::unique_ptr<Reward> reward;
    try {
      reward = make_reward(config, context);
    } catch (const Error& e) {
      std::printf("{\"kind\": \"%s\", \"skipped\": \"%s\"}\n", kind.c_str(), e.what());
      continue;
    }
    while (reward->wants_real() > 0) reward->observe_real(at::rand({64, 3, 32, 32}));
    const int runs = kind == "projected" ? 3 : 15;
    const double score = milliseconds([&] { reward->score(fake, classes); }, runs);
    const double step =
        reward->trains() ? milliseconds([&] { reward->train_step(real, classes, fake, classes); }, runs) : 0;
    std::printf(
        "{\"kind\": \"%s\", \"batch\": %lld, \"threads\": %d, \"score_ms\": %.2f, \"train_step_ms\": %.2f}\n",
        kind.c_str(), static_cast<long long>(batch), at::get_num_threads(), score, step);
    std::fflush(stdout);
  }
  std::filesystem::remove(vit);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
