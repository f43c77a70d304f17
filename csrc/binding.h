// What the bindings share: typed pointers, argument checks, a call for the dtype at hand.
//
// Only binding files know torch. They are built on its stable ABI and Python's limited API, so that
// one build serves every torch from 2.11 and every Python from 3.10.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "vec.h"
#include "vectors.h"

namespace ldae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
T* at(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline void check_sizes(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(t.dim() == int64_t(sizes.size()), name, " must have ", sizes.size(),
                  " dimensions; got ", t.dim());
  int64_t dim = 0;
  for (int64_t size : sizes) {
    STD_TORCH_CHECK(t.size(dim) == size, name, " must have size ", size, " in dimension ", dim,
                    "; got ", t.size(dim));
    ++dim;
  }
}

// Refuses what a kernel would misread: another dtype, another shape, gaps between the values.
inline void check(const Tensor& t, const char* name, ScalarType dtype,
                  std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  check_sizes(t, name, sizes);
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

// (columns,) or (rows, columns) of any float type, wherever the values lie.
inline Vectors vectors(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  check_sizes(t, name, sizes);
  const ScalarType dtype = t.scalar_type();
  const auto type = dtype == ScalarType::Float      ? Vectors::FLOAT
                    : dtype == ScalarType::BFloat16 ? Vectors::BFLOAT16
                    : dtype == ScalarType::Half     ? Vectors::HALF
                                                    : Vectors::DOUBLE;
  STD_TORCH_CHECK(type != Vectors::DOUBLE || dtype == ScalarType::Double, name,
                  " must be float32, bfloat16, float16 or float64");
  return {type, t.data_ptr(), sizes.size() == 2 ? t.stride(0) : 0, t.stride(sizes.size() - 1)};
}

// Runs kernel(T{}) for the float type of x.
template <class F>
void by_dtype(const Tensor& x, const F& kernel) {
  if (x.scalar_type() == ScalarType::Float) return kernel(float{});
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "dtype must be float32 or bfloat16");
  kernel(bf16{});
}

// The same for an output's dtype, which may be float16 too.
template <class F>
void by_output_dtype(ScalarType dtype, const F& kernel) {
  if (dtype == ScalarType::Float) return kernel(float{});
  if (dtype == ScalarType::Half) return kernel(half{});
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16, "dtype must be float32, bfloat16 or float16");
  kernel(bf16{});
}

// A new contiguous tensor on x's device, in x's dtype where none is given. By the function of the stable
// ABI itself: the way through the dispatcher, which finds an op by its name, takes longer than a small op.
inline Tensor new_empty(const Tensor& x, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                        std::optional<ScalarType> dtype = {}) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;)
    strides[i - 1] = strides[i] * std::max(sizes[i], int64_t(1));
  AtenTensorHandle made;
  const auto failed = aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(),
      to<int32_t>(from(dtype.value_or(x.scalar_type()))), to<int32_t>(from(x.device().type())),
      x.get_device_index(), &made);
  // The ABI drops what the allocator said; "allocate memory" is what callers look for.
  STD_TORCH_CHECK(!failed, "can't allocate memory for a result of this op");
  return Tensor(made);
}

// By qualified names: torch has functions of these names, which the argument alone would find.
inline Tensor empty_like(const Tensor& x) { return ldae::new_empty(x, x.sizes()); }

inline Tensor floats_like(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return ldae::new_empty(x, sizes, ScalarType::Float);
}

}  // namespace ldae
