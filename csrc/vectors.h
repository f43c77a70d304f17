// Rows of values of any float type, wherever they lie in memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace ldae {

struct Vectors {
  enum Type { FLOAT, BFLOAT16, HALF, DOUBLE } type;
  void* data;
  int64_t apart, step;  // from a row to the next, from a value to the next

  // Row i in float32; a NaN with whatever bits comes as the one that bfloat16 keeps.
  void widen(int64_t i, int64_t width, float* to) const {
    row(i, [&](const auto* from) {
      for (int64_t j = 0; j < width; ++j) {
        const float x = to_float(from[j * step]);
        to[j] = x == x ? x : __builtin_nanf("");
      }
    });
  }

  void narrow(const float* from, int64_t width, int64_t i) const {
    row(i, [&](auto* to) {
      using E = std::remove_pointer_t<decltype(to)>;
      for (int64_t j = 0; j < width; ++j) to[j * step] = from_float<E>(from[j]);
    });
  }

  // Calls with where row i begins, in its own type.
  template <class F>
  void row(int64_t i, const F& call) const {
    switch (type) {
      case FLOAT: return call(static_cast<float*>(data) + i * apart);
      case BFLOAT16: return call(static_cast<bf16*>(data) + i * apart);
      case HALF: return call(static_cast<half*>(data) + i * apart);
      case DOUBLE: return call(static_cast<double*>(data) + i * apart);
    }
  }
};

}  // namespace ldae
