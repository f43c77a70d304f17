// The weighted PCA residue of a prediction against its image, with the gradient, one strip of tokens
// at a time: image and prediction are read once and the gradient is written once.

#ifndef TARGET

#include "denoise_loss.h"

#include <algorithm>
#include <vector>

#define SELF "denoise_loss.cpp"
#include "targets.h"

namespace ldae {

template <class T>
void denoise_loss(const DenoiseLoss<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(strips(a, begin, end))
}

template void denoise_loss(const DenoiseLoss<float>&, int64_t, int64_t);
template void denoise_loss(const DenoiseLoss<bf16>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

constexpr int64_t SUM = 256;  // products summed in one go: longer sums lose digits

inline void product(const float* values, int64_t rows, int64_t count, int64_t stride,
                    const float* weight, int64_t wide, float* out) {
  for (int64_t k = 0; k < count; k += SUM)
    multiply<WIDTH>(values + k, rows, std::min(SUM, count - k), stride, weight + k * wide,
                    wide, out);
}

inline double square_sum(const float* x, const float* weight, int64_t count) {
  float sum = 0;
  if (weight) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += weight[i] * x[i] * x[i];
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
  }
  return sum;
}

// Asks the second cache for what is read or written before long: a row of pixels is a short piece of
// every token, which the processor's own guesses do not follow.
template <class T>
LDAE_INLINE void ahead(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i, 0, 2);
}

// The pixels of a row from right to left; the channels of each keep their order.
inline void mirror(float* row, int64_t width, int64_t channels) {
  float *left = row, *right = row + (width - 1) * channels;
  for (; left < right; left += channels, right -= channels)
    std::swap_ranges(left, left + channels, right);
}

// e (tokens, wide P) of a strip: target less prediction. Asks for the next strip's prediction and for
// the lines that this one's gradient goes to.
template <class T>
void errors(const DenoiseLoss<T>& a, int64_t sample, int64_t strip, float* row, float* e) {
  const Images& in = a.images;
  const int64_t tokens = in.across(), piece = in.piece(), P = in.values(), wide = padded(P);
  const T* pred = a.pred + (sample * in.tokens() + strip * tokens) * P;
  for (int64_t r = 0; r < in.patch; ++r) {
    read_row(in, sample, strip * in.patch + r, 0, row);
    if (in.flip && in.flip[sample]) mirror(row, in.width, in.channels);
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = row + t * piece;
      const T* guess = pred + t * P + r * piece;
      float* out = e + t * wide + r * piece;
      ahead(guess + tokens * P, piece);
      if (a.dpred) ahead(a.dpred + (guess - a.pred), piece);
#pragma omp simd
      for (int64_t j = 0; j < piece; ++j)
        out[j] = from[j] * a.factor[j] - a.offset[j] - to_float(guess[j]);
    }
  }
}

template <class T>
void strips(const DenoiseLoss<T>& a, int64_t begin, int64_t end) {
  const Images& in = a.images;
  const int64_t tokens = in.across(), P = in.values(), wideP = padded(P), wide = padded(a.d);
  std::vector<float> row(in.width * in.channels), error(tokens * wideP), latents(tokens * wide);
  float *e = error.data(), *z = latents.data();
  for (int64_t n = begin; n < end; ++n) {
    const int64_t sample = n / in.strips(), strip = n % in.strips();
    errors(a, sample, strip, row.data(), e);
    std::fill(latents.begin(), latents.end(), 0.0f);
    product(e, tokens, P, wideP, a.turned, wide, z);
    double total = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      if (a.rest != 0) total += a.rest * square_sum(e + t * wideP, nullptr, P);
      total += square_sum(z + t * wide, a.excess, a.d);
    }
    a.sums[n] = total;
    if (!a.dpred) continue;
    const float slope = a.slope[sample], rest = a.rest;
#pragma omp simd
    for (int64_t i = 0; i < tokens * wideP; ++i) e[i] *= rest;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t k = 0; k < wide; ++k) z[t * wide + k] *= a.excess[k];
    product(z, tokens, a.d, wide, a.basis, wideP, e);
    T* out = a.dpred + (sample * in.tokens() + strip * tokens) * P;
    for (int64_t t = 0; t < tokens; ++t)
#pragma omp simd
      for (int64_t i = 0; i < P; ++i) out[t * P + i] = from_float<T>(slope * e[t * wideP + i]);
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
