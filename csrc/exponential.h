// Powers of two by vectors of float32.
//
// Included inside the namespace of each instruction set, after lanes.h, so without a guard.

typedef int32_t Whole __attribute__((vector_size(sizeof(Floats))));

LDAE_INLINE Floats all(float x) { return Floats{} + x; }

constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: x + MAGIC is MAGIC + n, n being x rounded

// p 2^n of p in [0.99, 2] and `shifted` = MAGIC + n, whose low bits hold n; n at least -126.
LDAE_INLINE Floats times_power(Floats p, Floats shifted) {
  return Floats(Whole(p) + (Whole(shifted) << 23));
}

// factor 2^x for x <= 0, to 7.5e-5 of it, as exact as a result in bfloat16 asks for; 0 where the
// power is less than the smallest normal float.
LDAE_INLINE Floats exp2_roughly(Floats x, float factor) {
#if WIDTH == 512
  const Floats r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const float f = factor;
#else
  const Floats bounded = x < -126.0f ? all(-126.0f) : x;
  const Floats shifted = (bounded - 0.5f) + MAGIC, r = bounded - (shifted - MAGIC);
  const float f = 1;  // p would leave the range that times_power takes
#endif
  const Floats p =
      ((f * 0.07802455f * r + f * 0.22606718f) * r + f * 0.69583349f) * r + f * 0.99992523f;
#if WIDTH == 512
  return _mm512_scalef_ps(p, x);
#else
  return x < -126.0f ? Floats{} : factor * times_power(p, shifted);
#endif
}
