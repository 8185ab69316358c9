#include "kernels/decode_step_row.h"

#include "kernels/philox.h"

namespace adanat::kernels {

#define ADANAT_VERSIONS_OF "kernels/decode_step_row.inl"
#include "kernels/isa_versions.inl"

RowFunction row_function([[maybe_unused]] Isa isa) {
#ifdef ADANAT_X86_VERSIONS
  if (isa == Isa::kAvx512) return avx512::draw_row;
  if (isa == Isa::kAvx2) return avx2::draw_row;
#endif
  return baseline::draw_row;
}

NoiseFunction noise_function([[maybe_unused]] Isa isa) {
#ifdef ADANAT_X86_VERSIONS
  if (isa == Isa::kAvx512) return avx512::philox_noise;
  if (isa == Isa::kAvx2) return avx2::philox_noise;
#endif
  return baseline::philox_noise;
}

}  // namespace adanat::kernels
