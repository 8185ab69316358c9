#include "kernels/decode_step_row.h"

#include "kernels/philox.h"

// GCC applies `#pragma GCC target` to the functions that follow, which gives one object per instruction set
// without per-file flags, and without inline functions of one set leaking into another. (target_clones would
// do the same for one function, but its versions cannot be called by name in a test.)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ADANAT_X86_VERSIONS 1
#endif

namespace adanat::kernels {

namespace baseline {
#include "kernels/decode_step_row.inl"
}

#ifdef ADANAT_X86_VERSIONS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
#include "kernels/decode_step_row.inl"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace avx512 {
#include "kernels/decode_step_row.inl"
}
#pragma GCC pop_options
#endif

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
