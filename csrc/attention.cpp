// Row softmax of attention scores in place, and its backward: one read and one write of a row each.

#ifndef TARGET

#include "attention.h"

#include <cmath>
#include <limits>
#include <vector>

#define SELF "attention.cpp"
#include "targets.h"

namespace ldae {

template <class T>
void softmax(const Softmax<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(forward(a, begin, end))
}

template <class T>
void softmax_backward(const SoftmaxBackward<T>& a, int64_t begin, int64_t end) {
  LDAE_DISPATCH(backward(a, begin, end))
}

template void softmax(const Softmax<float>&, int64_t, int64_t);
template void softmax(const Softmax<bf16>&, int64_t, int64_t);
template void softmax_backward(const SoftmaxBackward<float>&, int64_t, int64_t);
template void softmax_backward(const SoftmaxBackward<bf16>&, int64_t, int64_t);

}  // namespace ldae

#else

namespace ldae {
namespace TARGET {

// 2^x for x <= 0, to one unit in the last place; 2^-126 below that; a NaN stays a NaN.
inline float power_of_two(float x) {
  x = x < -126.0f ? -126.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds x to an integer
  const float shifted = x + shift;
  const float f = x - (shifted - shift);  // -0.5 .. 0.5
  float y = 1.5403530e-4f;  // Taylor's ln(2)^n / n!, n = 6 .. 0
  y = y * f + 1.3333558e-3f;
  y = y * f + 9.6181291e-3f;
  y = y * f + 5.5504109e-2f;
  y = y * f + 2.4022651e-1f;
  y = y * f + 6.9314718e-1f;
  y = y * f + 1.0f;
  uint32_t exponent;
  std::memcpy(&exponent, &shifted, 4);
  exponent = (exponent + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, 4);
  return y * scale;
}

template <class T>
void forward(const Softmax<T>& a, int64_t begin, int64_t end) {
  const int64_t width = a.width;
  std::vector<float> kept(width);
  float* row = kept.data();
  const float slope = a.scale * 1.4426950408889634f;
  for (int64_t r = begin; r < end; ++r) {
    T* x = a.x + r * width;
    float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < width; ++i) {
      row[i] = to_float(x[i]);
      most = row[i] > most ? row[i] : most;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      row[i] = power_of_two((row[i] - most) * slope);
      sum += row[i];
    }
    const float part = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) x[i] = from_float<T>(row[i] * part);
  }
}

template <class T>
void backward(const SoftmaxBackward<T>& a, int64_t begin, int64_t end) {
  const int64_t width = a.width;
  for (int64_t r = begin; r < end; ++r) {
    const T* p = a.p + r * width;
    T* d = a.d + r * width;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) dot += to_float(p[i]) * to_float(d[i]);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
      d[i] = from_float<T>(a.scale * to_float(p[i]) * (to_float(d[i]) - dot));
  }
}

}  // namespace TARGET
}  // namespace ldae

#endif
