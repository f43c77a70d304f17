// Binds the noise op on a GPU: ldae::patch_pca_noise_cuda, whose weights come folded.

#include "cuda_binding.h"
#include "images_binding.h"

namespace ldae {
namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// (clean latents, noisy latents, noisy patches, noise); those not asked for are empty.
Four make(Tensor images, Tensor weight, Tensor bias, Tensor back, Tensor center, Tensor gamma,
          Tensor sigma, Tensor ids, int64_t seed, int64_t step, std::optional<Tensor> flip,
          std::optional<Tensor> crop, int64_t height, int64_t width, int64_t patch,
          int64_t outputs, ScalarType dtype) {
  const Images in = images_of(images, flip, crop, height, width, patch);
  const int64_t B = images.size(0), P = in.values(), T = in.tokens();
  STD_TORCH_CHECK(weight.dim() == 2, "weight must be (P, d)");
  const int64_t d = weight.size(1);
  check(weight, "weight", ScalarType::Float, {P, d});
  check(bias, "bias", ScalarType::Float, {d});
  check(gamma, "gamma", ScalarType::Float, {B});
  check(sigma, "sigma", ScalarType::Float, {B});
  check(ids, "sample_ids", ScalarType::Long, {B});
  const int64_t last[] = {d, d, P, d};
  std::vector<Tensor> made;
  void* pointers[4];
  for (int i = 0; i < 4; ++i) {
    const bool wanted = outputs >> i & 1;
    made.push_back(wanted ? ldae::new_empty(images, {B, T, last[i]}, dtype)
                          : ldae::new_empty(images, {0}, dtype));
    pointers[i] = wanted ? made[i].data_ptr() : nullptr;
  }
  if (pointers[2]) {
    check(back, "back", ScalarType::Float, {d, P});
    check(center, "center", ScalarType::Float, {P});
  }
  const PatchPCANoiseCall call{in.bytes,
                               in.floats,
                               reinterpret_cast<const uint8_t*>(in.flip),
                               in.crop,
                               at<float>(weight),
                               at<float>(bias),
                               at<float>(back),
                               at<float>(center),
                               at<float>(gamma),
                               at<float>(sigma),
                               at<int64_t>(ids),
                               pointers[0],
                               pointers[1],
                               pointers[2],
                               pointers[3],
                               uint64_t(seed),
                               step,
                               B,
                               in.rows,
                               in.columns,
                               height,
                               width,
                               in.channels,
                               patch,
                               d,
                               kind_of(dtype)};
  on_device_of(images, [&](void* stream) { return ldae_patch_pca_noise_cuda(&call, stream); });
  return {made[0], made[1], made[2], made[3]};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("patch_pca_noise_cuda(Tensor images, Tensor weight, Tensor bias, Tensor back,"
        " Tensor center, Tensor gamma, Tensor sigma, Tensor sample_ids, int seed, int step,"
        " Tensor? flip, Tensor? crop, int height, int width, int patch, int outputs,"
        " ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CUDA, m) {
  m.impl("patch_pca_noise_cuda", TORCH_BOX(&ldae::make));
}
