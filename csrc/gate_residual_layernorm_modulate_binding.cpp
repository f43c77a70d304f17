// Binds the adaLN kernels: ldae::adaln_forward and ldae::adaln_backward.
//
// Without y and gate nothing is added: the op is then LayerNorm and modulation alone.

#include "gate_residual_layernorm_modulate.h"

#include <optional>

#include "binding.h"

namespace ldae {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// (h, out, statistics (2, B, T): mean and 1 / standard deviation)
Three forward(Tensor x, std::optional<Tensor> y, std::optional<Tensor> gate, Tensor shift,
              Tensor scale, double eps) {
  STD_TORCH_CHECK(x.dim() == 3, "x must be (B, T, D)");
  STD_TORCH_CHECK(bool(y) == bool(gate), "y and gate come together");
  const int64_t B = x.size(0), T = x.size(1), D = x.size(2);
  check(x, "x", x.scalar_type(), {B, T, D});
  if (y) check(*y, "y", x.scalar_type(), {B, T, D});
  const Vectors gates = y ? vectors(*gate, "gate", {B, D}) : Vectors{};
  const Vectors shifts = vectors(shift, "shift", {B, D}), scales = vectors(scale, "scale", {B, D});
  Tensor h = y ? ldae::empty_like(x) : ldae::new_empty(x, {0});
  Tensor out = ldae::empty_like(x), statistics = floats_like(x, {2, B, T});
  float* mean = at<float>(statistics);
  by_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    const AdaLN<E> a{bool(y), at<E>(x), y ? at<E>(*y) : nullptr, gates, shifts, scales, at<E>(h),
                     at<E>(out), mean, mean + B * T, T, D, float(eps)};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      ldae::adaln_forward(a, begin, end);
    });
  });
  return {h, out, statistics};
}

// (dx, dy, dgate, dshift, dscale), the last three in the dtypes of gate, shift and scale.
Five backward(std::optional<Tensor> dh, Tensor dout, Tensor h, std::optional<Tensor> y,
              std::optional<Tensor> gate, Tensor shift, Tensor scale, Tensor statistics) {
  STD_TORCH_CHECK(h.dim() == 3, "h must be (B, T, D)");
  STD_TORCH_CHECK(bool(y) == bool(gate) && bool(y) == bool(dh), "dh, y and gate come together");
  const int64_t B = h.size(0), T = h.size(1), D = h.size(2);
  check(h, "h", h.scalar_type(), {B, T, D});
  check(dout, "dout", h.scalar_type(), {B, T, D});
  check(statistics, "statistics", ScalarType::Float, {2, B, T});
  if (y) {
    check(*y, "y", h.scalar_type(), {B, T, D});
    check(*dh, "dh", h.scalar_type(), {B, T, D});
  }
  const Vectors gates = y ? vectors(*gate, "gate", {B, D}) : Vectors{};
  const Vectors scales = vectors(scale, "scale", {B, D});
  Tensor dx = ldae::empty_like(h);
  Tensor dy = y ? ldae::empty_like(h) : ldae::new_empty(h, {0});
  Tensor dgate = ldae::new_empty(y ? *gate : scale, {y ? B : 0, D});
  Tensor dshift = ldae::new_empty(shift, {B, D}), dscale = ldae::new_empty(scale, {B, D});
  const float* mean = at<float>(statistics);
  by_dtype(h, [&](auto kind) {
    using E = decltype(kind);
    const AdaLNBackward<E> a{bool(y), y ? at<E>(*dh) : nullptr, at<E>(dout), at<E>(h),
                             y ? at<E>(*y) : nullptr, gates, scales, mean, mean + B * T, at<E>(dx),
                             y ? at<E>(dy) : nullptr,
                             y ? vectors(dgate, "dgate", {B, D}) : Vectors{},
                             vectors(dshift, "dshift", {B, D}), vectors(dscale, "dscale", {B, D}),
                             T, D};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      ldae::adaln_backward(a, begin, end);
    });
  });
  return {dx, dy, dgate, dshift, dscale};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("adaln_forward(Tensor x, Tensor? y, Tensor? gate, Tensor shift, Tensor scale, float eps)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("adaln_backward(Tensor? dh, Tensor dout, Tensor h, Tensor? y, Tensor? gate, Tensor shift,"
        " Tensor scale, Tensor statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) {
  m.impl("adaln_forward", TORCH_BOX(&ldae::forward));
  m.impl("adaln_backward", TORCH_BOX(&ldae::backward));
}
