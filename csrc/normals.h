// Philox 4x32-10 and Box-Muller over up to 64 blocks at a time: 256 standard normals.
//
// Included inside the namespace of each instruction set, so without a guard. Compilers multiply two
// 32-bit words to 64 bits by way of wider lanes; here even and odd words are multiplied where they
// are, which makes the whole a third faster.

constexpr int BLOCKS = 64;  // a batch of blocks; 4 normals each

#if WIDTH == 512

typedef __m512i Words;
constexpr int WORDS = 16;

inline Words all(uint32_t x) { return _mm512_set1_epi32(int(x)); }
inline Words counting(uint32_t first) {
  const Words lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_add_epi32(all(first), lane);
}
inline Words mixed(Words a, Words b, Words c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
inline void store(Words x, uint32_t* to) { _mm512_storeu_si512(to, x); }
inline void wide_product(Words x, uint32_t by, Words& high, Words& low) {
  const Words factor = _mm512_set1_epi64(by);
  const Words even = _mm512_mul_epu32(x, factor);
  const Words odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
  high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
  low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
}

#elif WIDTH == 256

typedef __m256i Words;
constexpr int WORDS = 8;

inline Words all(uint32_t x) { return _mm256_set1_epi32(int(x)); }
inline Words counting(uint32_t first) {
  return _mm256_add_epi32(all(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Words mixed(Words a, Words b, Words c) {
  return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
}
inline void store(Words x, uint32_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
}
inline void wide_product(Words x, uint32_t by, Words& high, Words& low) {
  const Words factor = _mm256_set1_epi64x(by);
  const Words even = _mm256_mul_epu32(x, factor);
  const Words odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

#else

typedef uint32_t Words;
constexpr int WORDS = 1;

inline Words all(uint32_t x) { return x; }
inline Words counting(uint32_t first) { return first; }
inline Words mixed(Words a, Words b, Words c) { return a ^ b ^ c; }
inline void store(Words x, uint32_t* to) { *to = x; }
inline void wide_product(Words x, uint32_t by, Words& high, Words& low) {
  const uint64_t product = uint64_t(x) * by;
  high = uint32_t(product >> 32);
  low = uint32_t(product);
}

#endif

// The four words of `blocks` blocks from `first` on, of one sample, by ten rounds.
inline void philox_words(const NoiseKey& key, uint64_t id, uint32_t first, int blocks,
                         uint32_t (&words)[4][BLOCKS]) {
  for (int i = 0; i < blocks; i += WORDS) {
    Words c0 = counting(first + uint32_t(i)), c1 = all(uint32_t(id)), c2 = all(uint32_t(id >> 32));
    Words c3 = all(key.step);
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      Words high0, low0, high2, low2;
      wide_product(c0, 0xD2511F53u, high0, low0);
      wide_product(c2, 0xCD9E8D57u, high2, low2);
      c0 = mixed(high2, c1, all(k0));
      c1 = low2;
      c2 = mixed(high0, c3, all(k1));
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    store(c0, words[0] + i), store(c1, words[1] + i);
    store(c2, words[2] + i), store(c3, words[3] + i);
  }
}

// The normals of blocks first, first + 1, ... of one sample; `out` holds 4 padded(blocks).
inline void normals(const NoiseKey& key, uint64_t id, uint64_t first, int64_t blocks, float* out) {
  uint32_t words[4][BLOCKS];
  float lanes[4][BLOCKS];
  for (int64_t done = 0; done < blocks; done += BLOCKS, out += 4 * BLOCKS) {
    const int batch = blocks - done < BLOCKS ? int(padded(blocks - done)) : BLOCKS;
    philox_words(key, id, uint32_t(first + uint64_t(done)), batch, words);
#pragma omp simd
    for (int i = 0; i < batch; ++i) {
      box_muller(words[0][i], words[1][i], lanes[0][i], lanes[1][i]);
      box_muller(words[2][i], words[3][i], lanes[2][i], lanes[3][i]);
    }
    for (int i = 0; i < batch; ++i)
      for (int k = 0; k < 4; ++k) out[4 * i + k] = lanes[k][i];
  }
}
