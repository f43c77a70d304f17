// Arguments of the optimizer's kernel: elements of one tensor and of what belongs to it.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

// The step's numbers. shrink = 1 - lr weight_decay, rate = lr / (1 - beta1^t),
// root = sqrt(1 - beta2^t).
struct AdamW {
  float grad_scale, beta1, beta2, eps, shrink, rate, root, ema_decay;
};

// copy takes the new param rounded to C; null without one.
template <class G, class C>
struct AdamWEMA {
  float* param;
  const G* grad;
  float *exp_avg, *exp_avg_sq, *ema;
  C* copy;
};

template <class G, class C>
void adamw_ema(const AdamW& step, const AdamWEMA<G, C>& a, int64_t begin, int64_t end);

}  // namespace ldae
