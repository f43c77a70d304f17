// Binds the adaLN kernels: ldae::adaln_forward and ldae::adaln_backward.
//
// A one-dimensional y means that nothing is added: the op is then LayerNorm and modulation alone.

#include "gate_residual_layernorm_modulate.h"

#include "binding.h"

namespace ldae {
namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// (h, out, mean, rstd)
Four forward(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, double eps) {
  const bool sum = y.dim() == 3;
  STD_TORCH_CHECK(x.dim() == 3, "x must be (B, T, D)");
  const int64_t B = x.size(0), T = x.size(1), D = x.size(2);
  check(x, "x", x.scalar_type(), {B, T, D});
  check(shift, "shift", ScalarType::Float, {B, D});
  check(scale, "scale", ScalarType::Float, {B, D});
  if (sum) {
    check(y, "y", x.scalar_type(), {B, T, D});
    check(gate, "gate", ScalarType::Float, {B, D});
  }
  Tensor h = sum ? ldae::empty_like(x) : ldae::new_empty(x, {0});
  Tensor out = ldae::empty_like(x);
  Tensor mean = floats_like(x, {B, T}), rstd = floats_like(x, {B, T});
  by_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    const AdaLN<E> a{at<E>(x), sum ? at<E>(y) : nullptr, sum ? at<float>(gate) : nullptr,
                           at<float>(shift), at<float>(scale), sum ? at<E>(h) : nullptr,
                           at<E>(out), at<float>(mean), at<float>(rstd), T, D, float(eps)};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      ldae::adaln_forward(a, begin, end);
    });
  });
  return {h, out, mean, rstd};
}

// (dx, dy, dgate, dshift, dscale)
Five backward(Tensor dh, Tensor dout, Tensor h, Tensor y, Tensor gate, Tensor scale,
                    Tensor mean, Tensor rstd) {
  const bool sum = y.dim() == 3;
  STD_TORCH_CHECK(h.dim() == 3, "h must be (B, T, D)");
  const int64_t B = h.size(0), T = h.size(1), D = h.size(2);
  check(h, "h", h.scalar_type(), {B, T, D});
  check(dout, "dout", h.scalar_type(), {B, T, D});
  check(scale, "scale", ScalarType::Float, {B, D});
  check(mean, "mean", ScalarType::Float, {B, T});
  check(rstd, "rstd", ScalarType::Float, {B, T});
  if (sum) {
    check(y, "y", h.scalar_type(), {B, T, D});
    check(dh, "dh", h.scalar_type(), {B, T, D});
    check(gate, "gate", ScalarType::Float, {B, D});
  }
  Tensor dx = ldae::empty_like(h);
  Tensor dy = sum ? ldae::empty_like(h) : ldae::new_empty(h, {0});
  Tensor dgate = floats_like(h, {sum ? B : 0, D});
  Tensor dshift = floats_like(h, {B, D}), dscale = floats_like(h, {B, D});
  by_dtype(h, [&](auto kind) {
    using E = decltype(kind);
    const AdaLNBackward<E> a{
        sum ? at<E>(dh) : nullptr, at<E>(dout), at<E>(h), sum ? at<E>(y) : nullptr,
        sum ? at<float>(gate) : nullptr, at<float>(scale), at<float>(mean), at<float>(rstd),
        at<E>(dx), sum ? at<E>(dy) : nullptr, sum ? at<float>(dgate) : nullptr,
        at<float>(dshift), at<float>(dscale), T, D};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      ldae::adaln_backward(a, begin, end);
    });
  });
  return {dx, dy, dgate, dshift, dscale};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("adaln_forward(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("adaln_backward(Tensor dh, Tensor dout, Tensor h, Tensor y, Tensor gate, Tensor scale,"
        " Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) {
  m.impl("adaln_forward", TORCH_BOX(&ldae::forward));
  m.impl("adaln_backward", TORCH_BOX(&ldae::backward));
}
