// AdamW, the weights' moving average and their low-precision copy in one pass over memory.

#ifndef TARGET

#include "adamw_ema.h"

#include <cmath>

#define SELF "adamw_ema.cpp"
#include "targets.h"

namespace ldae {

template <class G, class C>
void adamw_ema(const AdamW& step, const AdamWEMA<G, C>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(update(step, a, begin, end))
}

template void adamw_ema(const AdamW&, const AdamWEMA<float, bf16>&, int64_t, int64_t);
template void adamw_ema(const AdamW&, const AdamWEMA<float, half>&, int64_t, int64_t);
template void adamw_ema(const AdamW&, const AdamWEMA<bf16, bf16>&, int64_t, int64_t);
template void adamw_ema(const AdamW&, const AdamWEMA<bf16, half>&, int64_t, int64_t);
template void adamw_ema(const AdamW&, const AdamWEMA<half, bf16>&, int64_t, int64_t);
template void adamw_ema(const AdamW&, const AdamWEMA<half, half>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

template <class G, class C>
void update(const AdamW& step, const AdamWEMA<G, C>& a, int64_t begin, int64_t end) {
  // Locals, since for all that the compiler knows a store could change what a reference names.
  const AdamW s = step;
  const float first = 1 - s.beta1, second = 1 - s.beta2, toward = 1 - s.ema_decay;
  const float unroot = 1 / s.root;
  const G* grad = a.grad;
  float *param = a.param, *exp_avg = a.exp_avg, *exp_avg_sq = a.exp_avg_sq, *ema = a.ema;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float g = to_float(grad[i]) * s.grad_scale;
    const float m = exp_avg[i] + first * (g - exp_avg[i]);
    const float v = s.beta2 * exp_avg_sq[i] + second * g * g;
    const float p = s.shrink * param[i] - s.rate * m / (std::sqrt(v) * unroot + s.eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p;
    ema[i] += toward * (p - ema[i]);
  }
  if (!a.copy) return;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) a.copy[i] = from_float<C>(a.param[i]);
}

}  // namespace TARGET
}  // namespace ldae

#endif
