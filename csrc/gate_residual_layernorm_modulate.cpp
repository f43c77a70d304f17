// h = x + gate y; out = LayerNorm(h) (1 + scale) + shift, and its backward, a sample at a time.
//
// One sample is (T, D) and has one shift, scale and gate, so the sums over its tokens stay on the
// thread that owns it: deterministic, no atomics. y == nullptr is the op without the residual sum.

#ifndef TARGET

#include "gate_residual_layernorm_modulate.h"

#include <cmath>
#include <vector>

#include "vec.h"

constexpr int64_t BLOCK = 16;  // tokens

#define SELF "gate_residual_layernorm_modulate.cpp"
#include "targets.h"

namespace ldae {

template <class T>
void adaln_forward(const AdaLN<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(forward(a, begin, end))
}

template <class T>
void adaln_backward(const AdaLNBackward<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(backward(a, begin, end))
}

template void adaln_forward(const AdaLN<float>&, int64_t, int64_t);
template void adaln_forward(const AdaLN<bf16>&, int64_t, int64_t);
template void adaln_backward(const AdaLNBackward<float>&, int64_t, int64_t);
template void adaln_backward(const AdaLNBackward<bf16>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

template <class T>
void forward(const AdaLN<T>& a, int64_t begin, int64_t end) {
  const int64_t D = a.width;
  std::vector<float> kept(D);
  float* row = kept.data();
  for (int64_t b = begin; b < end; ++b) {
    const float* shift = a.shift + b * D;
    const float* scale = a.scale + b * D;
    const float* gate = a.y ? a.gate + b * D : nullptr;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const int64_t r = b * a.tokens + t;
      const T* x = a.x + r * D;
      float sum = 0;
      if (gate) {
        const T* y = a.y + r * D;
        T* h = a.h + r * D;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < D; ++i) {
          h[i] = from_float<T>(to_float(x[i]) + gate[i] * to_float(y[i]));
          row[i] = to_float(h[i]);
          sum += row[i];
        }
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < D; ++i) {
          row[i] = to_float(x[i]);
          sum += row[i];
        }
      }
      // The second pass also sums the differences themselves, which corrects the first one's mean.
      const float near = sum / D;
      float rest = 0, squares = 0;
#pragma omp simd reduction(+ : rest, squares)
      for (int64_t i = 0; i < D; ++i) {
        const float difference = row[i] - near;
        rest += difference;
        squares += difference * difference;
      }
      const float mean = near + rest / D;
      const float rstd = 1.0f / std::sqrt((squares - rest * rest / D) / D + a.eps);
      a.mean[r] = mean;
      a.rstd[r] = rstd;
      T* out = a.out + r * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i)
        out[i] = from_float<T>((row[i] - mean) * rstd * (1 + scale[i]) + shift[i]);
    }
  }
}

// dh = dh_out + rstd (g - mean(g) - n mean(g n)), with n the normalised h and g = dout (1 + scale).
template <class T>
void backward(const AdaLNBackward<T>& a, int64_t begin, int64_t end) {
  const int64_t D = a.width;
  std::vector<float> kept(5 * D);
  float *n = kept.data(), *g = n + D, *shifts = g + D, *scales = shifts + D, *gates = scales + D;
  for (int64_t b = begin; b < end; ++b) {
    const float* scale = a.scale + b * D;
    const float* gate = a.y ? a.gate + b * D : nullptr;
    float *dshift = a.dshift + b * D, *dscale = a.dscale + b * D;
    float* dgate = a.y ? a.dgate + b * D : nullptr;
    for (int64_t i = 0; i < D; ++i) dshift[i] = dscale[i] = 0;
    if (gate)
      for (int64_t i = 0; i < D; ++i) dgate[i] = 0;
    for (int64_t t = 0; t < a.tokens; ++t) {
      // Sums of sums: the error grows with the block and the number of blocks, not their product.
      if (t % BLOCK == 0)
        for (int64_t i = 0; i < D; ++i) shifts[i] = scales[i] = gates[i] = 0;
      const int64_t r = b * a.tokens + t;
      const T *h = a.h + r * D, *dout = a.dout + r * D;
      const float mean = a.mean[r], rstd = a.rstd[r];
      float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t i = 0; i < D; ++i) {
        const float up = to_float(dout[i]);
        n[i] = (to_float(h[i]) - mean) * rstd;
        g[i] = up * (1 + scale[i]);
        shifts[i] += up;
        scales[i] += up * n[i];
        sum += g[i];
        dot += g[i] * n[i];
      }
      sum /= D;
      dot /= D;
      T* dx = a.dx + r * D;
      if (gate) {
        const T *y = a.y + r * D, *dh = a.dh + r * D;
        T* dy = a.dy + r * D;
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) {
          const float total = to_float(dh[i]) + rstd * (g[i] - sum - n[i] * dot);
          dx[i] = from_float<T>(total);
          dy[i] = from_float<T>(total * gate[i]);
          gates[i] += total * to_float(y[i]);
        }
      } else {
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) dx[i] = from_float<T>(rstd * (g[i] - sum - n[i] * dot));
      }
      if (t % BLOCK == BLOCK - 1 || t + 1 == a.tokens) {
        for (int64_t i = 0; i < D; ++i) {
          dshift[i] += shifts[i];
          dscale[i] += scales[i];
        }
        if (gate)
          for (int64_t i = 0; i < D; ++i) dgate[i] += gates[i];
      }
    }
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
