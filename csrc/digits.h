// Weights of bytes as two digits of 8 bits each, and the products of whole patches with them.
//
// A pixel is a byte already, and AVX512-VNNI adds up four products of bytes where AVX-512 has one of
// floats: with two digits a weight, twice as many in the same time, and exact. Only the weights are
// rounded, to 1 / 32639 of the largest one of their latent.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "images.h"

namespace ldae {

// digits (P / 4, 2, wide, 4): of four values of a patch the high digits, then the low ones; mirrored
// with each row of pixels from right to left. unit (wide): what one of the low digits is worth.
struct Digits {
  const int8_t *straight, *mirrored;
  const float* unit;
};

struct DigitsOf {
  static constexpr int MOST = 127 * 256 + 127;
  // What rounded weights may add to a latent's error, as a standard deviation over pixels that are
  // spread evenly over all bytes: an eighth of what bfloat16 takes off a value of 1.
  static constexpr double ERROR = 1.0 / 2048, SPREAD = 73.9;

  std::vector<int8_t> straight, mirrored;
  std::vector<float> unit;
  std::vector<double> sums;  // (d): of the rounded weights over a patch
  bool enough = true;        // else the weights need more digits, and the rest is not filled

  // weight (d, P).
  DigitsOf(const Images& in, const std::vector<double>& weight, int64_t d) {
    const int64_t P = in.values(), wide = padded(d);
    unit.resize(wide), sums.resize(d);
    straight.resize(P * 2 * wide), mirrored.resize(in.flip ? straight.size() : 0);
    const auto place = [&](int64_t i) { return i / 4 * 8 * wide + i % 4; };  // of its high digit
    std::vector<int64_t> to(P), turned(P);
    for (int64_t i = 0; i < P; ++i) {
      to[i] = place(i);
      turned[i] = place(in.mirrored(i));
    }
    for (int64_t k = 0; k < d; ++k) {
      const double* w = weight.data() + k * P;
      double most = 0, all = 0;
      for (int64_t i = 0; i < P; ++i) {
        most = std::max(most, std::abs(w[i]));
        all += std::abs(w[i]);
      }
      // Whole numbers of what is not finite, and of quotients that overflow, are not defined.
      const double one = most / MOST, per = std::isnormal(one) ? 1 / one : 0;
      enough = std::isfinite(all) && one * SPREAD * std::sqrt(P / 12.0) <= ERROR;
      if (!enough) return;
      int64_t sum = 0;
      for (int64_t i = 0; i < P; ++i) {
        const int q = int(std::lrint(w[i] * per)), high = (q + 128) >> 8;
        sum += q;
        put(straight, to[i] + 4 * k, high, q, wide);
        if (in.flip) put(mirrored, turned[i] + 4 * k, high, q, wide);
      }
      unit[k] = float(one), sums[k] = one * double(sum);
    }
  }

  static void put(std::vector<int8_t>& digits, int64_t at, int high, int q, int64_t wide) {
    digits[at] = int8_t(high);
    digits[at + 4 * wide] = int8_t(q - 256 * high);
  }

  Digits pointers() const { return {straight.data(), mirrored.data(), unit.data()}; }
};

// Whether products of these images may be made so on this machine.
inline bool digits_serve(const Images& in) {
  return isa() == Isa::avx512bf16 && in.bytes && in.piece() % 4 == 0 && in.values() <= 1 << 16;
}

}  // namespace ldae
