// Arguments of the noise kernel. One strip is a row of tokens of one sample.
#pragma once

#include "digits.h"
#include "images.h"
#include "philox.h"

namespace ldae {

// weight (P, wide d): latents = (values - offset) weight + bias, offset 128 for bytes and 0 for
// floats. mirrored: weight with each patch's columns of pixels from right to left.
// back (d, wide P), center (wide P): patches = latents back + center.
// With digits given, latents = values digits + bias, of bytes, and weight and mirrored are null.
// clean, noisy, noise (B, T, d) and patches (B, T, P): null where not wanted.
template <class T>
struct PatchPCANoise {
  Images images;
  const float *weight, *mirrored, *bias, *back, *center, *gamma, *sigma;
  Digits digits;
  const int64_t* ids;
  NoiseKey key;
  T *clean, *noisy, *patches, *noise;
  int64_t d;
};

template <class T>
void patch_pca_noise(const PatchPCANoise<T>& a, int64_t first_strip, int64_t last_strip);

}  // namespace ldae
