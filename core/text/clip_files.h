// The folder of a text encoder, checked without making one.
#pragma once
#include <filesystem>
#include <vector>

#include "core/text/clip.h"

namespace adanat {

struct ClipTextFiles {
  ClipTextConfig config;
  std::vector<std::filesystem::path> files;  // all that ClipTextEncoder::open reads
};

// InputError for everything that ClipTextEncoder::open(folder, device, pad) refuses about the folder.
ClipTextFiles check_clip_text(const std::filesystem::path& folder, const std::string& pad);

}  // namespace adanat
