#include "apps/pipeline/editor.h"

#include <ATen/ops/from_blob.h>

namespace adanat {

Editor::Editor(Pipeline& pipeline, const Image& image, const EditRequest& request)
    : plan_(plan_edit(image, request, int(pipeline.config().image_size),
                      int(pipeline.config().tokenizer->factor()))),
      mask_id_(pipeline.generator().mask_id()) {
  const int64_t s = plan_.image.width;
  const at::Tensor pixels = at::from_blob(plan_.image.rgb.data(), {1, s, s, 3}, at::kByte);
  tokens_ = pipeline.encode(pixels.permute({0, 3, 1, 2})).squeeze(0).contiguous();
}

at::Tensor Editor::start(int64_t seed, int64_t first_index, int64_t count) const {
  at::Tensor start = tokens_.unsqueeze(0).repeat({count, 1});
  auto* id = start.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i)
    for (const uint8_t anew : plan_.choose(seed, first_index + i)) {
      if (anew) *id = mask_id_;
      ++id;
    }
  return start;
}

void Editor::paste_back(const at::Tensor& images, int64_t seed, int64_t first_index) const {
  const int64_t values = 3 * int64_t(plan_.image.width) * plan_.image.height;
  TORCH_CHECK(images.scalar_type() == at::kByte && images.is_contiguous() && images.device().is_cpu() &&
                  images.numel() == images.size(0) * values,
              "paste_back: images must be (B, 3, S, S) bytes on the CPU, got ", images.sizes());
  for (int64_t i = 0; i < images.size(0); ++i)
    adanat::paste_back(plan_, plan_.choose(seed, first_index + i),
                       images.mutable_data_ptr<uint8_t>() + i * values);
}

}  // namespace adanat
