// Powers of two by vectors of float32, as exact as a result in bfloat16 asks for.
//
// Included inside the namespace of each instruction set, after lanes.h, so without a guard.

typedef int32_t Whole __attribute__((vector_size(sizeof(Floats))));

LDAE_INLINE Floats all(float x) { return Floats{} + x; }

// factor 2^x for x <= 0, to 7.5e-5 of it.
LDAE_INLINE Floats exp2_roughly(Floats x, float factor) {
#if WIDTH == 512
  const Floats r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  x = x < -126.0f ? all(-126.0f) : x;
  const Floats magic = all(12582912.0f), whole = (x - 0.5f) + magic, r = x - (whole - magic);
#endif
  const Floats p = ((factor * 0.07802455f * r + factor * 0.22606718f) * r +
                    factor * 0.69583349f) * r + factor * 0.99992523f;
#if WIDTH == 512
  return _mm512_scalef_ps(p, x);
#else
  return Floats(Whole(p) + (Whole(whole) << 23));
#endif
}
