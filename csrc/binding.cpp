// The only file that knows torch: schemas, argument checks and threads for the kernels beside it.
//
// Built on torch's stable ABI and Python's limited API, so that one build serves every torch from
// 2.11 and every Python from 3.10.

#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "gate_residual_layernorm_modulate.h"
#include "mlp_gelu.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using ldae::bf16;

template <class T>
T* at(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

void check_rows(const Tensor& x, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has the wrong dtype");
}

// Runs kernel(T{}) for the float type of x.
template <class F>
void by_dtype(const Tensor& x, const F& kernel) {
  if (x.scalar_type() == ScalarType::Float) return kernel(float{});
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "dtype must be float32 or bfloat16");
  kernel(bf16{});
}

Tensor floats_like(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(x, sizes, ScalarType::Float);
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// (h, out, mean, rstd)
Four adaln_forward(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, double eps) {
  const bool sum = y.numel() == x.numel();
  const int64_t B = x.size(0), T = x.size(1), D = x.size(2);
  for (auto& [name, t] : {std::pair{"x", x}, {"y", sum ? y : x}})
    check_rows(t, name, x.scalar_type());
  for (auto& [name, t] : {std::pair{"shift", shift}, {"scale", scale}, {"gate", sum ? gate : shift}})
    check_rows(t, name, ScalarType::Float);
  Tensor h = sum ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor out = torch::stable::empty_like(x);
  Tensor mean = floats_like(x, {B, T}), rstd = floats_like(x, {B, T});
  by_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    const ldae::AdaLN<E> a{at<E>(x), sum ? at<E>(y) : nullptr, sum ? at<float>(gate) : nullptr,
                           at<float>(shift), at<float>(scale), sum ? at<E>(h) : nullptr,
                           at<E>(out), at<float>(mean), at<float>(rstd), T, D, float(eps)};
    torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      ldae::adaln_forward(a, begin, end);
    });
  });
  return {h, out, mean, rstd};
}

// (dx, dy, dgate, dshift, dscale)
Five adaln_backward(Tensor dh, Tensor dout, Tensor h, Tensor y, Tensor gate, Tensor scale,
                    Tensor mean, Tensor rstd) {
  const bool sum = y.numel() == h.numel();
  const int64_t B = h.size(0), T = h.size(1), D = h.size(2);
  for (auto& [name, t] : {std::pair{"dout", dout}, {"h", h}, {"y", sum ? y : h}, {"dh", sum ? dh : h}})
    check_rows(t, name, h.scalar_type());
  Tensor dx = torch::stable::empty_like(h);
  Tensor dy = sum ? torch::stable::empty_like(h) : torch::stable::new_empty(h, {0});
  Tensor dgate = floats_like(h, {sum ? B : 0, D});
  Tensor dshift = floats_like(h, {B, D}), dscale = floats_like(h, {B, D});
  by_dtype(h, [&](auto kind) {
    using E = decltype(kind);
    const ldae::AdaLNBackward<E> a{
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

// u (..., width), bias (width) float32.
Tensor bias_gelu_forward(Tensor u, Tensor bias, bool tanh) {
  check_rows(u, "u", u.scalar_type());
  check_rows(bias, "bias", ScalarType::Float);
  const int64_t width = bias.numel(), rows = width ? u.numel() / width : 0;
  Tensor out = torch::stable::empty_like(u);
  by_dtype(u, [&](auto kind) {
    using E = decltype(kind);
    const ldae::BiasGelu<E> a{at<E>(u), at<float>(bias), at<E>(out), width, tanh};
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      ldae::bias_gelu_forward(a, begin, end);
    });
  });
  return out;
}

// (du, dbias). A fixed number of chunks, whatever the threads, so that sums repeat bit for bit.
std::tuple<Tensor, Tensor> bias_gelu_backward(Tensor dout, Tensor u, Tensor bias, bool tanh) {
  for (auto& [name, t] : {std::pair{"dout", dout}, {"u", u}}) check_rows(t, name, u.scalar_type());
  check_rows(bias, "bias", ScalarType::Float);
  const int64_t width = bias.numel(), rows = width ? u.numel() / width : 0;
  const int64_t chunks = rows < 64 ? rows : 64;
  Tensor du = torch::stable::empty_like(u);
  Tensor sums = floats_like(u, {chunks, width});
  by_dtype(u, [&](auto kind) {
    using E = decltype(kind);
    const ldae::BiasGeluBackward<E> a{at<E>(dout), at<E>(u), at<float>(bias), at<E>(du),
                                      at<float>(sums), rows, width, chunks, tanh};
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      ldae::bias_gelu_backward(a, begin, end);
    });
  });
  const int64_t over[] = {0};
  return {du, torch::stable::sum(sums, over)};
}

}  // namespace

STABLE_TORCH_LIBRARY(ldae, m) {
  m.def("adaln_forward(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("adaln_backward(Tensor dh, Tensor dout, Tensor h, Tensor y, Tensor gate, Tensor scale,"
        " Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("bias_gelu_forward(Tensor u, Tensor bias, bool tanh) -> Tensor");
  m.def("bias_gelu_backward(Tensor dout, Tensor u, Tensor bias, bool tanh) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) {
  m.impl("adaln_forward", TORCH_BOX(&adaln_forward));
  m.impl("adaln_backward", TORCH_BOX(&adaln_backward));
  m.impl("bias_gelu_forward", TORCH_BOX(&bias_gelu_forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&bias_gelu_backward));
}

// Importing the module is what loads the library; it has no functions of its own.
PyMODINIT_FUNC PyInit_library(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "library", nullptr, -1, nullptr,
                               nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
