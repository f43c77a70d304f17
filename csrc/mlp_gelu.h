// Arguments of the bias + GELU kernels: u, out (rows, width), bias (width).
#pragma once

#include <cstdint>

#include "vec.h"
#include "vectors.h"

namespace ldae {

template <class T>
struct BiasGelu {
  const T* u;
  Vectors bias;
  T* out;
  int64_t width;
  bool tanh;
};

// dsums: (chunks, width), the sums over each chunk's rows; du = dout gelu'(u + bias).
template <class T>
struct BiasGeluBackward {
  const T *dout, *u;
  Vectors bias;
  T* du;
  float* dsums;
  int64_t rows, width, chunks;
  bool tanh;
};

template <class T>
void bias_gelu_forward(const BiasGelu<T>& a, int64_t first_row, int64_t last_row);
template <class T>
void bias_gelu_backward(const BiasGeluBackward<T>& a, int64_t first_chunk, int64_t last_chunk);

}  // namespace ldae
