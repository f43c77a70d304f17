// Arguments of the loss kernel. One strip is a row of tokens of one sample.
#pragma once

#include "images.h"

namespace ldae {

// pred (B, T, P). target x_0 = value factor - offset, both (p C). basis (d, wide P) and turned
// (P, wide d): V_d both ways, padded with zeros; excess (wide d): c.
// sums (B strips): each strip's sum of rest |e|^2 + sum_i c_i (V_d e)_i^2 with e = x_0 - pred.
// dpred (B, T, P) = slope (rest e + V_d^T c V_d e), or null; slope (B).
template <class T>
struct DenoiseLoss {
  Images images;
  const T* pred;
  const float *factor, *offset, *basis, *turned, *excess, *slope;
  float rest;
  double* sums;
  T* dpred;
  int64_t d;
};

template <class T>
void denoise_loss(const DenoiseLoss<T>& a, int64_t first_strip, int64_t last_strip);

}  // namespace ldae
