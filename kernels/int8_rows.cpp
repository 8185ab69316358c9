#include "kernels/int8_rows.h"

#include <cstring>

#include "kernels/float_math.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

namespace adanat::kernels {

#define ADANAT_VERSIONS_OF "kernels/int8_rows.inl"
#include "kernels/isa_versions.inl"

const Int8Rows& int8_rows([[maybe_unused]] Isa isa) {
#ifdef ADANAT_X86_VERSIONS
  if (isa == Isa::kAvx512) return avx512::kRows;
  if (isa == Isa::kAvx2) return avx2::kRows;
#endif
  return baseline::kRows;
}

bool has_int8_products() {
#if defined(__x86_64__) && defined(__GNUC__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  // The system must keep the wide registers too, which the tests of x86-64-v3 and v4 look at.
  const bool avx512 = isa_available(Isa::kAvx512) && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 &&
                      (c >> 11 & 1) != 0;  // AVX512_VNNI
  const bool avx2 = isa_available(Isa::kAvx2) && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
                    (a >> 4 & 1) != 0;  // AVX-VNNI
  return avx512 || avx2;
#else
  return false;
#endif
}

}  // namespace adanat::kernels
