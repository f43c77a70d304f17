// Binds the normals on a GPU: ldae::normal for CUDA tensors.

#include "cuda_binding.h"

namespace ldae {
namespace {

Tensor make(int64_t seed, int64_t step, Tensor ids, int64_t elements, ScalarType dtype) {
  STD_TORCH_CHECK(elements >= 0, "elements must be 0 or more; got ", elements);
  STD_TORCH_CHECK(ids.dim() == 1, "sample_ids must be (B,)");
  check(ids, "sample_ids", ScalarType::Long, {ids.size(0)});
  Tensor out = ldae::new_empty(ids, {ids.size(0), elements}, dtype);
  const NormalCall call{uint64_t(seed), step,           at<int64_t>(ids),
                        ids.size(0),    elements,       kind_of(dtype),
                        out.data_ptr()};
  on_device_of(ids, [&](void* stream) { return ldae_normal_cuda(&call, stream); });
  return out;
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_IMPL(ldae, CUDA, m) { m.impl("normal", TORCH_BOX(&ldae::make)); }
