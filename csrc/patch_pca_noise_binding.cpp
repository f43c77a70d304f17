// Binds the noise op: ldae::patch_pca_noise.
//
// Tensors without elements stand for what is not given: flip, crop.

#include "patch_pca_noise.h"

#include "binding.h"

namespace ldae {
namespace {

enum Outputs { CLEAN = 1, NOISY = 2, PATCHES = 4, NOISE = 8 };

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

void check_crop(const Tensor& crop, const Images& images, int64_t height, int64_t width) {
  for (int64_t b = 0; b < crop.size(0); ++b) {
    const int64_t top = images.crop[2 * b], left = images.crop[2 * b + 1];
    const bool inside = top >= 0 && left >= 0 && top <= images.rows - height &&
                        left <= images.columns - width;
    STD_TORCH_CHECK(inside, "crop must keep each ", height, " x ", width, " window inside its ",
                    images.rows, " x ", images.columns, " image; sample ", b, " has (", top, ", ",
                    left, ")");
  }
}

// weight (P, wide) with the pixels of each patch row from right to left.
Tensor mirror(const Tensor& weight, int64_t patch, int64_t channels) {
  Tensor out = torch::stable::empty_like(weight);
  const int64_t wide = weight.size(1), row = channels * wide;  // floats a pixel
  for (int64_t r = 0; r < patch; ++r)
    for (int64_t x = 0; x < patch; ++x)
      std::memcpy(at<float>(out) + (r * patch + x) * row,
                  at<float>(weight) + (r * patch + patch - 1 - x) * row, row * sizeof(float));
  return out;
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// (clean latents, noisy latents, noisy patches, noise); those not asked for are empty.
Four make(Tensor images, Tensor weight, Tensor bias, Tensor back, Tensor center, Tensor gamma,
          Tensor sigma, Tensor ids, int64_t seed, int64_t step, Tensor flip, Tensor crop,
          int64_t height, int64_t width, int64_t patch, int64_t d, int64_t outputs,
          ScalarType dtype) {
  STD_TORCH_CHECK(images.dim() == 4 && images.is_contiguous(), "images must be 4-D and contiguous");
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || images.scalar_type() == ScalarType::Float, "images must be uint8 or float32");
  const int64_t B = images.size(0), C = images.size(bytes ? 3 : 1);
  const int64_t rows = images.size(bytes ? 1 : 2), columns = images.size(bytes ? 2 : 3);
  STD_TORCH_CHECK(patch > 0 && height % patch == 0 && width % patch == 0 && height >= 0 && width >= 0 &&
                  height <= rows && width <= columns, "patch must divide a window inside the images");
  const int64_t P = patch * patch * C, T = (height / patch) * (width / patch);
  STD_TORCH_CHECK(d > 0 && d <= P, "d must be from 1 to ", P, "; got ", d);
  check(weight, "weight", ScalarType::Float, {P, padded(d)});
  check(bias, "bias", ScalarType::Float, {padded(d)});
  check(back, "back", ScalarType::Float, {d, padded(P)});
  check(center, "center", ScalarType::Float, {padded(P)});
  check(gamma, "gamma", ScalarType::Float, {B});
  check(sigma, "sigma", ScalarType::Float, {B});
  check(ids, "sample_ids", ScalarType::Long, {B});
  const bool flips = flip.numel() > 0, crops = crop.numel() > 0;
  if (flips) check(flip, "flip", ScalarType::Bool, {B});
  if (crops) check(crop, "crop", ScalarType::Long, {B, 2});
  const Images in{bytes ? at<uint8_t>(images) : nullptr, bytes ? nullptr : at<float>(images), rows,
                  columns, flips ? at<bool>(flip) : nullptr, crops ? at<int64_t>(crop) : nullptr};
  if (crops) check_crop(crop, in, height, width);
  const Tensor mirrored = flips ? mirror(weight, patch, C) : weight;
  auto output = [&](Outputs which, int64_t last) {
    return outputs & which ? torch::stable::new_empty(images, {B, T, last}, dtype)
                           : torch::stable::new_empty(images, {0}, dtype);
  };
  Tensor clean = output(CLEAN, d), noisy = output(NOISY, d), patches = output(PATCHES, P);
  Tensor noise = output(NOISE, d);
  by_output_dtype(dtype, [&](auto kind) {
    using E = decltype(kind);
    auto pointer = [&](Outputs which, const Tensor& t) { return outputs & which ? at<E>(t) : nullptr; };
    const PatchPCANoise<E> a{
        in, at<float>(weight), at<float>(mirrored), at<float>(bias), at<float>(back), at<float>(center), at<float>(gamma),
        at<float>(sigma), at<int64_t>(ids), {uint64_t(seed), uint32_t(step)}, pointer(CLEAN, clean),
        pointer(NOISY, noisy), pointer(PATCHES, patches), pointer(NOISE, noise), height, width, C,
        patch, d};
    torch::stable::parallel_for(0, T ? B * a.strips() : 0, 1, [&](int64_t begin, int64_t end) {
      patch_pca_noise(a, begin, end);
    });
  });
  return {clean, noisy, patches, noise};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("patch_pca_noise(Tensor images, Tensor weight, Tensor bias, Tensor back, Tensor center,"
        " Tensor gamma, Tensor sigma, Tensor sample_ids, int seed, int step, Tensor flip,"
        " Tensor crop, int height, int width, int patch, int d, int outputs,"
        " ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) { m.impl("patch_pca_noise", TORCH_BOX(&ldae::make)); }
