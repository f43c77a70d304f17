// Images to noisy PCA latents and back to patches: a thread block takes some tokens of one sample.
//
// Their latents stay in shared memory from the projection to the inverse PCA. Products are plain
// float32 multiply-adds; the Triton kernel is the one with matrix instructions.

#include "noise_cuda.h"
#include "normals.cuh"

namespace ldae {

constexpr int THREADS = 128;
constexpr int ROWS = 8;  // tokens that a thread works on at once

// tokens: of a thread block, a multiple of ROWS. Shared memory: latents (tokens, d), then one row of
// pixels of each patch, (piece, tokens + 4); the 4 keep writes apart.
struct Tiling {
  int64_t tokens, blocks, all, across, piece;  // blocks, all, across: of a sample
};

__device__ __forceinline__ float pixel(const PatchPCANoiseCall& a, int64_t sample, int64_t row,
                                       int64_t column, int64_t channel) {
  if (a.bytes)
    return float(int(a.bytes[((sample * a.rows + row) * a.columns + column) * a.channels + channel]) -
                 128);
  return a.floats[((sample * a.channels + channel) * a.rows + row) * a.columns + column];
}

__device__ __forceinline__ int64_t inside(int64_t corner, int64_t room) {
  return corner < 0 ? 0 : corner > room ? room : corner;
}

template <class T>
__global__ void patch_pca_noise_kernel(PatchPCANoiseCall a, Tiling t) {
  extern __shared__ float4 memory[];
  float* z = reinterpret_cast<float*>(memory);
  float* x = z + t.tokens * a.d;
  const int64_t wide = t.tokens + 4;
  const int64_t sample = blockIdx.x / t.blocks, first = blockIdx.x % t.blocks * t.tokens;
  const int64_t count = t.all - first < t.tokens ? t.all - first : t.tokens;
  const int64_t P = a.patch * t.piece;
  // Kept inside the image, whatever came: nothing may read beyond it.
  const int64_t top = a.crop ? inside(a.crop[2 * sample], a.rows - a.height) : 0;
  const int64_t left = a.crop ? inside(a.crop[2 * sample + 1], a.columns - a.width) : 0;
  const bool flip = a.flip && a.flip[sample];

  for (int64_t i = threadIdx.x; i < t.tokens * a.d; i += THREADS) z[i] = a.bias[i % a.d];
  for (int64_t r = 0; r < a.patch; ++r) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < t.tokens * t.piece; i += THREADS) {
      const int64_t j = i % t.piece, own = i / t.piece, token = first + own;
      const int64_t column = token % t.across * a.patch + j / a.channels;
      x[j * wide + own] =
          own < count ? pixel(a, sample, top + token / t.across * a.patch + r,
                              left + (flip ? a.width - 1 - column : column), j % a.channels)
                      : 0.0f;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < t.tokens / ROWS * a.d; i += THREADS) {
      const int64_t k = i % a.d, row = i / a.d * ROWS;
      const float* weight = a.weight + r * t.piece * a.d + k;
      float sum[ROWS] = {};
      for (int64_t j = 0; j < t.piece; ++j) {
        const float w = weight[j * a.d];
        const float4* values = reinterpret_cast<const float4*>(x + j * wide + row);
#pragma unroll
        for (int n = 0; n < ROWS / 4; ++n) {
          const float4 four = values[n];
          sum[4 * n] += four.x * w;
          sum[4 * n + 1] += four.y * w;
          sum[4 * n + 2] += four.z * w;
          sum[4 * n + 3] += four.w * w;
        }
      }
#pragma unroll
      for (int n = 0; n < ROWS; ++n) z[(row + n) * a.d + k] += sum[n];
    }
  }
  __syncthreads();

  // A block's latents lie in one piece of each output; ROWS tokens begin with a whole Philox block.
  const NoiseKey key{a.seed, uint32_t(a.step)};
  const float gamma = a.gamma[sample], sigma = a.sigma[sample];
  const int64_t element0 = first * a.d, place = sample * t.all * a.d + element0;
  const bool whole = t.all * a.d % GROUP == 0;
  for (int64_t i = threadIdx.x * GROUP; i < count * a.d; i += THREADS * GROUP) {
    const int many = int(count * a.d - i < GROUP ? count * a.d - i : GROUP);
    if (a.clean) store(z + i, static_cast<T*>(a.clean) + place + i, many, whole);
    if (!a.noisy && !a.noise && !a.patches) continue;
    float eps[GROUP];
    const uint32_t block = uint32_t((element0 + i) / 4);
    normals(key, uint64_t(a.ids[sample]), block, eps);
    normals(key, uint64_t(a.ids[sample]), block + 1, eps + 4);
    if (a.noise) store(eps, static_cast<T*>(a.noise) + place + i, many, whole);
#pragma unroll
    for (int n = 0; n < GROUP; ++n) z[i + n] = gamma * z[i + n] + sigma * eps[n];
    if (a.noisy) store(z + i, static_cast<T*>(a.noisy) + place + i, many, whole);
  }
  if (!a.patches) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < t.tokens / ROWS * P; i += THREADS) {
    const int64_t value = i % P, row = i / P * ROWS;
    float sum[ROWS] = {};
    for (int64_t k = 0; k < a.d; ++k) {
      const float w = a.back[k * P + value];
#pragma unroll
      for (int n = 0; n < ROWS; ++n) sum[n] += z[(row + n) * a.d + k] * w;
    }
    T* out = static_cast<T*>(a.patches) + (sample * t.all + first + row) * P + value;
#pragma unroll
    for (int n = 0; n < ROWS; ++n)
      if (row + n < count) convert(sum[n] + a.center[value], out[n * P]);
  }
}

}  // namespace ldae

int ldae_patch_pca_noise_cuda(const PatchPCANoiseCall* call, void* stream) {
  using namespace ldae;
  const auto& a = *call;
  const int64_t across = a.width / a.patch, all = a.height / a.patch * across;
  const int64_t piece = a.patch * a.channels;
  auto bytes = [&](int64_t tokens) { return 4 * (tokens * a.d + piece * (tokens + 4)); };
  int64_t tokens = 32;
  while (tokens > ROWS && bytes(tokens) > 100 * 1024) tokens /= 2;
  const int64_t blocks = (all + tokens - 1) / tokens;
  return by_kind(a.kind, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    return launch(patch_pca_noise_kernel<T>, a.batch * blocks, THREADS, size_t(bytes(tokens)),
                  stream, a, Tiling{tokens, blocks, all, across, piece});
  });
}
