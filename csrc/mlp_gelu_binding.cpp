// Binds bias + GELU: ldae::bias_gelu_forward and ldae::bias_gelu_backward.

#include "mlp_gelu.h"

#include <vector>

#include "binding.h"

namespace ldae {
namespace {

void check_rows(const Tensor& t, const char* name, ScalarType dtype, int64_t width) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.dim() > 0 && t.size(t.dim() - 1) == width, name, " must be (..., ", width, ")");
}

// u (..., width), bias (width) of any float type.
Tensor forward(Tensor u, Tensor bias, bool tanh) {
  const int64_t width = bias.numel(), rows = width ? u.numel() / width : 0;
  const Vectors biases = vectors(bias, "bias", {width});
  check_rows(u, "u", u.scalar_type(), width);
  Tensor out = ldae::empty_like(u);
  by_dtype(u, [&](auto kind) {
    using E = decltype(kind);
    const BiasGelu<E> a{at<E>(u), biases, at<E>(out), width, tanh};
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      ldae::bias_gelu_forward(a, begin, end);
    });
  });
  return out;
}

// (du, dbias). A fixed number of chunks, whatever the threads, so that sums repeat bit for bit.
std::tuple<Tensor, Tensor> backward(Tensor dout, Tensor u, Tensor bias, bool tanh) {
  const int64_t width = bias.numel(), rows = width ? u.numel() / width : 0;
  const Vectors biases = vectors(bias, "bias", {width});
  check_rows(u, "u", u.scalar_type(), width);
  check_rows(dout, "dout", u.scalar_type(), width);
  STD_TORCH_CHECK(dout.numel() == u.numel(), "dout must have the shape of u");
  const int64_t chunks = rows < 64 ? rows : 64;
  Tensor du = ldae::empty_like(u), dbias = ldae::new_empty(bias, {width});
  std::vector<float> sums(chunks * width), total(width);
  by_dtype(u, [&](auto kind) {
    using E = decltype(kind);
    const BiasGeluBackward<E> a{at<E>(dout), at<E>(u), biases, at<E>(du), sums.data(),
                                rows,        width,    chunks, tanh};
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      ldae::bias_gelu_backward(a, begin, end);
    });
  });
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t i = 0; i < width; ++i) total[i] += sums[c * width + i];
  vectors(dbias, "dbias", {width}).narrow(total.data(), width, 0);
  return {du, dbias};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("bias_gelu_forward(Tensor u, Tensor bias, bool tanh) -> Tensor");
  m.def("bias_gelu_backward(Tensor dout, Tensor u, Tensor bias, bool tanh) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) {
  m.impl("bias_gelu_forward", TORCH_BOX(&ldae::forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&ldae::backward));
}
