// What a recipe is told by the program that runs it, besides its config and its data.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <functional>

namespace adanat {

struct RecipeContext {
  at::Device device = at::kCPU;
  uint64_t seed = 0;    // key of every random draw of the run
  int64_t threads = 1;  // decoding threads of the loaders
  int64_t rank = 0, world_size = 1;
  // Called by write_model after the recipe wrote its own files: adds what a recipe cannot know (config.json
  // of the model folder, parts that were not trained here). May be empty.
  std::function<void(const std::filesystem::path& folder)> finish_model;
};

}  // namespace adanat
