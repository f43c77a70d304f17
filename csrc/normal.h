// Arguments of the normal kernel: ids (B), out (B, elements).
#pragma once

#include <cstdint>

#include "philox.h"
#include "vec.h"

namespace ldae {

constexpr int64_t CHUNK = 256;

template <class T>
struct Normal {
  NoiseKey key;
  const int64_t* ids;
  T* out;
  int64_t elements;

  // A sample's elements fall into chunks; chunks of all samples are numbered through.
  int64_t chunks() const { return (elements + CHUNK - 1) / CHUNK; }
};

template <class T>
void normal(const Normal<T>& a, int64_t first_chunk, int64_t last_chunk);

}  // namespace ldae
