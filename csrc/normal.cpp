// Standard normals as a function of (seed, step, sample id, element), 256 at a time.

#ifndef TARGET

#include "normal.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define SELF "normal.cpp"
#include "targets.h"

namespace ldae {

template <class T>
void normal(const Normal<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(fill(a, begin, end))
}

template void normal(const Normal<float>&, int64_t, int64_t);
template void normal(const Normal<bf16>&, int64_t, int64_t);
template void normal(const Normal<half>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

#include "normals.h"

template <class T>
void fill(const Normal<T>& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  static_assert(CHUNK == 4 * BLOCKS);
  float made[CHUNK];
  for (int64_t n = begin; n < end; ++n) {
    const int64_t sample = n / chunks, chunk = n % chunks, first = chunk * CHUNK;
    const int64_t count = a.elements - first < CHUNK ? a.elements - first : CHUNK;
    T* out = a.out + sample * a.elements + first;
    // The memory comes while what goes there is made.
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(out + i, 1);
    normals(a.key, uint64_t(a.ids[sample]), uint64_t(chunk) * BLOCKS, (count + 3) / 4, made);
    for (int64_t i = 0; i < count; ++i) out[i] = from_float<T>(made[i]);
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
