// gelu(u + bias) and its backward with the sum over rows, each in one pass over memory.
//
// The exact form is x Phi(x) with Phi(-z) = pdf(z) M(z), M being Mills' ratio. In t = 1 / (1 + k z),
// M(z) = t Q(t); Q is a polynomial fitted to scipy's erfcx by its relative error, so the far tail is
// as good as the middle. For float32 results the fit is of 1.2e-8; for bfloat16 ones, which are
// rounded by 4e-3 at most, Q is good to 2.3e-4, the power of two to 7.5e-5 and, with AVX-512, the
// reciprocal to 6e-5.

#ifndef TARGET

#include "mlp_gelu.h"

#include <algorithm>
#include <vector>

#define SELF "mlp_gelu.cpp"
#define WANTS_BF16
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

#include "lanes.h"
#include "exponential.h"

LDAE_INLINE Floats magnitude(Floats x) { return Floats(Whole(x) & 0x7fffffff); }

// The polynomial of x with these coefficients, from x^0 up, by pairs (Estrin): one after the other
// (Horner), each sum would wait for the one before it.
template <int N>
LDAE_INLINE Floats polynomial(Floats x, const Floats (&c)[N]) {
  if constexpr (N == 1) {
    return c[0];
  } else {
    Floats pairs[(N + 1) / 2];
    for (int i = 0; i < N / 2; ++i) pairs[i] = c[2 * i + 1] * x + c[2 * i];
    if (N % 2) pairs[N / 2] = c[N - 1];
    return polynomial(x * x, pairs);
  }
}
template <class... C>
LDAE_INLINE Floats powers(Floats x, C... c) {
  const Floats all[] = {Floats{} + c...};
  return polynomial(x, all);
}

// exp(x) for x <= 0, to about one unit in the last place; 0 below -87, where it is 1.6e-38.
LDAE_INLINE Floats exp_negative(Floats x) {
  const Floats bounded = x < -87.0f ? all(-87.0f) : x;
  const Floats shifted = bounded * 1.44269504f + MAGIC, n = shifted - MAGIC;
  const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  const Floats p = powers(r, 5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f,
                          8.3334519073e-3f, 1.3981999507e-3f, 1.9875691e-4f) * r * r + r + 1.0f;
  return x < -87.0f ? Floats{} : times_power(p, shifted);
}

// 1 / x, with AVX-512 to 6e-5 of it.
LDAE_INLINE Floats reciprocal_roughly(Floats x) {
#if WIDTH == 512
  return _mm512_rcp14_ps(x);
#else
  return 1.0f / x;
#endif
}

struct Both {
  Floats value, slope;
};

template <bool Enough>
LDAE_INLINE Both exact(Floats x) {
  Floats pdf, tail;  // Phi(-|x|)
  if constexpr (Enough) {
    pdf = exp2_roughly(x * x * -0.721347520f, 0.398942280f);
    const Floats t = reciprocal_roughly(1.0f + magnitude(x) * 0.3f);
    tail = pdf * t * (((0.52349606f * t + 0.08920539f) * t + 0.34460662f) * t + 0.29629446f);
  } else {
    const Floats z = magnitude(x) * 0.707106781f;
    const Floats e = exp_negative(-z * z);
    const Floats t = 1.0f / (1.0f + z * 0.375f);
    const Floats q = powers(t, 0.211613492f, 0.210649359f, 0.205315806f, 0.121494753f,
                            0.273751664f, -0.229457347f, 0.432441852f, -0.287353535f,
                            0.0615439624f);
    pdf = e * 0.398942280f;
    tail = 0.5f * t * q * e;
  }
  const Floats phi = x < 0 ? tail : 1.0f - tail;
  return {x * phi, phi + x * pdf};
}

// x sigmoid(2 v) with v = sqrt(2 / pi) (x + 0.044715 x^3), which is the tanh form rewritten.
template <bool Enough>
LDAE_INLINE Both approximate(Floats x) {
  const Floats square = x * x;
  const Floats v2 = 1.59576912f * x * (1.0f + 0.044715f * square);
  Floats small;  // sigmoid(-|v2|)
  if constexpr (Enough) {
    const Floats e = exp2_roughly(magnitude(v2) * -1.44269504f, 1.0f);
    small = e * reciprocal_roughly(1.0f + e);
  } else {
    const Floats e = exp_negative(-magnitude(v2));
    small = e / (1.0f + e);
  }
  const Floats s = v2 < 0 ? small : 1.0f - small;
  const Floats dv2 = 1.59576912f * (1.0f + 0.134145f * square);
  return {x * s, s + x * (small * (1.0f - small)) * dv2};
}

template <class T, bool Tanh>
LDAE_INLINE Both gelu(Floats x) {
  constexpr bool Enough = sizeof(T) < sizeof(float);
  return Tanh ? approximate<Enough>(x) : exact<Enough>(x);
}

// The bias in whole vectors of floats.
inline std::vector<float> padded_bias(const Vectors& bias, int64_t width) {
  std::vector<float> kept(whole(width));
  bias.widen(0, width, kept.data());
  return kept;
}

template <class T, bool Tanh>
void forward_rows(const BiasGelu<T>& a, int64_t begin, int64_t end) {
  const std::vector<float> bias = padded_bias(a.bias, a.width);
  for (int64_t r = begin; r < end; ++r) {
    const T* u = a.u + r * a.width;
    T* out = a.out + r * a.width;
    for (int64_t i = 0; i < a.width; i += WIDE) {
      const Floats x = load(u + i, a.width - i) + load(&bias[i]);
      store(gelu<T, Tanh>(x).value, out + i, a.width - i);
    }
  }
}

template <class T, bool Tanh>
void backward_chunks(const BiasGeluBackward<T>& a, int64_t begin, int64_t end) {
  const std::vector<float> bias = padded_bias(a.bias, a.width);
  std::vector<float> sums(bias.size());
  for (int64_t c = begin; c < end; ++c) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    const int64_t last = a.rows * (c + 1) / a.chunks;
    for (int64_t r = a.rows * c / a.chunks; r < last; ++r) {
      const T *u = a.u + r * a.width, *dout = a.dout + r * a.width;
      T* du = a.du + r * a.width;
      for (int64_t i = 0; i < a.width; i += WIDE) {
        const Floats x = load(u + i, a.width - i) + load(&bias[i]);
        const Floats d = load(dout + i, a.width - i) * gelu<T, Tanh>(x).slope;
        store(d, du + i, a.width - i);
        store(load(&sums[i]) + d, &sums[i]);
      }
    }
    std::copy_n(sums.begin(), a.width, a.dsums + c * a.width);
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
