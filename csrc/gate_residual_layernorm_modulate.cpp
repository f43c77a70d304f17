// h = x + gate y; out = LayerNorm(h) (1 + scale) + shift, and its backward, a sample at a time.
//
// One sample is (T, D) and has one shift, scale and gate, so the sums over its tokens stay on the
// thread that owns it: deterministic, no atomics. adds == false is the op without the residual sum.

#ifndef TARGET

#include "gate_residual_layernorm_modulate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "vec.h"

constexpr int64_t BLOCK = 16;  // tokens

#define SELF "gate_residual_layernorm_modulate.cpp"
#define WANTS_BF16
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

#include "lanes.h"

// Vectors of a sample, in whole vectors of floats: the lanes beyond the width are zeros.
struct Padded {
  std::vector<float> kept;
  int64_t wide;
  Padded(int64_t rows, int64_t width) : kept(rows * whole(width)), wide(whole(width)) {}
  float* operator[](int64_t row) { return kept.data() + row * wide; }
};

// Two rows at a time: the sums of one would keep the processor waiting.
template <class X>
struct Two {
  X a, b;
};
template <class X, class Y>
LDAE_INLINE auto operator+(Two<X> x, Two<Y> y) { return Two{x.a + y.a, x.b + y.b}; }
template <class X, class Y>
LDAE_INLINE auto operator-(Two<X> x, Two<Y> y) { return Two{x.a - y.a, x.b - y.b}; }
template <class X, class Y>
LDAE_INLINE auto operator*(Two<X> x, Two<Y> y) { return Two{x.a * y.a, x.b * y.b}; }
template <class X, class Y>
LDAE_INLINE auto operator+(Two<X> x, Y y) { return Two{x.a + y, x.b + y}; }
template <class X, class Y>
LDAE_INLINE auto operator*(Two<X> x, Y y) { return Two{x.a * y, x.b * y}; }
template <class X>
LDAE_INLINE Two<float> sum(Two<X> x) { return {sum(x.a), sum(x.b)}; }
LDAE_INLINE Floats together(Floats x) { return x; }
LDAE_INLINE Floats together(Two<Floats> x) { return x.a + x.b; }
LDAE_INLINE float inverse_root(float x) { return 1.0f / std::sqrt(x); }
// A variance that rounding made negative is 0; a NaN stays one.
LDAE_INLINE float not_negative(float x) { return x < 0 ? 0 : x; }
LDAE_INLINE Two<float> not_negative(Two<float> x) { return {not_negative(x.a), not_negative(x.b)}; }
LDAE_INLINE Two<float> inverse_root(Two<float> x) { return {inverse_root(x.a), inverse_root(x.b)}; }

// One row, or two that lie `apart`.
template <class V>
struct Rows;

template <>
struct Rows<Floats> {
  template <class T>
  static LDAE_INLINE Floats at(const T* from, int64_t, int64_t left) { return load(from, left); }
  static LDAE_INLINE float at(const float* from) { return *from; }
  template <class T>
  static LDAE_INLINE void put(Floats x, T* to, int64_t, int64_t left) { store(x, to, left); }
  template <class T>
  static LDAE_INLINE Floats stored(Floats x, T* to, int64_t, int64_t left) {
    return TARGET::stored(x, to, left);
  }
  static LDAE_INLINE void put(float x, float* to) { *to = x; }
};

template <>
struct Rows<Two<Floats>> {
  template <class T>
  static LDAE_INLINE Two<Floats> at(const T* from, int64_t apart, int64_t left) {
    return {load(from, left), load(from + apart, left)};
  }
  static LDAE_INLINE Two<float> at(const float* from) { return {from[0], from[1]}; }
  template <class T>
  static LDAE_INLINE void put(Two<Floats> x, T* to, int64_t apart, int64_t left) {
    store(x.a, to, left), store(x.b, to + apart, left);
  }
  template <class T>
  static LDAE_INLINE Two<Floats> stored(Two<Floats> x, T* to, int64_t apart, int64_t left) {
    return {TARGET::stored(x.a, to, left), TARGET::stored(x.b, to + apart, left)};
  }
  static LDAE_INLINE void put(Two<float> x, float* to) { to[0] = x.a, to[1] = x.b; }
};

// Asks for two rows to come while these two are worked on: rows follow each other too fast for the
// processor's own guess. Not the next two and not for the first cache, which has few requests under
// way at a time and all of them wanted for the row at hand.
template <class T>
LDAE_INLINE void ahead(const T* from, int64_t apart, int64_t i) {
  constexpr int SECOND_CACHE = 2;
  if (i % int64_t(64 / sizeof(T)) == 0) {  // once a line of the cache
    __builtin_prefetch(from + 4 * apart + i, 0, SECOND_CACHE);
    __builtin_prefetch(from + 5 * apart + i, 0, SECOND_CACHE);
  }
}

template <class V, class T>
LDAE_INLINE void forward_rows(const AdaLN<T>& a, int64_t r, const float* gate, const float* gain,
                              const float* shift, float* kept) {
  using R = Rows<V>;
  const int64_t D = a.width, wide = whole(D);
  const float part = 1.0f / D;
  const T *x = a.x + r * D, *y = a.y + (gate ? r * D : 0);
  T *h = a.h + (gate ? r * D : 0), *out = a.out + r * D;
  V total = {};
  for (int64_t i = 0; i < D; i += WIDE) {
    V row = R::at(x + i, D, D - i);
    if (gate) row = R::stored(row + R::at(y + i, D, D - i) * load(gate + i), h + i, D, D - i);
    R::put(row, kept + i, wide, WIDE);
    total = total + row;
  }
  const auto near = sum(total) * part;
  // The second pass also sums the differences themselves, which corrects the first one's mean.
  V differences = {}, squares = {};
  for (int64_t i = 0; i < D; i += WIDE) {
    V difference = R::at(kept + i, wide, WIDE) - near;
    if (D - i < WIDE) difference = difference * first(D - i);
    R::put(difference, kept + i, wide, WIDE);
    differences = differences + difference;
    squares = squares + difference * difference;
  }
  const auto rest = sum(differences) * part, mean = near + rest;
  const auto rstd = inverse_root(not_negative(sum(squares) * part - rest * rest) + a.eps);
  R::put(mean, a.mean + r);
  R::put(rstd, a.rstd + r);
  const auto offset = rest * rstd * -1.0f;
  for (int64_t i = 0; i < D; i += WIDE) {
    ahead(x, D, i), ahead(out, D, i);
    if (gate) ahead(y, D, i), ahead(h, D, i);
    const V normalised = R::at(kept + i, wide, WIDE) * rstd + offset;
    R::put(normalised * load(gain + i) + load(shift + i), out + i, D, D - i);
  }
}

// 1 + a sample's scale.
void widen_gain(const Vectors& scale, int64_t b, int64_t D, float* gain) {
  scale.widen(b, D, gain);
  for (int64_t i = 0; i < D; ++i) gain[i] += 1;
}

template <class T>
void forward(const AdaLN<T>& a, int64_t begin, int64_t end) {
  const int64_t D = a.width;
  Padded rows(5, D);
  float *gate = a.adds ? rows[0] : nullptr, *gain = rows[1], *shift = rows[2], *kept = rows[3];
  for (int64_t b = begin; b < end; ++b) {
    if (gate) a.gate.widen(b, D, gate);
    widen_gain(a.scale, b, D, gain);
    a.shift.widen(b, D, shift);
    int64_t r = b * a.tokens, last = r + a.tokens;
    for (; r + 2 <= last; r += 2) forward_rows<Two<Floats>>(a, r, gate, gain, shift, kept);
    if (r < last) forward_rows<Floats>(a, r, gate, gain, shift, kept);
  }
}

// dh = dh_out + rstd (g - mean(g) - n mean(g n)), with n the normalised h and g = dout (1 + scale).
template <class V, class T>
LDAE_INLINE void backward_rows(const AdaLNBackward<T>& a, int64_t r, const float* gate,
                               const float* gain, float* shifts, float* scales, float* gates,
                               float* kept) {
  using R = Rows<V>;
  const int64_t D = a.width, wide = whole(D);
  const float part = 1.0f / D;
  const T *h = a.h + r * D, *dout = a.dout + r * D;
  const T *y = a.y + (gate ? r * D : 0), *dh = a.dh + (gate ? r * D : 0);
  T *dx = a.dx + r * D, *dy = a.dy + (gate ? r * D : 0);
  float *normalised = kept, *upstream = kept + 2 * wide;
  const auto mean = R::at(a.mean + r), rstd = R::at(a.rstd + r);
  V total = {}, products = {}, differences = {};
  for (int64_t i = 0; i < D; i += WIDE) {
    V n = (R::at(h + i, D, D - i) - mean) * rstd;
    if (D - i < WIDE) n = n * first(D - i);
    const V up = R::at(dout + i, D, D - i), g = up * load(gain + i);
    R::put(n, normalised + i, wide, WIDE);
    R::put(up, upstream + i, wide, WIDE);
    total = total + g;
    products = products + g * n;
    differences = differences + n;
  }
  // What the rounded mean left of n's own mean is taken off: narrow rows magnify it.
  const auto level = sum(total) * part, rest = sum(differences) * part;
  const auto slope = sum(products) * part - rest * level;
  const auto tilt = slope * rstd, lift = level * rstd;
  for (int64_t i = 0; i < D; i += WIDE) {
    ahead(h, D, i), ahead(dout, D, i), ahead(dx, D, i);
    if (gate) ahead(y, D, i), ahead(dh, D, i), ahead(dy, D, i);
    const V n = R::at(normalised + i, wide, WIDE) - rest, up = R::at(upstream + i, wide, WIDE);
    V d = up * load(gain + i) * rstd - (n * tilt + lift);
    store(load(shifts + i) + together(up), shifts + i);
    store(load(scales + i) + together(up * n), scales + i);
    if (gate) {
      d = d + R::at(dh + i, D, D - i);
      R::put(d * load(gate + i), dy + i, D, D - i);
      store(load(gates + i) + together(d * R::at(y + i, D, D - i)), gates + i);
    }
    R::put(d, dx + i, D, D - i);
  }
}

template <class T>
void backward(const AdaLNBackward<T>& a, int64_t begin, int64_t end) {
  const int64_t D = a.width;
  Padded rows(12, D);
  float *gate = a.added ? rows[0] : nullptr, *gain = rows[1];
  float *shifts = rows[2], *scales = rows[3], *gates = rows[4], *kept = rows[5], *sums = rows[9];
  for (int64_t b = begin; b < end; ++b) {
    if (gate) a.gate.widen(b, D, gate);
    widen_gain(a.scale, b, D, gain);
    std::fill(sums, sums + 3 * rows.wide, 0.0f);
    // Sums of sums: the error grows with the block and the number of blocks, not their product.
    for (int64_t first = 0; first < a.tokens; first += BLOCK) {
      std::fill(shifts, shifts + 3 * rows.wide, 0.0f);
      int64_t r = b * a.tokens + first, last = r + std::min(BLOCK, a.tokens - first);
      for (; r + 2 <= last; r += 2)
        backward_rows<Two<Floats>>(a, r, gate, gain, shifts, scales, gates, kept);
      if (r < last) backward_rows<Floats>(a, r, gate, gain, shifts, scales, gates, kept);
      for (int64_t i = 0; i < 3 * rows.wide; ++i) sums[i] += shifts[i];
    }
    a.dshift.narrow(sums, D, b);
    a.dscale.narrow(sums + rows.wide, D, b);
    if (gate) a.dgate.narrow(sums + 2 * rows.wide, D, b);
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
