// Binds the loss: ldae::denoise_loss.

#include "denoise_loss.h"

#include "images_binding.h"

namespace ldae {
namespace {

using Two = std::tuple<Tensor, Tensor>;

// (loss (B,), gradient in pred for that upstream gradient (B,) of the loss, empty without one)
Two loss(Tensor pred, Tensor images, Tensor basis, Tensor excess, Tensor level,
         std::optional<Tensor> upstream, std::optional<Tensor> flip, std::optional<Tensor> crop,
         std::vector<double> mean, std::vector<double> std, double rest, int64_t height,
         int64_t width, int64_t patch) {
  const Images in = images_of(images, flip, crop, height, width, patch);
  check_crops(in, images.size(0));
  const int64_t B = images.size(0), C = in.channels, T = in.tokens(), P = in.values();
  STD_TORCH_CHECK(basis.dim() == 2, "basis must be (d, P)");
  const int64_t d = basis.size(0), wide = padded(d), wideP = padded(P);
  check(pred, "pred", pred.scalar_type(), {B, T, P});
  check(basis, "basis", ScalarType::Float, {d, P});
  check(excess, "weights", ScalarType::Float, {d});
  check(level, "level_weight", ScalarType::Float, {B});
  if (upstream) check(*upstream, "upstream", ScalarType::Float, {B});
  STD_TORCH_CHECK(int64_t(mean.size()) == C && int64_t(std.size()) == C,
                  "mean and std must have one value a channel");
  std::vector<float> factor, offset, weight(wide), slope(B), forth(d * wideP), turned(P * wide);
  for (int64_t j = 0; j < in.piece(); ++j) {
    factor.push_back(float(1 / ((in.bytes ? 255 : 1) * std[j % C])));
    offset.push_back(float(mean[j % C] / std[j % C]));
  }
  for (int64_t k = 0; k < d; ++k) {
    weight[k] = at<float>(excess)[k];
    for (int64_t i = 0; i < P; ++i)
      forth[k * wideP + i] = turned[i * wide + k] = at<float>(basis)[k * P + i];
  }
  for (int64_t b = 0; upstream && b < B; ++b)
    slope[b] = float(-2.0 * at<float>(level)[b] * at<float>(*upstream)[b] / (double(T) * P));
  Tensor out = floats_like(pred, {B});
  Tensor dpred = upstream ? ldae::empty_like(pred) : ldae::new_empty(pred, {0, T, P});
  by_dtype(pred, [&](auto kind) {
    using E = decltype(kind);
    std::vector<double> sums(B * in.strips());
    const DenoiseLoss<E> a{in,
                           at<E>(pred),
                           factor.data(),
                           offset.data(),
                           forth.data(),
                           turned.data(),
                           weight.data(),
                           slope.data(),
                           float(rest),
                           sums.data(),
                           upstream ? at<E>(dpred) : nullptr,
                           d};
    torch::stable::parallel_for(0, T ? B * in.strips() : 0, 1, [&](int64_t begin, int64_t end) {
      denoise_loss(a, begin, end);
    });
    for (int64_t b = 0; b < B; ++b) {
      double total = 0;
      for (int64_t i = 0; i < in.strips(); ++i) total += sums[b * in.strips() + i];
      at<float>(out)[b] = float(at<float>(level)[b] * (total / (double(T) * P)));
    }
  });
  return {out, dpred};
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("denoise_loss(Tensor pred, Tensor images, Tensor basis, Tensor excess, Tensor level,"
        " Tensor? upstream, Tensor? flip, Tensor? crop, float[] mean, float[] std, float rest,"
        " SymInt height, SymInt width, int patch) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) { m.impl("denoise_loss", TORCH_BOX(&ldae::loss)); }
