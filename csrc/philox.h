// Philox 4x32-10 (Salmon et al., SC 2011) and Box-Muller: four standard normals a block.
//
// Counter (block, sample id low, sample id high, step), key (seed low, seed high), as in
// kernels/normal/reference.py. The rounds are in normals.h for a CPU, 64 blocks at a time, and in
// normals.cuh for a GPU, block by block.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LDAE_BOTH __host__ __device__ __forceinline__
#else
#define LDAE_BOTH __attribute__((always_inline)) inline
#endif

namespace ldae {

struct NoiseKey {
  uint64_t seed;
  uint32_t step;
};

LDAE_BOTH float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

LDAE_BOTH uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// sqrt(-2 ln u) for u = n 2^-24, where n, from 1 to 2^24, is one more than the word's upper 24 bits.
LDAE_BOTH float radius_of(uint32_t word) {
  // u = m 2^e with m in [sqrt 1/2, sqrt 2), whose lower end has these bits.
  constexpr int32_t LEAST = 0x3f3504f3;
  const float n = float(int32_t((word >> 8) + 1));
  const int32_t above = int32_t(bits_of(n)) - (LEAST + (24 << 23));
  const float e = float(above >> 23), m = float_of(uint32_t((above & 0x7fffff) + LEAST));
  // ln(1 + f) = f - f^2/2 + f^3 P(f), P fitted on the interval with an error below 1e-9.
  const float f = m - 1.0f, square = f * f;
  float p = 0.06915447115898132f;
  p = p * f - 0.1178993359208107f;
  p = p * f + 0.1187300831079483f;
  p = p * f - 0.12384330481290817f;
  p = p * f + 0.14218652248382568f;
  p = p * f - 0.16669251024723053f;
  p = p * f + 0.20002226531505585f;
  p = p * f - 0.24999986588954926f;
  p = p * f + 0.3333331048488617f;
  const float log =
      e * 0.693359375f + (f + (p * f * square + (-0.5f * square + e * -2.12194440e-4f)));
  return std::sqrt(-2.0f * log);
}

// radius (cos, sin) of the angle that is the word's upper 24 bits of a circle. The angle is exact: it is
// reduced to an eighth as a whole number, and the quarter in its upper two bits swaps and signs.
LDAE_BOTH void on_circle(float radius, uint32_t word, float& one, float& two) {
  const uint32_t quarter = word + (1u << 29);
  const float x = float(int32_t(word >> 8 << 10)) * 3.657295198167899e-10f;  // 2 pi 2^-34
  const float z = x * x;
  const float sine =
      x + x * z * (-0.16666655242443085f + z * (0.008332177996635437f - z * 0.00019517265900503844f));
  const float cosine =
      1.0f - 0.5f * z +
      z * z * (0.04166664555668831f + z * (-0.001388736767694354f + z * 2.443841367494315e-05f));
  const bool odd = int32_t(quarter << 1) < 0;
  const uint32_t a = bits_of(radius * (odd ? sine : cosine));
  const uint32_t b = bits_of(radius * (odd ? cosine : sine));
  one = float_of(a ^ ((quarter + (1u << 30)) & 0x80000000u));
  two = float_of(b ^ (quarter & 0x80000000u));
}

}  // namespace ldae
