// The folder of a text encoder, looked at without reading the numbers in its weights.
#pragma once
#include <filesystem>
#include <vector>

#include "core/text/clip.h"

namespace adanat {

struct ClipTextFiles {
  ClipTextConfig config;
  std::vector<std::filesystem::path> files;  // all that ClipTextEncoder::open reads
};

// Everything that ClipTextEncoder::open(folder, device, pad) would refuse about the folder but for values
// that are not finite. InputError as from there; tensors that are missing or left over are all named.
ClipTextFiles check_clip_text(const std::filesystem::path& folder, const std::string& pad);

}  // namespace adanat
