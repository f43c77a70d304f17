// Images to noisy PCA latents, one strip of tokens at a time; nothing larger than a strip is kept.
//
// A pixel row of the strip becomes floats once, and each token's piece of it (p C values) is
// multiplied with the rows of the weights that belong to it, so that the weights at hand stay in
// the first-level cache and sums are short: p C products in registers, then p of such sums.

#ifndef TARGET

#include "patch_pca_noise.h"

#include <algorithm>
#include <vector>

namespace ldae {
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
}

#define SELF "patch_pca_noise.cpp"
#include "targets.h"

namespace ldae {

template <class T>
void patch_pca_noise(const PatchPCANoise<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(strips(a, begin, end))
}

template void patch_pca_noise(const PatchPCANoise<float>&, int64_t, int64_t);
template void patch_pca_noise(const PatchPCANoise<bf16>&, int64_t, int64_t);
template void patch_pca_noise(const PatchPCANoise<half>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

// Row `row` of the sample's window as floats, columns * C of them; bytes less 128, which is exact.
template <class T>
void read_row(const PatchPCANoise<T>& a, int64_t sample, int64_t row, float* out) {
  const Images& in = a.images;
  const int64_t C = a.channels, width = a.width;
  const int64_t top = in.crop ? in.crop[2 * sample] : 0, left = in.crop ? in.crop[2 * sample + 1] : 0;
  if (in.bytes) {
    const uint8_t* from = in.bytes + ((sample * in.rows + top + row) * in.columns + left) * C;
    for (int64_t i = 0; i < width * C; ++i) out[i] = float(int(from[i]) - 128);
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
    const float* from = in.floats + ((sample * C + c) * in.rows + top + row) * in.columns + left;
    for (int64_t x = 0; x < width; ++x) out[x * C + c] = from[x];
  }
}

// out[t][..] += values[t][..] weight for N tokens and V vectors of columns.
template <int N, int V>
inline void tile(const float* values, int64_t count, int64_t stride, const float* weight,
                 int64_t wide, float* out, int64_t out_stride) {
  Vector sums[N][V] = {};
  for (int64_t j = 0; j < count; ++j) {
    Vector w[V];
    for (int v = 0; v < V; ++v) std::memcpy(&w[v], weight + j * wide + v * LANES, sizeof(Vector));
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < V; ++v) sums[n][v] += values[n * stride + j] * w[v];
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) {
      Vector total;
      std::memcpy(&total, out + n * out_stride + v * LANES, sizeof(Vector));
      total += sums[n][v];
      std::memcpy(out + n * out_stride + v * LANES, &total, sizeof(Vector));
    }
}

// out (tokens, wide) += values (tokens, count; rows `stride` apart) weight (count, wide).
inline void multiply(const float* values, int64_t tokens, int64_t count, int64_t stride,
                     const float* weight, int64_t wide, float* out) {
#ifdef __AVX512F__
  constexpr int N = 8;
#else
  constexpr int N = 4;
#endif
  int64_t column = 0;
#ifdef __AVX512F__
  for (; column + 2 * LANES <= wide; column += 2 * LANES) {
    int64_t t = 0;
    for (; t + N <= tokens; t += N)
      tile<N, 2>(values + t * stride, count, stride, weight + column, wide, out + t * wide + column, wide);
    for (; t < tokens; ++t)
      tile<1, 2>(values + t * stride, count, stride, weight + column, wide, out + t * wide + column, wide);
  }
#endif
  for (; column < wide; column += LANES) {
    int64_t t = 0;
    for (; t + N <= tokens; t += N)
      tile<N, 1>(values + t * stride, count, stride, weight + column, wide, out + t * wide + column, wide);
    for (; t < tokens; ++t)
      tile<1, 1>(values + t * stride, count, stride, weight + column, wide, out + t * wide + column, wide);
  }
}

template <class T>
inline void store(const float* from, int64_t tokens, int64_t stride, int64_t count, T* out) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < count; ++k) out[t * count + k] = from_float<T>(from[t * stride + k]);
}

template <class T>
void strips(const PatchPCANoise<T>& a, int64_t begin, int64_t end) {
  const int64_t d = a.d, wide = (d + LANES - 1) / LANES * LANES;
  const int64_t P = a.values(), wideP = (P + LANES - 1) / LANES * LANES;
  const int64_t tokens = a.tokens(), piece = a.patch * a.channels;
  const bool noise = a.noisy || a.noise || a.patches;
  // 1 block more than the strip's elements may begin in the middle of a block.
  const int64_t blocks = tokens * d / 4 + 2, batches = (blocks + BLOCKS - 1) / BLOCKS;
  std::vector<float> row(a.width * a.channels), latents(tokens * wide);
  std::vector<float> eps(noise ? batches * 4 * BLOCKS : 0), pixels(a.patches ? tokens * wideP : 0);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t sample = n / a.strips(), strip = n % a.strips(), first = n * tokens;
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(a.bias, wide, latents.data() + t * wide);
    // A mirrored image is its tokens from right to left, times weights with mirrored columns.
    const bool flip = a.images.flip && a.images.flip[sample];
    const float* left = flip ? row.data() + (tokens - 1) * piece : row.data();
    for (int64_t r = 0; r < a.patch; ++r) {
      read_row(a, sample, strip * a.patch + r, row.data());
      multiply(left, tokens, piece, flip ? -piece : piece,
               (flip ? a.mirrored : a.weight) + r * piece * wide, wide, latents.data());
    }
    if (a.clean) store(latents.data(), tokens, wide, d, a.clean + first * d);
    if (!noise) continue;
    const int64_t element = strip * tokens * d, block = element / 4;
    for (int64_t i = 0; i < batches; ++i)
      normals(a.key, uint64_t(a.ids[sample]), uint64_t(block + i * BLOCKS), eps.data() + i * 4 * BLOCKS);
    const float* own = eps.data() + element % 4;
    if (a.noise) store(own, tokens, d, d, a.noise + first * d);
    const float gamma = a.gamma[sample], sigma = a.sigma[sample];
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t k = 0; k < d; ++k)
        latents[t * wide + k] = gamma * latents[t * wide + k] + sigma * own[t * d + k];
    if (a.noisy) store(latents.data(), tokens, wide, d, a.noisy + first * d);
    if (!a.patches) continue;
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(a.center, wideP, pixels.data() + t * wideP);
    multiply(latents.data(), tokens, d, wide, a.back, wideP, pixels.data());
    store(pixels.data(), tokens, wideP, P, a.patches + first * P);
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
