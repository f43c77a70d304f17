// Reads the images' arguments of a binding: every size checked.
#pragma once

#include "binding.h"
#include "images.h"

namespace ldae {

// images: uint8 (B, H, W, C) or float32 (B, C, H, W); without a crop the whole image.
inline Images images_of(const Tensor& images, const std::optional<Tensor>& flip,
                        const std::optional<Tensor>& crop, int64_t height, int64_t width,
                        int64_t patch) {
  STD_TORCH_CHECK(images.dim() == 4 && images.is_contiguous(), "images must be 4-D and contiguous");
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || images.scalar_type() == ScalarType::Float,
                  "images must be uint8 or float32");
  const int64_t B = images.size(0), C = images.size(bytes ? 3 : 1);
  const int64_t rows = images.size(bytes ? 1 : 2), columns = images.size(bytes ? 2 : 3);
  STD_TORCH_CHECK(patch > 0 && height % patch == 0 && width % patch == 0 && height >= 0 &&
                      width >= 0 && height <= rows && width <= columns,
                  "patch must divide a window inside the images");
  if (flip) check(*flip, "flip", ScalarType::Bool, {B});
  if (crop) check(*crop, "crop", ScalarType::Long, {B, 2});
  return {bytes ? at<uint8_t>(images) : nullptr,
          bytes ? nullptr : at<float>(images),
          rows,
          columns,
          flip ? at<bool>(*flip) : nullptr,
          crop ? at<int64_t>(*crop) : nullptr,
          height,
          width,
          C,
          patch};
}

// Refuses crops that leave their image; on a CPU, where their values can be read.
inline void check_crops(const Images& in, int64_t batch) {
  for (int64_t b = 0; in.crop && b < batch; ++b) {
    const int64_t top = in.crop[2 * b], left = in.crop[2 * b + 1];
    const bool inside =
        top >= 0 && left >= 0 && top <= in.rows - in.height && left <= in.columns - in.width;
    STD_TORCH_CHECK(inside, "crop must keep each ", in.height, " x ", in.width,
                    " window inside its ", in.rows, " x ", in.columns, " image; sample ", b,
                    " has (", top, ", ", left, ")");
  }
}

}  // namespace ldae
