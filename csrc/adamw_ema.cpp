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
  const G* grad = a.grad;
  float *param = a.param, *exp_avg = a.exp_avg, *exp_avg_sq = a.exp_avg_sq, *ema = a.ema;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float g = to_float(grad[i]) * s.grad_scale;
    const float m = s.exp_avg(exp_avg[i], g);
    const float v = s.beta2 * exp_avg_sq[i] + s.second * g * g;
    const float p = s.shrink * param[i] - s.rate * m / (std::sqrt(v) * s.unroot + s.eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p;
    ema[i] = s.ema(ema[i], p);
  }
  if (!a.copy) return;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) a.copy[i] = from_float<C>(a.param[i]);
}

}  // namespace TARGET
}  // namespace ldae

#endif
