// The file that ADANAT_VERSIONS_OF names, once for each instruction set, in namespaces of these names.
// ADANAT_X86_VERSIONS is defined where there is more than `baseline`.
//
// GCC applies `#pragma GCC target` to the functions that follow, which gives one object per instruction set
// without per-file flags, and without inline functions of one set leaking into another. (target_clones would
// do the same for one function, but its versions cannot be called by name in a test.)
namespace baseline {
#include ADANAT_VERSIONS_OF
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ADANAT_X86_VERSIONS 1
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
#include ADANAT_VERSIONS_OF
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
namespace avx512 {
#include ADANAT_VERSIONS_OF
}
#pragma GCC pop_options
#endif
