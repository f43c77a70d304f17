// Attention's seven products and its softmax, head by head.
//
// A product adds up pairs of bfloat16: 32 bits of the left factor, the same for all lanes, times a
// vector of such pairs of the right one. So a right factor is laid out anew first, two of its rows
// in one, or two columns at a time turned into one row; a left factor is read where it lies. Four
// rows at a time, which is as many sums as the products' latency needs, and of each only what is
// alive: the scores of four rows become weights before the next four are made.

#ifndef TARGET

#include "attention_heads.h"

#include <algorithm>
#include <limits>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#define SELF "attention_heads.cpp"
#define WANTS_BF16
#include "targets.h"

namespace ldae {

#if defined(__x86_64__) && defined(__GNUC__)

bool attention_heads_pay() {
  unsigned a, b, c, d;
  const bool told = __get_cpuid_count(7, 0, &a, &b, &c, &d);
  return isa() == Isa::avx512bf16 && !(told && d >> 22 & 1);  // AMX-BF16
}

#else

bool attention_heads_pay() { return false; }

#endif

void attention_heads(const AttentionHeads& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(forward(a, begin, end))
}

void attention_heads_backward(const AttentionHeadsBackward& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(backward(a, begin, end))
}

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

#include "lanes.h"
#include "exponential.h"

constexpr int64_t ROWS = 4;

typedef uint32_t Pair __attribute__((aligned(2), may_alias));  // two bfloat16, side by side
typedef uint32_t Pairs __attribute__((vector_size(sizeof(Floats))));

LDAE_INLINE Pairs load_pairs(const uint32_t* from) {
  Pairs x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
LDAE_INLINE void store_pairs(Pairs x, uint32_t* to) { std::memcpy(to, &x, sizeof x); }

// first and second, bfloat16 as float32, side by side.
LDAE_INLINE Pairs paired(Floats first, Floats second) {
  return (Pairs(first) >> 16) | (Pairs(second) & 0xffff0000u);
}

LDAE_INLINE Floats plus_product(Floats sum, Pairs a, Pairs b) {
#ifdef HAS_BF16
  return _mm512_dpbf16_ps(sum, __m512bh(a), __m512bh(b));
#else
  sum += Floats(a << 16) * Floats(b << 16);
  return sum + Floats(a & 0xffff0000u) * Floats(b & 0xffff0000u);
#endif
}

// Four rows of the left factor, `row` pairs apart, its pairs `step` apart; the right one's rows of
// pairs, `wide` apart; the result's rows, `wide` apart too.
template <int V>
LDAE_INLINE void tile(const Pair* left, int64_t row, int64_t step, const uint32_t* right,
                      int64_t wide, int64_t pairs, float* out) {
  Floats sums[ROWS][V] = {};
  for (int64_t k = 0; k < pairs; ++k) {
    Pairs b[V];
    for (int v = 0; v < V; ++v) b[v] = load_pairs(right + k * wide + v * WIDE);
    for (int64_t r = 0; r < ROWS; ++r) {
      const Pairs a = Pairs{} + left[r * row + k * step];
      for (int v = 0; v < V; ++v) sums[r][v] = plus_product(sums[r][v], a, b[v]);
    }
  }
  for (int64_t r = 0; r < ROWS; ++r)
    for (int v = 0; v < V; ++v) store(sums[r][v], out + r * wide + v * WIDE);
}

// rows (count, width), `apart` from one another: each two of them as a row of pairs, whole(width)
// apart, with zeros for what is missing.
inline void pair_rows(const bf16* rows, int64_t apart, int64_t count, int64_t width,
                      uint32_t* out) {
  const int64_t wide = whole(width);
  for (int64_t t = 0; t < count; t += 2) {
    const bf16 *first = rows + t * apart, *second = first + apart;
    for (int64_t i = 0; i < width; i += WIDE) {
      const Floats low = load(first + i, width - i);
      const Floats high = t + 1 < count ? load(second + i, width - i) : Floats{};
      store_pairs(paired(low, high), out + t / 2 * wide + i);
    }
  }
}

// Each two columns of rows (count, width) as a row of whole(count) pairs, zeros for what is not
// there.
inline void pair_columns(const bf16* rows, int64_t apart, int64_t count, int64_t width,
                         uint32_t* out) {
  const int64_t wide = whole(count), pairs = width / 2;
  int64_t t = 0;
#ifdef __x86_64__
  for (; t + 4 <= count; t += 4) {
    int64_t k = 0;
    for (; k + 4 <= pairs; k += 4) {
      __m128i x[4];
      for (int i = 0; i < 4; ++i)
        x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + (t + i) * apart + 2 * k));
      const __m128i a = _mm_unpacklo_epi32(x[0], x[1]), b = _mm_unpackhi_epi32(x[0], x[1]);
      const __m128i c = _mm_unpacklo_epi32(x[2], x[3]), d = _mm_unpackhi_epi32(x[2], x[3]);
      const __m128i turned[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c),
                                 _mm_unpacklo_epi64(b, d), _mm_unpackhi_epi64(b, d)};
      for (int i = 0; i < 4; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + (k + i) * wide + t), turned[i]);
    }
    for (; k < pairs; ++k)
      for (int64_t i = t; i < t + 4; ++i)
        out[k * wide + i] = *reinterpret_cast<const Pair*>(rows + i * apart + 2 * k);
  }
#endif
  for (; t < count; ++t)
    for (int64_t k = 0; k < pairs; ++k)
      out[k * wide + t] = *reinterpret_cast<const Pair*>(rows + t * apart + 2 * k);
  if (width % 2)
    for (t = 0; t < count; ++t) out[pairs * wide + t] = rows[t * apart + width - 1].bits;
}

// Four rows of pairs, `row` pairs apart.
struct Left {
  const Pair* data;
  int64_t row;
};

// Up to four rows as a left factor: where they lie, or in `room`, which began as zeros. What it
// holds of earlier rows makes results that nobody reads.
inline Left left_factor(const bf16* rows, int64_t apart, int64_t count, int64_t width, bf16* room) {
  if (count == ROWS && width % 2 == 0 && apart % 2 == 0)
    return {reinterpret_cast<const Pair*>(rows), apart / 2};
  const int64_t even = width + width % 2;
  for (int64_t r = 0; r < count; ++r) std::copy_n(rows + r * apart, width, room + r * even);
  return {reinterpret_cast<const Pair*>(room), even / 2};
}

inline void multiply(Left left, int64_t step, const uint32_t* right, int64_t wide, int64_t pairs,
                     float* out) {
  constexpr int MOST = WIDTH == 512 ? 4 : 2;
  int64_t i = 0;
  for (; i + MOST * WIDE <= wide; i += MOST * WIDE)
    tile<MOST>(left.data, left.row, step, right + i, wide, pairs, out + i);
  for (; i < wide; i += WIDE)
    tile<1>(left.data, left.row, step, right + i, wide, pairs, out + i);
}

// Rows of float32, `wide` apart, rounded into `count` rows that lie `apart` from one another.
inline void store_rows(const float* from, int64_t wide, int64_t count, int64_t width, bf16* rows,
                       int64_t apart) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < width; i += WIDE)
      store(load(from + r * wide + i), rows + r * apart + i, width - i);
}

LDAE_INLINE float largest(Floats x) {
  float most = x[0];
  for (int64_t i = 1; i < WIDE; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// softmax of slope / log2(e) times `count` scores, in whole vectors.
inline void softmax(float* scores, int64_t count, float slope, bf16* out) {
  const int64_t wide = whole(count);
  std::fill(scores + count, scores + wide, -std::numeric_limits<float>::infinity());
  Floats most = load(scores);
  for (int64_t i = WIDE; i < wide; i += WIDE) {
    const Floats x = load(scores + i);
    most = x > most ? x : most;
  }
  const Floats top = all(largest(most));
  Floats total = {};
  for (int64_t i = 0; i < wide; i += WIDE) {
    const Floats e = exp2_roughly((load(scores + i) - top) * slope, 1.0f);
    store(e, scores + i);
    total += e;
  }
  const float part = 1.0f / sum(total);
  for (int64_t i = 0; i < wide; i += WIDE) store(load(scores + i) * part, out + i);
}

inline bf16* head(const HeadView& x, int64_t n, int64_t heads) {
  return x.data + n / heads * x.batch + n % heads * x.head;
}

// Asks for rows t..t+rows-1 of head n, which comes next: they lie too far apart for the processor
// to see them coming.
template <bool Write>
LDAE_INLINE void ahead(const HeadView& x, int64_t n, int64_t heads, int64_t t, int64_t rows,
                       int64_t width) {
  const bf16* row = head(x, n, heads) + t * x.token;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; i += 64 / int64_t(sizeof(bf16)))
      __builtin_prefetch(row + r * x.token + i, Write);
}

inline void forward(const AttentionHeads& a, int64_t begin, int64_t end) {
  const int64_t T = a.tokens, W = a.width, wideT = whole(T), wideW = whole(W);
  const int64_t halfT = (T + 1) / 2, halfW = (W + 1) / 2;
  const float slope = a.scale * 1.4426950408889634f;
  std::vector<uint32_t> k(halfW * wideT), v(halfT * wideW);
  std::vector<bf16> room(ROWS * 2 * halfW), aside(wideT == T ? 0 : ROWS * wideT);
  std::vector<float> scores(ROWS * wideT), made(ROWS * wideW);
  for (int64_t n = begin; n < end; ++n) {
    const bf16* q = head(a.q, n, a.heads);
    const int64_t next = std::min(n + 1, end - 1);
    pair_columns(head(a.k, n, a.heads), a.k.token, T, W, k.data());
    pair_rows(head(a.v, n, a.heads), a.v.token, T, W, v.data());
    for (int64_t t = 0; t < T; t += ROWS) {
      const int64_t rows = std::min(ROWS, T - t);
      for (const HeadView& x : {a.q, a.k, a.v}) ahead<false>(x, next, a.heads, t, rows, W);
      ahead<true>(a.out, next, a.heads, t, rows, W);
      ahead<true>(a.weights, next, a.heads, t, rows, T);
      const Left queries = left_factor(q + t * a.q.token, a.q.token, rows, W, room.data());
      multiply(queries, 1, k.data(), wideT, halfW, scores.data());
      // A row of whole vectors is made where it stays.
      bf16* kept = head(a.weights, n, a.heads) + t * T;
      bf16* weights = aside.empty() ? kept : aside.data();
      for (int64_t r = 0; r < rows; ++r) {
        softmax(scores.data() + r * wideT, T, slope, weights + r * wideT);
        if (weights != kept) std::copy_n(weights + r * wideT, T, kept + r * T);
      }
      multiply({reinterpret_cast<const Pair*>(weights), wideT / 2}, 1, v.data(), wideW, halfT,
               made.data());
      store_rows(made.data(), wideW, rows, W, head(a.out, n, a.heads) + t * a.out.token,
                 a.out.token);
    }
  }
}

// Of `rows` of two rows of weights p and of their gradient d: scale p (d - sum(p d)) as rows, and
// both as pairs; what is missing is zeros.
inline void two_rows(const bf16* p, int64_t rows, const float* d, int64_t count, float scale,
                     bf16* out, uint32_t* weights, uint32_t* scores) {
  const int64_t wide = whole(count);
  Floats dots[2] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < count; i += WIDE)
      dots[r] += load(p + r * count + i, count - i) * load(d + r * wide + i);
  const float dot[2] = {sum(dots[0]), sum(dots[1])};
  for (int64_t i = 0; i < count; i += WIDE) {
    Floats kept[2] = {}, made[2] = {};
    for (int64_t r = 0; r < rows; ++r) {
      kept[r] = load(p + r * count + i, count - i);
      made[r] = kept[r] * scale * (load(d + r * wide + i) - dot[r]);
    }
    for (int r = 0; r < 2; ++r) made[r] = stored(made[r], out + r * wide + i, WIDE);
    store_pairs(paired(kept[0], kept[1]), weights + i);
    store_pairs(paired(made[0], made[1]), scores + i);
  }
}

inline void backward(const AttentionHeadsBackward& a, int64_t begin, int64_t end) {
  const int64_t T = a.tokens, W = a.width, wideT = whole(T), wideW = whole(W);
  const int64_t halfT = (T + 1) / 2, halfW = (W + 1) / 2, blocks = (T + ROWS - 1) / ROWS * ROWS / 2;
  std::vector<uint32_t> q(halfT * wideW), k(q.size()), dout(q.size()), v(halfW * wideT);
  std::vector<uint32_t> weights(blocks * wideT), scores(blocks * wideT);
  std::vector<bf16> room(ROWS * 2 * halfW), dscores(ROWS * wideT);
  std::vector<float> dweights(ROWS * wideT), made(ROWS * wideW);
  for (int64_t n = begin; n < end; ++n) {
    const bf16* given = head(a.dout, n, a.heads);
    const bf16* kept = head(a.weights, n, a.heads);
    pair_rows(head(a.q, n, a.heads), a.q.token, T, W, q.data());
    pair_rows(head(a.k, n, a.heads), a.k.token, T, W, k.data());
    pair_rows(given, a.dout.token, T, W, dout.data());
    pair_columns(head(a.v, n, a.heads), a.v.token, T, W, v.data());
    auto put = [&](const HeadView& x, int64_t t) {
      store_rows(made.data(), wideW, std::min(ROWS, T - t), W, head(x, n, a.heads) + t * x.token,
                 x.token);
    };
    const int64_t next = std::min(n + 1, end - 1);
    for (int64_t t = 0; t < T; t += ROWS) {
      const int64_t rows = std::min(ROWS, T - t);
      for (const HeadView& x : {a.q, a.k, a.v, a.dout}) ahead<false>(x, next, a.heads, t, rows, W);
      for (const HeadView& x : {a.dq, a.dk, a.dv}) ahead<true>(x, next, a.heads, t, rows, W);
      ahead<false>(a.weights, next, a.heads, t, rows, T);
      const Left upstream =
          left_factor(given + t * a.dout.token, a.dout.token, rows, W, room.data());
      multiply(upstream, 1, v.data(), wideT, halfW, dweights.data());
      for (int64_t r = 0; r < ROWS; r += 2) {
        const int64_t pair = (t + r) / 2 * wideT, there = std::clamp<int64_t>(rows - r, 0, 2);
        two_rows(kept + (t + r) * T, there, dweights.data() + r * wideT, T, a.scale,
                 dscores.data() + r * wideT, weights.data() + pair, scores.data() + pair);
      }
      const Left gradient{reinterpret_cast<const Pair*>(dscores.data()), wideT / 2};
      multiply(gradient, 1, k.data(), wideW, halfT, made.data());
      put(a.dq, t);
    }
    for (int64_t t = 0; t < T; t += ROWS) {
      multiply({scores.data() + t, 1}, wideT, q.data(), wideW, halfT, made.data());
      put(a.dk, t);
      multiply({weights.data() + t, 1}, wideT, dout.data(), wideW, halfT, made.data());
      put(a.dv, t);
    }
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
