// float32 and bfloat16, one value at a time, and the instruction set of this machine.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LDAE_INLINE __attribute__((always_inline)) inline

namespace ldae {

// Lengths are padded to whole vectors of this many floats, the widest set's.
constexpr int LANES = 16;

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// The upper half of a float32.
struct bf16 {
  uint16_t bits;
};

using half = _Float16;

inline float to_float(float x) { return x; }

inline float to_float(double x) { return float(x); }

inline float to_float(half x) { return float(x); }

inline float to_float(bf16 x) {
  uint32_t wide = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

template <class T>
double to_double(T x) { return to_float(x); }

inline double to_double(double x) { return x; }

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline double from_float<double>(float x) {
  return x;
}

template <>
inline half from_float<half>(float x) {
  return half(x);
}

// Round to nearest, ties to even; a NaN stays a NaN.
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  return {uint16_t(x == x ? rounded : 0x7fc0)};
}

enum class Isa { generic, avx2, avx512, avx512bf16 };

// The best instruction set that this processor and its system support, or the one that
// LDAE_ISA names; read once.
inline Isa isa() {
  static const Isa chosen = [] {
    const char* named = std::getenv("LDAE_ISA");
#if defined(__x86_64__) && defined(__GNUC__)
    Isa best = Isa::generic;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
      best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = Isa::avx512;
    if (best == Isa::avx512 && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vnni"))
      best = Isa::avx512bf16;
    if (named && !std::strcmp(named, "avx512") && best >= Isa::avx512) return Isa::avx512;
    if (named && !std::strcmp(named, "avx2") && best >= Isa::avx2) return Isa::avx2;
    if (named && !std::strcmp(named, "generic")) return Isa::generic;
    return best;
#else
    (void)named;
    return Isa::generic;
#endif
  }();
  return chosen;
}

}  // namespace ldae
