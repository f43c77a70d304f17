// Whole patches times weights in digits, as digits.h lays them out.
//
// Included inside the namespace of the instruction set that has products of bytes.

// Rows of pixels asked for before they are read: the processor's own guesses stop at a row's end.
constexpr int64_t ROWS_AHEAD = 4;

// Sums of products as GCC keeps them in registers: __m512i, which is of 64-bit numbers, it does not.
typedef int32_t Sums __attribute__((vector_size(64)));

LDAE_INLINE Sums plus_product(Sums sum, __m512i bytes, __m512i weights) {
  return Sums(_mm512_dpbusd_epi32(__m512i(sum), bytes, weights));
}

// Where a strip's tokens lie in its image, and how they are multiplied.
struct Strip {
  const uint8_t* first;  // the first token's first pixel
  int64_t row, apart;    // bytes to the next row of pixels, to the next token
  int64_t rows, fours;   // of a token, and four values each of a row
};

// 16 latents of N tokens: (256 high + low) unit + bias.
template <int N>
LDAE_INLINE void tile(const Strip& s, int64_t token, const int8_t* digits, int64_t wide,
                      const float* unit, const float* bias, float* out) {
  Sums high[N] = {}, low[N] = {};
  const uint8_t* first = s.first + token * s.apart;
  for (int64_t r = 0; r < s.rows; ++r, first += s.row) {
    for (int n = 0; n < N; ++n) __builtin_prefetch(first + ROWS_AHEAD * s.row + n * s.apart);
    for (int64_t i = 0; i < s.fours; ++i, digits += 8 * wide) {
      const __m512i h = _mm512_loadu_si512(digits), l = _mm512_loadu_si512(digits + 4 * wide);
      for (int n = 0; n < N; ++n) {
        int32_t four;
        std::memcpy(&four, first + n * s.apart + 4 * i, 4);
        const __m512i pixels = _mm512_set1_epi32(four);
        high[n] = plus_product(high[n], pixels, h);
        low[n] = plus_product(low[n], pixels, l);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    const __m512 h = _mm512_cvtepi32_ps(__m512i(high[n])), l = _mm512_cvtepi32_ps(__m512i(low[n]));
    const __m512 z = (h * 256.0f + l) * _mm512_loadu_ps(unit) + _mm512_loadu_ps(bias);
    _mm512_storeu_ps(out + (token + n) * wide, z);
  }
}

// Latents (tokens, wide) of a strip, 16 at a time, so that their digits stay in the first cache.
inline void multiply_bytes(const Images& in, int64_t sample, int64_t strip, const Digits& by,
                           const float* bias, int64_t wide, float* out) {
  const bool flip = in.flip && in.flip[sample];
  const int64_t tokens = in.across(), piece = in.piece();
  const uint8_t* left = in.row(sample, strip * in.patch);
  const Strip s{flip ? left + (tokens - 1) * piece : left, in.columns * in.channels,
                flip ? -piece : piece, in.patch, piece / 4};
  for (int64_t k = 0; k < wide; k += 16) {
    const int8_t* digits = (flip ? by.mirrored : by.straight) + 4 * k;
    int64_t t = 0;
    const auto of = [&](auto n) {
      constexpr int N = decltype(n)::value;
      for (; t + N <= tokens; t += N) tile<N>(s, t, digits, wide, by.unit + k, bias + k, out + k);
    };
    of(std::integral_constant<int, 8>{});
    of(std::integral_constant<int, 4>{});
    of(std::integral_constant<int, 1>{});
  }
}
