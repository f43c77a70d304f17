// Rows of float32 or bfloat16 as vectors of float32, as wide as the instruction set has them.
//
// Included inside the namespace of each instruction set, so without a guard. Written out because
// GCC 12 widens a loop over bfloat16 to its narrowest type: two vectors of floats for one of
// bfloat16, taken apart and put together again by shuffles.
//
// `rounded` gives each value's bfloat16, to nearest and ties to even; AVX512-BF16 has that as one
// instruction, which takes denormal values for zeros. It keeps the NaNs of bfloat16 values and of
// arithmetic; one in a float32 argument may have ones in all its lower bits, which would carry into
// the sign, so Vectors::widen lets none of those in.

#if WIDTH == 512

typedef __m512 Floats;
typedef __m256i Halves;  // as many bfloat16

LDAE_INLINE Floats widened(Halves x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
#ifdef HAS_BF16
LDAE_INLINE Halves rounded(Floats x) { return Halves(_mm512_cvtneps_pbh(x)); }
#else
LDAE_INLINE Halves rounded(Floats x) {
  const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, half), 16));
}
#endif
LDAE_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
LDAE_INLINE Floats load(const bf16* from) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const Halves*>(from)));
}
LDAE_INLINE void store(Floats x, float* to) { _mm512_storeu_ps(to, x); }
LDAE_INLINE void store(Halves x, bf16* to) {
  _mm256_storeu_si256(reinterpret_cast<Halves*>(to), x);
}
LDAE_INLINE float sum(Floats x) { return _mm512_reduce_add_ps(x); }

#elif WIDTH == 256

typedef __m256 Floats;
typedef __m128i Halves;

LDAE_INLINE Floats widened(Halves x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
LDAE_INLINE Halves rounded(Floats x) {
  const __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i upper = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i twice = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0xD8);
  return _mm256_castsi256_si128(twice);
}
LDAE_INLINE Floats load(const float* from) { return _mm256_loadu_ps(from); }
LDAE_INLINE Floats load(const bf16* from) {
  return widened(_mm_loadu_si128(reinterpret_cast<const Halves*>(from)));
}
LDAE_INLINE void store(Floats x, float* to) { _mm256_storeu_ps(to, x); }
LDAE_INLINE void store(Halves x, bf16* to) { _mm_storeu_si128(reinterpret_cast<Halves*>(to), x); }
LDAE_INLINE float sum(Floats x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#else

typedef float Floats __attribute__((vector_size(16)));
struct Halves {
  bf16 x[4];
};

LDAE_INLINE Floats widened(Halves h) {
  return Floats{to_float(h.x[0]), to_float(h.x[1]), to_float(h.x[2]), to_float(h.x[3])};
}
LDAE_INLINE Halves rounded(Floats x) {
  Halves out;
  for (int i = 0; i < 4; ++i) out.x[i] = from_float<bf16>(x[i]);
  return out;
}
LDAE_INLINE Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
LDAE_INLINE Floats load(const bf16* from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return widened(x);
}
LDAE_INLINE void store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }
LDAE_INLINE void store(Halves x, bf16* to) { std::memcpy(to, &x, sizeof x); }
LDAE_INLINE float sum(Floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }

#endif

LDAE_INLINE void store(Floats x, bf16* to) { store(rounded(x), to); }

constexpr int64_t WIDE = sizeof(Floats) / sizeof(float);

// n in whole vectors.
inline int64_t whole(int64_t n) { return (n + WIDE - 1) / WIDE * WIDE; }

// The first `left` lanes where that is fewer than a vector's, with zeros in the others. No memcpy: a
// call, even one that is never made, would drive the sums of a loop out of their registers.
#if WIDTH == 512

LDAE_INLINE __mmask16 mask(int64_t left) { return __mmask16((1u << left) - 1); }
LDAE_INLINE Floats load(const float* from, int64_t left) {
  return left >= WIDE ? load(from) : _mm512_maskz_loadu_ps(mask(left), from);
}
LDAE_INLINE Floats load(const bf16* from, int64_t left) {
  if (left >= WIDE) [[likely]]
    return load(from);
  return widened(_mm256_maskz_loadu_epi16(mask(left), from));
}
LDAE_INLINE void store(Floats x, float* to, int64_t left) {
  left >= WIDE ? store(x, to) : _mm512_mask_storeu_ps(to, mask(left), x);
}
LDAE_INLINE void store(Halves x, bf16* to, int64_t left) {
  if (left >= WIDE) [[likely]]
    return store(x, to);
  _mm256_mask_storeu_epi16(to, mask(left), x);
}

#else

template <class T>
LDAE_INLINE Floats load(const T* from, int64_t left) {
  if (left >= WIDE) [[likely]]
    return load(from);
  float some[WIDE];
  for (int64_t i = 0; i < WIDE; ++i) some[i] = i < left ? to_float(from[i]) : 0;
  return load(some);
}
LDAE_INLINE void store(Floats x, float* to, int64_t left) {
  if (left >= WIDE) [[likely]]
    return store(x, to);
  for (int64_t i = 0; i < WIDE; ++i)
    if (i < left) to[i] = x[i];
}
LDAE_INLINE void store(Halves x, bf16* to, int64_t left) {
  if (left >= WIDE) [[likely]]
    return store(x, to);
  const Floats wide = widened(x);
  for (int64_t i = 0; i < WIDE; ++i)
    if (i < left) to[i] = from_float<bf16>(wide[i]);
}

#endif

LDAE_INLINE void store(Floats x, bf16* to, int64_t left) { store(rounded(x), to, left); }

// Stores x and returns what a reader will find there.
LDAE_INLINE Floats stored(Floats x, float* to, int64_t left) {
  store(x, to, left);
  return x;
}
LDAE_INLINE Floats stored(Floats x, bf16* to, int64_t left) {
  const Halves kept = rounded(x);
  store(kept, to, left);
  return widened(kept);
}

// Ones in the first n lanes, zeros in the others.
LDAE_INLINE Floats first(int64_t n) {
  float some[WIDE];
  for (int64_t i = 0; i < WIDE; ++i) some[i] = i < n;
  return load(some);
}
