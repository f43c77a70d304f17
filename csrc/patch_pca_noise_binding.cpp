// Binds the noise op: ldae::patch_pca_noise.

#include "patch_pca_noise.h"

#include "images_binding.h"

namespace ldae {
namespace {

enum Outputs { CLEAN = 1, NOISY = 2, PATCHES = 4, NOISE = 8 };

std::vector<double> in_float64(const Vectors& given, int64_t rows, int64_t columns) {
  std::vector<double> values;
  values.reserve(rows * columns);
  for (int64_t i = 0; i < rows; ++i)
    given.row(i, [&](const auto* row) {
      for (int64_t j = 0; j < columns; ++j) values.push_back(to_double(row[j * given.step]));
    });
  return values;
}

// Normalisation, centre, basis and scale as one product each way, in float64, padded to whole
// vectors: latents = (values - offset) weight + bias, patches = latents back + center.
// The offset keeps the sums small; digits, whose sums are exact, have none.
struct Fold {
  std::vector<float> weight, mirrored, bias, back, center;
  std::optional<DigitsOf> digits;

  Fold(const Images& in, const Vectors& basis, const Vectors& mean_patch, const Vectors& scale,
       int64_t d, const std::vector<double>& mean, const std::vector<double>& std, bool inverse,
       bool by_digits) {
    const int64_t P = in.values(), C = in.channels;
    const int64_t wide = padded(d);
    const double unit = in.bytes ? 255 : 1, offset = in.bytes ? MIDDLE : 0;
    const std::vector<double> kept = in_float64(basis, d, P), means = in_float64(mean_patch, 1, P),
                              scales = in_float64(scale, 1, d);
    const double *v = kept.data(), *m = means.data(), *s = scales.data();
    bias.resize(wide);
    std::vector<double> factor(P), middle(P), exact(d * P);
    for (int64_t i = 0; i < P; ++i) {
      factor[i] = 1 / (unit * std[i % C]);
      middle[i] = (offset / unit - mean[i % C]) / std[i % C] - m[i];
    }
    for (int64_t k = 0; k < d; ++k) {
      const double part = 1 / s[k];
      for (int64_t i = 0; i < P; ++i) exact[k * P + i] = v[k * P + i] * part * factor[i];
    }
    if (by_digits) digits.emplace(in, exact, d);
    if (digits && !digits->enough) digits.reset();
    for (int64_t k = 0; k < d; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < P; ++i) sum += v[k * P + i] * middle[i];
      bias[k] = float(sum / s[k] - (digits ? offset * digits->sums[k] : 0));
    }
    if (inverse) inverted(v, m, s, d, P);
    if (digits) return;
    weight.resize(P * wide);
    for (int64_t k = 0; k < d; ++k)
      for (int64_t i = 0; i < P; ++i) weight[i * wide + k] = float(exact[k * P + i]);
    if (in.flip) {
      mirrored.resize(weight.size());
      for (int64_t i = 0; i < P; ++i)
        std::copy_n(&weight[in.mirrored(i) * wide], wide, &mirrored[i * wide]);
    }
  }

  void inverted(const double* v, const double* m, const double* s, int64_t d, int64_t P) {
    const int64_t wideP = padded(P);
    back.resize(d * wideP), center.resize(wideP);
    for (int64_t k = 0; k < d; ++k)
      for (int64_t i = 0; i < P; ++i) back[k * wideP + i] = float(v[k * P + i] * s[k]);
    for (int64_t i = 0; i < P; ++i) center[i] = float(m[i]);
  }
};

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// (clean latents, noisy latents, noisy patches, noise); those not asked for are empty.
Four make(Tensor images, Tensor basis, Tensor center, Tensor scale, Tensor gamma, Tensor sigma,
          Tensor ids, int64_t seed, int64_t step, std::optional<Tensor> flip,
          std::optional<Tensor> crop, std::vector<double> mean, std::vector<double> std,
          int64_t height, int64_t width, int64_t patch, int64_t outputs, ScalarType dtype) {
  const Images in = images_of(images, flip, crop, height, width, patch);
  check_crops(in, images.size(0));
  const int64_t B = images.size(0), C = in.channels, P = in.values(), T = in.tokens();
  STD_TORCH_CHECK(basis.dim() == 2, "basis must be (d, P)");
  const int64_t d = basis.size(0);
  const Vectors components = vectors(basis, "basis", {d, P});
  const Vectors middle = vectors(center, "center", {P}), deviations = vectors(scale, "scale", {d});
  check(gamma, "gamma", ScalarType::Float, {B});
  check(sigma, "sigma", ScalarType::Float, {B});
  check(ids, "sample_ids", ScalarType::Long, {B});
  STD_TORCH_CHECK(int64_t(mean.size()) == C && int64_t(std.size()) == C,
                  "mean and std must have one value a channel");
  auto output = [&](Outputs which, int64_t last) {
    return outputs & which ? ldae::new_empty(images, {B, T, last}, dtype)
                           : ldae::new_empty(images, {0}, dtype);
  };
  Tensor clean = output(CLEAN, d), noisy = output(NOISY, d), patches = output(PATCHES, P);
  Tensor noise = output(NOISE, d);
  if (B * T == 0) return {clean, noisy, patches, noise};
  const bool by_digits = dtype == ScalarType::BFloat16 && digits_serve(in);
  const Fold fold(in, components, middle, deviations, d, mean, std, outputs & PATCHES, by_digits);
  by_output_dtype(dtype, [&](auto kind) {
    using E = decltype(kind);
    auto pointer = [&](Outputs which, const Tensor& t) {
      return outputs & which ? at<E>(t) : nullptr;
    };
    const PatchPCANoise<E> a{in,
                             fold.weight.data(),
                             fold.mirrored.data(),
                             fold.bias.data(),
                             fold.back.data(),
                             fold.center.data(),
                             at<float>(gamma),
                             at<float>(sigma),
                             fold.digits ? fold.digits->pointers() : Digits{},
                             at<int64_t>(ids),
                             {uint64_t(seed), uint32_t(step)},
                             pointer(CLEAN, clean),
                             pointer(NOISY, noisy),
                             pointer(PATCHES, patches),
                             pointer(NOISE, noise),
                             d};
    torch::stable::parallel_for(0, B * in.strips(), 1, [&](int64_t begin, int64_t end) {
      patch_pca_noise(a, begin, end);
    });
  });
  return {clean, noisy, patches, noise};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("patch_pca_noise(Tensor images, Tensor basis, Tensor center, Tensor scale, Tensor gamma,"
        " Tensor sigma, Tensor sample_ids, SymInt seed, SymInt step, Tensor? flip, Tensor? crop,"
        " float[] mean, float[] std, SymInt height, SymInt width, int patch, int outputs,"
        " ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) { m.impl("patch_pca_noise", TORCH_BOX(&ldae::make)); }
