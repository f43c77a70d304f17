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

// The angle is exact: turn 2^24ths of a circle are reduced to an eighth as whole numbers.
LDAE_BOTH void box_muller(uint32_t first, uint32_t second, float& one, float& two) {
  // ln u for u = n 2^-24, n from 1 to 2^24: u = m 2^e with m in [sqrt 1/2, sqrt 2).
  const float u = float(int32_t((first >> 8) + 1)) * 5.9604644775390625e-8f;
  int32_t bits;
  std::memcpy(&bits, &u, 4);
  const int32_t e = (bits - 0x3f3504f3) >> 23;
  bits -= e * (1 << 23);
  float m;
  std::memcpy(&m, &bits, 4);
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
  const float log = float(e) * 0.693359375f +
                    (f + (p * f * square + (-0.5f * square + float(e) * -2.12194440e-4f)));
  const float radius = std::sqrt(-2.0f * log);
  const int32_t turn = int32_t(second >> 8), quarter = (turn + (1 << 21)) >> 22;
  const float x = float(turn - quarter * (1 << 22)) * 3.7450702829239286e-7f;  // 2 pi 2^-24
  const float z = x * x;
  const float sine =
      x + x * z * (-0.16666655242443085f + z * (0.008332177996635437f - z * 0.00019517265900503844f));
  const float cosine =
      1.0f - 0.5f * z +
      z * z * (0.04166664555668831f + z * (-0.001388736767694354f + z * 2.443841367494315e-05f));
  const bool odd = quarter & 1;
  const float a = odd ? sine : cosine, b = odd ? cosine : sine;
  one = radius * ((quarter + 1) & 2 ? -a : a);
  two = radius * (quarter & 2 ? -b : b);
}

}  // namespace ldae
