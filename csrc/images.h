// Images as the ops read them, a row of a sample's window at a time, and products of short rows.
//
// Everything here is inlined into the kernels, which are compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

constexpr int MIDDLE = 128;  // taken off bytes, which is exact, to keep their sums small

// The window (height, width) of each image; the whole image without a crop.
struct Images {
  const uint8_t* bytes;   // (B, H, W, C), or null
  const float* floats;    // (B, C, H, W), or null
  int64_t rows, columns;  // H, W
  const bool* flip;       // (B), or null
  const int64_t* crop;    // (B, 2), or null
  int64_t height, width, channels, patch;

  int64_t strips() const { return height / patch; }  // rows of tokens
  int64_t across() const { return width / patch; }   // tokens of a strip
  int64_t tokens() const { return strips() * across(); }
  int64_t piece() const { return patch * channels; }  // values of a token in a row of pixels
  int64_t values() const { return patch * piece(); }
  // Where value i of a patch goes when its rows are turned around; channels keep their order.
  int64_t mirrored(int64_t i) const {
    return i + (patch - 1 - 2 * (i % piece() / channels)) * channels;
  }
  // The first pixel of a row of the sample's window, of bytes.
  const uint8_t* row(int64_t sample, int64_t r) const {
    const int64_t top = crop ? crop[2 * sample] : 0, left = crop ? crop[2 * sample + 1] : 0;
    return bytes + ((sample * rows + top + r) * columns + left) * channels;
  }
};

// Row `row` of the sample's window as floats, width * C of them, not mirrored; bytes less `less`,
// which is exact.
LDAE_INLINE void read_row(const Images& in, int64_t sample, int64_t row, int less, float* out) {
  const int64_t C = in.channels, width = in.width;
  if (in.bytes) {
    const uint8_t* from = in.row(sample, row);
    for (int64_t i = 0; i < width * C; ++i) out[i] = float(int(from[i]) - less);
    return;
  }
  const int64_t top = in.crop ? in.crop[2 * sample] : 0;
  const int64_t left = in.crop ? in.crop[2 * sample + 1] : 0;
  for (int64_t c = 0; c < C; ++c) {
    const float* from = in.floats + ((sample * C + c) * in.rows + top + row) * in.columns + left;
    for (int64_t x = 0; x < width; ++x) out[x * C + c] = from[x];
  }
}

// Vectors of W floats, as wide as the instruction set has them: GCC keeps wider ones in memory.
template <int W>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * W), aligned(4), may_alias));
};

// out += values weight, for N rows and V vectors of columns.
template <int N, int V, int W>
LDAE_INLINE void tile(const float* values, int64_t count, int64_t stride, const float* weight,
                      int64_t wide, float* out) {
  typedef typename VectorOf<W>::type Vector;
  Vector sums[N][V] = {};
  for (int64_t j = 0; j < count; ++j) {
    Vector w[V];
    for (int v = 0; v < V; ++v)
      w[v] = *reinterpret_cast<const Vector*>(weight + j * wide + v * W);
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < V; ++v) sums[n][v] += values[n * stride + j] * w[v];
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) *reinterpret_cast<Vector*>(out + n * wide + v * W) += sums[n][v];
}

template <int N, int V, int W>
LDAE_INLINE void columns(const float* values, int64_t rows, int64_t count, int64_t stride,
                         const float* weight, int64_t wide, float* out) {
  int64_t t = 0;
  for (; t + N <= rows; t += N)
    tile<N, V, W>(values + t * stride, count, stride, weight, wide, out + t * wide);
  for (; t < rows; ++t)
    tile<1, V, W>(values + t * stride, count, stride, weight, wide, out + t * wide);
}

// out (rows, wide) += values (rows, count; rows `stride` apart) weight (count, wide), for an
// instruction set of that many bits: as many sums at a time as it has registers for.
template <int BITS>
LDAE_INLINE void multiply(const float* values, int64_t rows, int64_t count, int64_t stride,
                          const float* weight, int64_t wide, float* out) {
  constexpr int N = BITS == 512 ? 8 : 4, W = BITS / 32;
  int64_t first = 0;
  for (; first + 2 * W <= wide; first += 2 * W)
    columns<N, 2, W>(values, rows, count, stride, weight + first, wide, out + first);
  for (; first < wide; first += W)
    columns<N, 1, W>(values, rows, count, stride, weight + first, wide, out + first);
}

}  // namespace ldae
