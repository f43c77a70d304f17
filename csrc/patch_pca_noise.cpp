// Images to noisy PCA latents, one strip of tokens at a time; nothing larger than a strip is kept.
//
// Bytes are multiplied as they are where the machine can and bfloat16 is asked for (digits.h). Else a
// pixel row of the strip becomes floats once, and each token's piece of it (p C values) is multiplied
// with the rows of the weights that belong to it, so that the weights at hand stay in the first-level
// cache and sums are short: p C products in registers, then p of such sums.

#ifndef TARGET

#include "patch_pca_noise.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define SELF "patch_pca_noise.cpp"
#define WANTS_BF16
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

#include "normals.h"
#ifdef HAS_BF16
#include "byte_products.h"
#endif

template <class T>
inline void store(const float* from, int64_t tokens, int64_t stride, int64_t count, T* out) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < count; ++k) out[t * count + k] = from_float<T>(from[t * stride + k]);
}

// Latents (tokens, wide) of a strip. A mirrored image is its tokens from right to left, times weights
// with mirrored columns.
template <class T>
inline void project(const PatchPCANoise<T>& a, int64_t sample, int64_t strip, float* row,
                    float* latents) {
  const Images& in = a.images;
  const int64_t wide = padded(a.d), tokens = in.across(), piece = in.piece();
#ifdef HAS_BF16
  if (a.digits.straight)
    return multiply_bytes(in, sample, strip, a.digits, a.bias, wide, latents);
#endif
  for (int64_t t = 0; t < tokens; ++t) std::copy_n(a.bias, wide, latents + t * wide);
  const bool flip = in.flip && in.flip[sample];
  const float* left = flip ? row + (tokens - 1) * piece : row;
  for (int64_t r = 0; r < in.patch; ++r) {
    read_row(in, sample, strip * in.patch + r, in.bytes ? MIDDLE : 0, row);
    multiply<WIDTH>(left, tokens, piece, flip ? -piece : piece,
                    (flip ? a.mirrored : a.weight) + r * piece * wide, wide, latents);
  }
}

template <class T>
void strips(const PatchPCANoise<T>& a, int64_t begin, int64_t end) {
  const Images& in = a.images;
  const int64_t d = a.d, wide = padded(d), P = in.values(), wideP = padded(P);
  const int64_t tokens = in.across();
  const bool noise = a.noisy || a.noise || a.patches;
  std::vector<float> row(in.width * in.channels), latents(tokens * wide);
  std::vector<float> pixels(a.patches ? tokens * wideP : 0);
  // A strip may begin and end in the middle of a block of 4.
  std::vector<float> eps(noise ? 4 * padded(tokens * d / 4 + 2) : 0);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t sample = n / in.strips(), strip = n % in.strips(), first = n * tokens;
    project(a, sample, strip, row.data(), latents.data());
    if (a.clean) store(latents.data(), tokens, wide, d, a.clean + first * d);
    if (!noise) continue;
    const int64_t element = strip * tokens * d, block = element / 4;
    const int64_t blocks = (element + tokens * d + 3) / 4 - block;
    normals(a.key, uint64_t(a.ids[sample]), uint64_t(block), blocks, eps.data());
    const float* own = eps.data() + element % 4;
    if (a.noise) store(own, tokens, d, d, a.noise + first * d);
    const float gamma = a.gamma[sample], sigma = a.sigma[sample];
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t k = 0; k < d; ++k)
        latents[t * wide + k] = gamma * latents[t * wide + k] + sigma * own[t * d + k];
    if (a.noisy) store(latents.data(), tokens, wide, d, a.noisy + first * d);
    if (!a.patches) continue;
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(a.center, wideP, pixels.data() + t * wideP);
    multiply<WIDTH>(latents.data(), tokens, d, wide, a.back, wideP, pixels.data());
    store(pixels.data(), tokens, wideP, P, a.patches + first * P);
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
