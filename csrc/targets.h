// Compiles the file named by SELF once for each instruction set, in a namespace of its own.
//
// A kernel file defines SELF, includes this, and puts what depends on the instruction set between
// `#ifdef TARGET` and `#endif`. Intel and AMD compilers' -march=native would tie the binary to the
// machine that built it; here the right copy is chosen at run time. WIDTH is the set's vector width
// in bits: GCC 12 has read a whole file before a target pragma could define __AVX512F__ in it. A
// file that defines WANTS_BF16 has a fourth copy, with AVX512-BF16 and AVX512-VNNI, which sees
// HAS_BF16. LDAE_DISPATCH calls the copy for this machine.

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

#ifdef WANTS_BF16
#define TARGET avx512bf16
#define WIDTH 512
#define HAS_BF16
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC target("avx512bf16,avx512vnni")
#include SELF
#pragma GCC pop_options
#undef HAS_BF16
#undef WIDTH
#undef TARGET
#define LDAE_AVX512BF16 avx512bf16
#else
#define LDAE_AVX512BF16 avx512
#endif

#define LDAE_DISPATCH(CALL)                                         \
  switch (::ldae::isa()) {                                          \
    case ::ldae::Isa::avx512bf16: return LDAE_AVX512BF16::CALL;     \
    case ::ldae::Isa::avx512: return avx512::CALL;                  \
    case ::ldae::Isa::avx2: return avx2::CALL;                      \
    default: return generic::CALL;                                  \
  }

#else
#define LDAE_DISPATCH(CALL) return generic::CALL;
#endif
