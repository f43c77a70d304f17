// Philox 4x32-10 and Box-Muller over up to 64 blocks at a time: 256 standard normals.
//
// Included inside the namespace of each instruction set, so without a guard. A word of a block is the
// lower half of a 64-bit lane, as a product leaves it: its upper half is one shift away, and nothing is
// put together before the last round. What stands in a word's upper half does not matter.

constexpr int BLOCKS = 64;  // a batch of blocks; 4 normals each

#if WIDTH == 512

typedef __m512i Words;

inline Words all(uint32_t x) { return _mm512_set1_epi64(x); }
inline Words counting(uint32_t first) {
  const Words lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_add_epi32(_mm512_set1_epi32(int(first)), lane);
}
inline Words product(Words x, uint32_t by) { return _mm512_mul_epu32(x, all(by)); }
inline Words upper(Words x) { return _mm512_srli_epi64(x, 32); }
inline Words mixed(Words a, Words b) { return _mm512_xor_si512(a, b); }
inline Words mixed(Words a, Words b, Words c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
inline void store(Words even, Words odd, uint32_t* to) {
  _mm512_storeu_si512(to, _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32)));
}

#elif WIDTH == 256

typedef __m256i Words;

inline Words all(uint32_t x) { return _mm256_set1_epi64x(x); }
inline Words counting(uint32_t first) {
  const Words lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_add_epi32(_mm256_set1_epi32(int(first)), lane);
}
inline Words product(Words x, uint32_t by) { return _mm256_mul_epu32(x, all(by)); }
inline Words upper(Words x) { return _mm256_srli_epi64(x, 32); }
inline Words mixed(Words a, Words b) { return _mm256_xor_si256(a, b); }
inline Words mixed(Words a, Words b, Words c) { return mixed(a, mixed(b, c)); }
inline void store(Words even, Words odd, uint32_t* to) {
  const Words both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both);
}

#else

typedef uint64_t Words;

inline Words all(uint32_t x) { return x; }
inline Words counting(uint32_t first) { return first | uint64_t(first + 1) << 32; }
inline Words product(Words x, uint32_t by) { return uint64_t(uint32_t(x)) * by; }
inline Words upper(Words x) { return x >> 32; }
inline Words mixed(Words a, Words b) { return a ^ b; }
inline Words mixed(Words a, Words b, Words c) { return a ^ b ^ c; }
inline void store(Words even, Words odd, uint32_t* to) { to[0] = even, to[1] = odd; }

#endif

constexpr int PAIR = 2 * sizeof(Words) / sizeof(uint64_t);  // blocks in an even and an odd Words
constexpr int PAIRS = WIDTH == 512 ? 1 : 2;                 // at a time, as products take their time
static_assert(LANES % (PAIRS * PAIR) == 0, "batches are whole LANES");

// The four words of `blocks` blocks from `first` on, of one sample, by ten rounds.
inline void philox_words(const NoiseKey& key, uint64_t id, uint32_t first, int blocks,
                         uint32_t (&words)[4][BLOCKS]) {
  constexpr uint32_t BY0 = 0xD2511F53u, BY2 = 0xCD9E8D57u;
  uint32_t k0[10], k1[10];
  for (uint32_t round = 0; round < 10; ++round) {
    k0[round] = uint32_t(key.seed) + round * 0x9E3779B9u;
    k1[round] = uint32_t(key.seed >> 32) + round * 0xBB67AE85u;
  }
  // Blocks of a sample differ in c0 alone at first. That reaches c2 and c3 in the first round and c0,
  // c1 and c2 in the second; the other words are the same for all of them up to there.
  const uint64_t before = uint64_t(uint32_t(id >> 32)) * BY2;
  const uint64_t then = uint64_t(uint32_t(before >> 32) ^ uint32_t(id) ^ k0[0]) * BY0;
  for (int i = 0; i < blocks; i += PAIRS * PAIR) {
    Words c[2 * PAIRS][4];
#pragma GCC unroll 4
    for (int j = 0; j < 2 * PAIRS; ++j) {
      const Words count = counting(first + uint32_t(i + j / 2 * PAIR));
      const Words a = product(j % 2 ? upper(count) : count, BY0);
      const Words b = product(mixed(upper(a), all(key.step ^ k1[0])), BY2);
      c[j][0] = mixed(upper(b), all(uint32_t(before) ^ k0[1]));
      c[j][1] = b;
      c[j][2] = mixed(a, all(uint32_t(then >> 32) ^ k1[1]));
      c[j][3] = all(uint32_t(then));
    }
#pragma GCC unroll 8
    for (int round = 2; round < 10; ++round)
#pragma GCC unroll 4
      for (Words(&w)[4] : c) {
        const Words a = product(w[0], BY0), b = product(w[2], BY2);
        w[0] = mixed(upper(b), w[1], all(k0[round]));
        w[1] = b;
        w[2] = mixed(upper(a), w[3], all(k1[round]));
        w[3] = a;
      }
#pragma GCC unroll 2
    for (int j = 0; j < 2 * PAIRS; j += 2)
      for (int k = 0; k < 4; ++k) store(c[j][k], c[j + 1][k], words[k] + i + j / 2 * PAIR);
  }
}

// The normals of blocks first, first + 1, ... of one sample; `out` holds 4 padded(blocks).
inline void normals(const NoiseKey& key, uint64_t id, uint64_t first, int64_t blocks, float* out) {
  uint32_t words[4][BLOCKS];
  float radius[2][BLOCKS], lanes[4][BLOCKS];
  for (int64_t done = 0; done < blocks; done += BLOCKS, out += 4 * BLOCKS) {
    const int batch = blocks - done < BLOCKS ? int(padded(blocks - done)) : BLOCKS;
    philox_words(key, id, uint32_t(first + uint64_t(done)), batch, words);
    // Loops apart: a processor looks ahead over more values where less is to be done for each.
    for (int k = 0; k < 2; ++k) {
#pragma omp simd
      for (int i = 0; i < batch; ++i) radius[k][i] = radius_of(words[2 * k][i]);
    }
    for (int k = 0; k < 2; ++k) {
#pragma omp simd
      for (int i = 0; i < batch; ++i)
        on_circle(radius[k][i], words[2 * k + 1][i], lanes[2 * k][i], lanes[2 * k + 1][i]);
    }
    for (int i = 0; i < batch; ++i)
      for (int k = 0; k < 4; ++k) out[4 * i + k] = lanes[k][i];
  }
}
