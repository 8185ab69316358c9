#include "kernels/isa.h"

namespace adanat::kernels {

bool isa_available(Isa isa) {
  if (isa == Isa::kBaseline) return true;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  return isa == Isa::kAvx512 ? __builtin_cpu_supports("x86-64-v4") : __builtin_cpu_supports("x86-64-v3");
#else
  return false;
#endif
}

Isa best_isa() {
  static const Isa best = isa_available(Isa::kAvx512) ? Isa::kAvx512
                          : isa_available(Isa::kAvx2) ? Isa::kAvx2
                                                      : Isa::kBaseline;
  return best;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "x86-64-v4";
    case Isa::kAvx2:
      return "x86-64-v3";
    default:
      return "baseline";
  }
}

}  // namespace adanat::kernels
