// Row softmax of attention scores in place, and its backward in place of the upstream gradient.
#pragma once

#include <cstdint>

#include "vec.h"

namespace ldae {

// Rows of `width` scores, one after another: x becomes softmax(scale x).
template <class T>
struct Softmax {
  T* x;
  int64_t width;
  float scale;
};

// p: softmax(scale x). d holds the gradient of p and becomes that of x: scale p (d - sum(p d)).
template <class T>
struct SoftmaxBackward {
  const T* p;
  T* d;
  int64_t width;
  float scale;
};

// Rows begin..end-1.
template <class T>
void softmax(const Softmax<T>& a, int64_t begin, int64_t end);
template <class T>
void softmax_backward(const SoftmaxBackward<T>& a, int64_t begin, int64_t end);

}  // namespace ldae
