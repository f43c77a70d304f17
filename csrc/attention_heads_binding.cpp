// Binds attention by heads: ldae::attention_heads and ldae::attention_heads_backward.

#include "attention_heads.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "binding.h"

namespace ldae {
namespace {

constexpr int64_t ROWS = 64;  // a thread's smallest share

// Part `i` of x (B, T, parts, heads, width), or x (B, T, heads, width) itself; its width together.
HeadView view(const Tensor& x, const char* name, int64_t i = 0) {
  const int64_t last = x.dim() - 1, packed = last == 4;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, name, " must be bfloat16");
  STD_TORCH_CHECK(x.stride(last) == 1 || x.size(last) == 1, name,
                  "'s last dimension must lie together");
  return {at<bf16>(x) + (packed ? i * x.stride(2) : 0), x.stride(0), x.stride(1),
          x.stride(last - 1)};
}

// Rows of weights (B, heads, T, T).
HeadView rows(const Tensor& weights) {
  return {at<bf16>(weights), weights.stride(0), weights.stride(2), weights.stride(1)};
}

// q, k, v and their sizes, from one packed (B, T, 3, heads, width) where k and v are not given.
struct Arguments {
  HeadView q, k, v;
  int64_t B, T, heads, width;
  float scale;

  Arguments(const Tensor& first, const std::optional<Tensor>& second,
            const std::optional<Tensor>& third) {
    const bool packed = !second;
    STD_TORCH_CHECK(packed == !third, "k and v must be given together");
    STD_TORCH_CHECK(first.dim() == 4 + packed, packed ? "qkv" : "q", " must have ", 4 + packed,
                    " dimensions; got ", first.dim());
    B = first.size(0), T = first.size(1), heads = first.size(2 + packed);
    width = first.size(3 + packed), scale = 1 / std::sqrt(float(width));
    if (packed) {
      check_sizes(first, "qkv", {B, T, 3, heads, width});
      q = view(first, "qkv", 0), k = view(first, "qkv", 1), v = view(first, "qkv", 2);
    } else {
      check_sizes(*second, "k", {B, T, heads, width});
      check_sizes(*third, "v", {B, T, heads, width});
      q = view(first, "q"), k = view(*second, "k"), v = view(*third, "v");
    }
  }

  template <class F>
  void each_head(const F& run) const {
    const int64_t grain = T < ROWS ? ROWS / std::max<int64_t>(T, 1) : 1;
    if (B * heads * T * width > 0) torch::stable::parallel_for(0, B * heads, grain, run);
  }
};

// (out (B, T, heads, width), weights (B, heads, T, T)).
std::tuple<Tensor, Tensor> forward(Tensor q, std::optional<Tensor> k, std::optional<Tensor> v) {
  const Arguments in(q, k, v);
  Tensor out = ldae::new_empty(q, {in.B, in.T, in.heads, in.width});
  Tensor weights = ldae::new_empty(q, {in.B, in.heads, in.T, in.T});
  const AttentionHeads a{in.q,           in.k,     in.v, view(out, "out"),
                         rows(weights), in.heads, in.T, in.width,
                         in.scale};
  in.each_head([&](int64_t begin, int64_t end) { attention_heads(a, begin, end); });
  return {out, weights};
}

// The gradients of q, k and v, packed.
Tensor backward(Tensor dout, Tensor weights, Tensor q, std::optional<Tensor> k,
                std::optional<Tensor> v) {
  const Arguments in(q, k, v);
  check_sizes(dout, "dout", {in.B, in.T, in.heads, in.width});
  check(weights, "weights", ScalarType::BFloat16, {in.B, in.heads, in.T, in.T});
  Tensor made = ldae::new_empty(q, {in.B, in.T, 3, in.heads, in.width});
  const AttentionHeadsBackward a{view(dout, "dout"),    in.q,
                                 in.k,                  in.v,
                                 view(made, "dqkv", 0), view(made, "dqkv", 1),
                                 view(made, "dqkv", 2), rows(weights),
                                 in.heads,              in.T,
                                 in.width,              in.scale};
  in.each_head([&](int64_t begin, int64_t end) { attention_heads_backward(a, begin, end); });
  return made;
}

bool pay() { return attention_heads_pay(); }

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("attention_heads(Tensor q, Tensor? k, Tensor? v) -> (Tensor, Tensor)");
  m.def("attention_heads_backward(Tensor dout, Tensor weights, Tensor q, Tensor? k, Tensor? v)"
        " -> Tensor");
  m.def("attention_heads_pay() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) {
  m.impl("attention_heads", TORCH_BOX(&ldae::forward));
  m.impl("attention_heads_backward", TORCH_BOX(&ldae::backward));
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CompositeExplicitAutograd, m) {
  m.impl("attention_heads_pay", TORCH_BOX(&ldae::pay));
}
