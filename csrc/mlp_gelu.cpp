// gelu(u + bias) and its backward with the sum over rows, each in one pass over memory.
//
// The exact form is x Phi(x), Phi(-|x|) = erfc(|x| / sqrt 2) / 2. With z = |x| / sqrt 2 and
// t = 1 / (1 + 0.375 z), erfc(z) exp(z^2) = t Q(t); Q is a polynomial fitted to scipy's erfcx on
// [0, 10] with a relative error of 1.2e-8, so the far tail is as good as the middle.

#ifndef TARGET

#include "mlp_gelu.h"

#include <cmath>

#define SELF "mlp_gelu.cpp"
#include "targets.h"

namespace ldae {

template <class T>
void bias_gelu_forward(const BiasGelu<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(forward(a, begin, end))
}

template <class T>
void bias_gelu_backward(const BiasGeluBackward<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(backward(a, begin, end))
}

template void bias_gelu_forward(const BiasGelu<float>&, int64_t, int64_t);
template void bias_gelu_forward(const BiasGelu<bf16>&, int64_t, int64_t);
template void bias_gelu_backward(const BiasGeluBackward<float>&, int64_t, int64_t);
template void bias_gelu_backward(const BiasGeluBackward<bf16>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

// exp(x) for x <= 0, to about one unit in the last place; 0 below the smallest normal float.
inline float exp_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float whole = x * 1.44269504f + magic;
  const float n = whole - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits, shift;
  std::memcpy(&bits, &p, 4);
  std::memcpy(&shift, &whole, 4);
  bits += shift << 23;  // times 2^n: the low bits of `whole` hold n
  std::memcpy(&p, &bits, 4);
  return p;
}

struct Both {
  float value, slope;
};

inline Both exact(float x) {
  const float z = std::fabs(x) * 0.707106781f;
  const float e = exp_negative(-z * z);
  const float t = 1.0f / (1.0f + 0.375f * z);
  float q = 0.0615439624f;
  q = q * t - 0.287353535f;
  q = q * t + 0.432441852f;
  q = q * t - 0.229457347f;
  q = q * t + 0.273751664f;
  q = q * t + 0.121494753f;
  q = q * t + 0.205315806f;
  q = q * t + 0.210649359f;
  q = q * t + 0.211613492f;
  const float tail = 0.5f * t * q * e;
  const float phi = x < 0 ? tail : 1.0f - tail;
  return {x * phi, phi + x * e * 0.398942280f};
}

// x sigmoid(2 v) with v = sqrt(2 / pi) (x + 0.044715 x^3), which is the tanh form rewritten.
inline Both approximate(float x) {
  const float square = x * x;
  const float v2 = 1.59576912f * x * (1.0f + 0.044715f * square);
  const float e = exp_negative(-std::fabs(v2));
  const float small = e / (1.0f + e);
  const float s = v2 < 0 ? small : 1.0f - small;
  const float dv2 = 1.59576912f * (1.0f + 0.134145f * square);
  return {x * s, s + x * (small * (1.0f - small)) * dv2};
}

template <class T, bool Tanh>
void forward_rows(const BiasGelu<T>& a, int64_t begin, int64_t end) {
  const float* bias = a.bias;
  for (int64_t r = begin; r < end; ++r) {
    const T* u = a.u + r * a.width;
    T* out = a.out + r * a.width;
#pragma omp simd
    for (int64_t i = 0; i < a.width; ++i) {
      const float x = to_float(u[i]) + bias[i];
      out[i] = from_float<T>((Tanh ? approximate(x) : exact(x)).value);
    }
  }
}

template <class T, bool Tanh>
void backward_chunks(const BiasGeluBackward<T>& a, int64_t begin, int64_t end) {
  const float* bias = a.bias;
  for (int64_t c = begin; c < end; ++c) {
    float* sums = a.dsums + c * a.width;
    for (int64_t i = 0; i < a.width; ++i) sums[i] = 0;
    const int64_t last = a.rows * (c + 1) / a.chunks;
    for (int64_t r = a.rows * c / a.chunks; r < last; ++r) {
      const T *u = a.u + r * a.width, *dout = a.dout + r * a.width;
      T* du = a.du + r * a.width;
#pragma omp simd
      for (int64_t i = 0; i < a.width; ++i) {
        const float x = to_float(u[i]) + bias[i];
        const float d = to_float(dout[i]) * (Tanh ? approximate(x) : exact(x)).slope;
        du[i] = from_float<T>(d);
        sums[i] += d;
      }
    }
  }
}

template <class T>
void forward(const BiasGelu<T>& a, int64_t begin, int64_t end) {
  a.tanh ? forward_rows<T, true>(a, begin, end) : forward_rows<T, false>(a, begin, end);
}

template <class T>
void backward(const BiasGeluBackward<T>& a, int64_t begin, int64_t end) {
  a.tanh ? backward_chunks<T, true>(a, begin, end) : backward_chunks<T, false>(a, begin, end);
}

}  // namespace TARGET
}  // namespace ldae

#endif
