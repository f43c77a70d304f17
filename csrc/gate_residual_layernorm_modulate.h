// Arguments of the adaLN kernels: x, y, h, out (B, T, D); vectors (B, D); mean, rstd (B, T).
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

// y and gate are null where nothing is added; then h is not written.
template <class T>
struct AdaLN {
  const T *x, *y;
  const float *gate, *shift, *scale;
  T *h, *out;
  float *mean, *rstd;
  int64_t tokens, width;
  float eps;
};

// y, gate, dh, dy and dgate are null where nothing was added.
template <class T>
struct AdaLNBackward {
  const T *dh, *dout, *h, *y;
  const float *gate, *scale, *mean, *rstd;
  T *dx, *dy;
  float *dgate, *dshift, *dscale;
  int64_t tokens, width;
};

// Samples begin..end-1.
template <class T>
void adaln_forward(const AdaLN<T>& a, int64_t begin, int64_t end);
template <class T>
void adaln_backward(const AdaLNBackward<T>& a, int64_t begin, int64_t end);

}  // namespace ldae
