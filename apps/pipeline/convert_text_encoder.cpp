#include "apps/pipeline/convert_parts.h"
#include "core/text/clip_files.h"

namespace adanat {
namespace fs = std::filesystem;

std::vector<fs::path> read_text_encoder(const fs::path& folder, const GeneratorConfig& generator,
                                        const std::string& pad) {
  if (!fs::is_directory(folder))
    throw InputError(
        cat("--text-encoder ", folder.string(), ": is no folder; give a Hugging Face folder of CLIP"));
  const ClipTextFiles encoder = check_clip_text(folder, pad);
  const int64_t states = encoder.config.positions, width = encoder.config.width;
  if (states != generator.text_tokens || width != generator.text_width)
    throw InputError(
        cat("--text-encoder ", folder.string(), ": gives ", states, " states of width ", width,
            ", the generator wants ", generator.text_tokens, " of width ", generator.text_width,
            "; it was trained with another encoder",
            width == generator.text_width ? ", or --config must say another generator.text_tokens" : ""));
  return encoder.files;
}

}  // namespace adanat
