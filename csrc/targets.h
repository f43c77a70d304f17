// Compiles the file named by SELF once for each instruction set, in a namespace of its own.
//
// A kernel file defines SELF, includes this, and puts what depends on the instruction set between
// `#ifdef TARGET` and `#endif`. Intel and AMD compilers' -march=native would tie the binary to the
// machine that built it; here the right copy is chosen at run time.

#define TARGET generic
#include SELF
#undef TARGET

#if defined(__x86_64__) && defined(__GNUC__)

#define TARGET avx2
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include SELF
#pragma GCC pop_options
#undef TARGET

#define TARGET avx512
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#include SELF
#pragma GCC pop_options
#undef TARGET

#endif
