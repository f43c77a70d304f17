// Binds the passes between attention's products: ldae::softmax_ and ldae::softmax_backward_.

#include "attention.h"

#include "binding.h"

namespace ldae {
namespace {

constexpr int64_t ROWS = 64;  // a thread's smallest share

void forward(Tensor x, double scale) {
  STD_TORCH_CHECK(x.dim() == 3, "scores must have 3 dimensions; got ", x.dim());
  const int64_t rows = x.size(0) * x.size(1), width = x.size(2);
  check(x, "scores", x.scalar_type(), {x.size(0), x.size(1), width});
  by_dtype(x, [&](auto kind) {
    using E = decltype(kind);
    const Softmax<E> a{at<E>(x), width, float(scale)};
    torch::stable::parallel_for(0, rows, ROWS, [&](int64_t begin, int64_t end) {
      ldae::softmax(a, begin, end);
    });
  });
}

void backward(Tensor d, Tensor p, double scale) {
  STD_TORCH_CHECK(p.dim() == 3, "probabilities must have 3 dimensions; got ", p.dim());
  const int64_t rows = p.size(0) * p.size(1), width = p.size(2);
  check(p, "probabilities", p.scalar_type(), {p.size(0), p.size(1), width});
  check(d, "gradient", p.scalar_type(), {p.size(0), p.size(1), width});
  by_dtype(p, [&](auto kind) {
    using E = decltype(kind);
    const SoftmaxBackward<E> a{at<E>(p), at<E>(d), width, float(scale)};
    torch::stable::parallel_for(0, rows, ROWS, [&](int64_t begin, int64_t end) {
      ldae::softmax_backward(a, begin, end);
    });
  });
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("softmax_(Tensor(a!) scores, float scale) -> ()");
  m.def("softmax_backward_(Tensor(a!) gradient, Tensor probabilities, float scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) {
  m.impl("softmax_", TORCH_BOX(&ldae::forward));
  m.impl("softmax_backward_", TORCH_BOX(&ldae::backward));
}
