#include "apps/pipeline/convert_parts.h"
#include "core/io/atomic_file.h"
#include "core/text/clip_files.h"

namespace adanat {
namespace fs = std::filesystem;
namespace {

void copy_whole(const fs::path& from, const fs::path& to) {
  AtomicFile copy(to);
  const auto source = MappedFile::open(from);
  copy.write(source->data(), source->size());
  copy.commit();
}

}  // namespace

void copy_text_encoder(const fs::path& from, const fs::path& to, int64_t text_width, const std::string& pad) {
  if (!fs::is_directory(from))
    throw InputError(
        cat("--text-encoder ", from.string(), ": is no folder; give a Hugging Face folder of CLIP"));
  const ClipTextFiles encoder = check_clip_text(from, pad);
  if (encoder.config.width != text_width)
    throw InputError(cat("--text-encoder ", from.string(), ": the encoder's states are ",
                         encoder.config.width, " wide, the generator reads ", text_width,
                         "; it was trained with another encoder"));
  fs::create_directory(to);
  for (const fs::path& file : encoder.files) copy_whole(file, to / file.filename());
}

}  // namespace adanat
