// Binds the normals: ldae::normal.

#include "normal.h"

#include "binding.h"

namespace ldae {
namespace {

Tensor make(int64_t seed, int64_t step, Tensor ids, int64_t elements, ScalarType dtype) {
  STD_TORCH_CHECK(elements >= 0, "elements must be 0 or more; got ", elements);
  STD_TORCH_CHECK(ids.dim() == 1, "sample_ids must be (B,)");
  check(ids, "sample_ids", ScalarType::Long, {ids.size(0)});
  Tensor out = ldae::new_empty(ids, {ids.size(0), elements}, dtype);
  by_output_dtype(dtype, [&](auto kind) {
    using E = decltype(kind);
    const Normal<E> a{{uint64_t(seed), uint32_t(step)}, at<int64_t>(ids), at<E>(out), elements};
    torch::stable::parallel_for(0, ids.size(0) * a.chunks(), 8, [&](int64_t begin, int64_t end) {
      normal(a, begin, end);
    });
  });
  return out;
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("normal(SymInt seed, SymInt step, Tensor sample_ids, SymInt elements, ScalarType dtype)"
        " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) { m.impl("normal", TORCH_BOX(&ldae::make)); }
