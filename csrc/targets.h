// Compiles the file named by SELF once for each instruction set, in a namespace of its own.
//
// A kernel file defines SELF, includes this, and puts what depends on the instruction set between
// `#ifdef TARGET` and `#endif`. Intel and AMD compilers' -march=native would tie the binary to the
// machine that built it; here the right copy is chosen at run time. WIDTH is the set's vector width
// in bits: GCC 12 has read a whole file before a target pragma could define __AVX512F__ in it. A
// file that defines PAIRS has a fourth copy, with AVX-512's products of pairs of bfloat16.

#define TARGET generic
#define WIDTH 128
#include SELF
#undef WIDTH
#undef TARGET

#if defined(__x86_64__) && defined(__GNUC__)

#define TARGET avx2
#define WIDTH 256
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include SELF
#pragma GCC pop_options
#undef WIDTH
#undef TARGET

#define TARGET avx512
#define WIDTH 512
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#include SELF
#pragma GCC pop_options
#undef WIDTH
#undef TARGET

#ifdef PAIRS
#define TARGET avx512bf16
#define WIDTH 512
#define PRODUCTS_OF_PAIRS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("avx512bf16")
#include SELF
#pragma GCC pop_options
#undef PRODUCTS_OF_PAIRS
#undef WIDTH
#undef TARGET
#endif

#endif
