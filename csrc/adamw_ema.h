// Arguments of the optimizer's kernel: elements of one tensor and of what belongs to it.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

// from + weight (to - from), from the end that is nearer: from the other one, a weight near 1 would
// leave rounding errors of the far end. share = weight - (0 or 1), taken in float64, since a weight
// of 1 - beta in float32 has lost digits.
struct Lerp {
  explicit Lerp(double weight) : near(weight < 0.5), share(float(near ? weight : weight - 1)) {}
  float operator()(float from, float to) const { return (near ? from : to) + share * (to - from); }
  bool near;
  float share;
};

// The step's numbers. second = 1 - beta2, shrink = 1 - lr weight_decay, rate = lr / (1 - beta1^t),
// unroot = 1 / sqrt(1 - beta2^t).
struct AdamW {
  float grad_scale, beta2, second, eps, shrink, rate, unroot;
  Lerp exp_avg, ema;  // by 1 - beta1, by 1 - ema_decay
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
