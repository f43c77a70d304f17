// Rows of values of any float type, wherever they lie in memory.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

struct Vectors {
  enum Type { FLOAT, BFLOAT16, HALF, DOUBLE } type;
  void* data;
  int64_t apart, step;  // from a row to the next, from a value to the next

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
