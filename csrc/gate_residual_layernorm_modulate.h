// Arguments of the adaLN kernels: x, y, h, out (B, T, D); vectors (B, D); mean, rstd (B, T).
#pragma once

#include <cstdint>

#include "vec.h"
#include "vectors.h"

namespace ldae {

// Where nothing is added y and gate are not read and h is not written. An empty y is null too.
template <class T>
struct AdaLN {
  bool adds;
  const T *x, *y;
  Vectors gate, shift, scale;
  T *h, *out;
  float *mean, *rstd;
  int64_t tokens, width;
  float eps;
};

// Where nothing was added y, dh and gate are not read, dy and dgate not written.
template <class T>
struct AdaLNBackward {
  bool added;
  const T *dh, *dout, *h, *y;
  Vectors gate, scale;
  const float *mean, *rstd;
  T *dx, *dy;
  Vectors dgate, dshift, dscale;
  int64_t tokens, width;
};

// Samples begin..end-1.
template <class T>
void adaln_forward(const AdaLN<T>& a, int64_t begin, int64_t end);
template <class T>
void adaln_backward(const AdaLNBackward<T>& a, int64_t begin, int64_t end);

}  // namespace ldae
