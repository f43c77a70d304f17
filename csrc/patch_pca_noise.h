// Arguments of the noise kernel. One strip is a row of tokens of one sample, cut from the window
// (height, width) at (top, left) of its image.
#pragma once

#include <cstdint>

#include "philox.h"
#include "vec.h"

namespace ldae {

constexpr int LANES = 16;  // d and P are padded to whole vectors of this many floats

struct Images {
  const uint8_t* bytes;   // (B, H, W, C), or null
  const float* floats;    // (B, C, H, W), or null
  int64_t rows, columns;  // H, W
  const bool* flip;       // (B), or null
  const int64_t* crop;    // (B, 2), or null
};

// weight (P, wide d): latents = (values - offset) weight + bias, offset 128 for bytes and 0 for
// floats. mirrored: weight with each patch's columns of pixels from right to left. back (d, wide P), center (wide P): patches = latents back + center.
// clean, noisy, noise (B, T, d) and patches (B, T, P): null where not wanted.
template <class T>
struct PatchPCANoise {
  Images images;
  const float *weight, *mirrored, *bias, *back, *center, *gamma, *sigma;
  const int64_t* ids;
  NoiseKey key;
  T *clean, *noisy, *patches, *noise;
  int64_t height, width, channels, patch, d;

  int64_t strips() const { return height / patch; }
  int64_t tokens() const { return width / patch; }  // a strip
  int64_t values() const { return patch * patch * channels; }
};

template <class T>
void patch_pca_noise(const PatchPCANoise<T>& a, int64_t first_strip, int64_t last_strip);

}  // namespace ldae
