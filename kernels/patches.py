"""Cuts images into normalised patches: the one definition that the image-reading ops share.

A patch is P = C p p values in the order (row, column, channel), so that one patch row is p*C
consecutive values of an NHWC image. Tokens run row by row over the image.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .implementation import (
    FLOAT,
    FLOATS,
    number,
    refuse,
    require_device,
    require_float_dtype,
    require_floats,
    require_whole,
)

CORNERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class ImageView:
    """How an op reads its images: crop a window, mirror it, normalise, cut into patches.

    patch: side of a patch in pixels. mean, std: per channel, in units of the image's values divided
    by 255 for uint8 (float images are taken as they are: pass mean 0 and std 1 if normalised).
    Raises ValueError naming a bad one. Source: ViT (Dosovitskiy et al., 2021), whose tokens patches
    are.

    >>> white = torch.full((1, 2, 2, 1), 255, dtype=torch.uint8)
    >>> patchify(white, ImageView(2, mean=(0.5,), std=(0.25,)))
    tensor([[[2., 2., 2., 2.]]])
    """

    patch: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        require_whole("ImageView", "patch", self.patch, 1)
        finite = isinstance(self.mean, Collection) and all(map(number, self.mean))
        if not finite:
            refuse("ImageView", "mean", "finite numbers", self.mean)
        above = isinstance(self.std, Collection) and all(number(s, 0) and s > 0 for s in self.std)
        if not above:
            refuse("ImageView", "std", "finite numbers above 0", self.std)
        if not 0 < len(self.mean) == len(self.std):
            refuse("ImageView", "mean and std", "one value a channel", (self.mean, self.std))


def crop_windows(images: Tensor, crop: Tensor, size: int) -> Tensor:
    """The (size, size) window of each NHWC image with its top left corner at crop (B, 2) int64."""
    rows = crop[:, 0, None] + torch.arange(size, device=images.device)  # (B, size)
    columns = crop[:, 1, None] + torch.arange(size, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sample, rows[:, :, None], columns[:, None, :]]


def require_view(op: str, view: object) -> None:
    """ValueError unless `view` is one."""
    if not isinstance(view, ImageView):
        refuse(op, "view", "an ImageView", view)


def check_basis(op: str, basis: Tensor, view: ImageView) -> int:
    """P, the values of the view's patches; ValueError unless basis is (d, P) with d up to P."""
    require_view(op, view)
    values = view.patch**2 * len(view.mean)
    if basis.dim() != 2 or basis.shape[1] != values:
        refuse(op, "basis", f"(d, {values})", basis.shape)
    if not 0 < basis.shape[0] <= values:
        refuse(op, "basis", f"of 1 to {values} rows", basis.shape[0])
    return values


def check_images(op: str, images: Tensor, view: ImageView, flip, crop, size) -> None:
    """ValueError that names the first bad argument."""
    if not isinstance(images, Tensor):
        refuse(op, "images", "a tensor", type(images))
    require_view(op, view)
    uint8 = images.dtype == torch.uint8
    if images.dim() != 4:
        refuse(op, "images", "uint8 (B, H, W, C) or float (B, C, H, W)", images.shape)
    if not (uint8 or images.dtype in FLOATS):
        refuse(op, "images.dtype", f"uint8 or {FLOAT}", images.dtype)
    if not torch.compiler.is_compiling() and images.layout != torch.strided:
        refuse(op, "images", "dense", images.layout)
    channels = images.shape[3] if uint8 else images.shape[1]
    if channels != len(view.mean):
        order = "uint8 images are (B, H, W, C)" if uint8 else "float images are (B, C, H, W)"
        expected = f"one value a channel ({channels}, as {order})"
        refuse(op, "view.mean and view.std", expected, (view.mean, view.std))
    mirrored = flip is None or (
        isinstance(flip, Tensor) and flip.shape == images.shape[:1] and flip.dtype == torch.bool
    )
    if not mirrored:
        refuse(op, "flip", "(B,) bool", flip)
    require_device(op, images, flip=flip, crop=crop)
    if (crop is None) != (size is None):
        refuse(op, "crop and size", "given together", (crop, size))
    height, width = images.shape[1:3] if uint8 else images.shape[2:4]
    if crop is not None:
        if not isinstance(crop, Tensor):
            refuse(op, "crop", "a tensor", type(crop))
        if crop.shape != (len(images), 2) or crop.dtype not in CORNERS:
            refuse(op, "crop", "(B, 2) int64", (tuple(crop.shape), crop.dtype))
        require_whole(op, "size", size, 1)
        if size > min(height, width):
            refuse(op, "size", f"at most {min(height, width)} pixels", size)
        check_corners(op, crop, height - size, width - size)
        height = width = size
    if height % view.patch != 0 or width % view.patch != 0:
        refuse(op, "view.patch", f"a divisor of {height} and {width}", view.patch)


def check_corners(op: str, crop: Tensor, lowest: int, rightmost: int) -> None:
    """ValueError for a window that leaves its image, where looking costs no wait for a device."""
    if torch.compiler.is_compiling() or type(crop) is not Tensor or crop.device.type != "cpu":
        return
    last = torch.tensor([lowest, rightmost], device=crop.device)
    inside = (crop >= 0) & (crop.long() <= last)
    came = crop[~inside.all(1)][:1].tolist()
    if came:
        refuse(op, "crop", f"from 0 to {lowest} down and 0 to {rightmost} across", came)


def patchify(
    images: Tensor,
    view: ImageView,
    *,
    flip: Tensor | None = None,
    crop: Tensor | None = None,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 (B, H, W, C) or float (B, C, H, W) -> normalised patches (B, T, P) in `dtype`.

    The P = p p C values of a patch run by row, column, channel, the channel fastest; the T patches
    row by row over the image. Order of work: crop the (size, size) window, in pixels, whose top
    left corner is crop (B, 2) int64, mirror where flip (B,) bool, normalise. Raises ValueError
    naming a bad argument. Source: ViT (Dosovitskiy et al., 2021); values in the order of MAE's code
    (He et al., 2022).

    >>> images = torch.arange(48, dtype=torch.uint8).view(1, 4, 4, 3)
    >>> (patchify(images, ImageView(2))[0, 1] * 255).round().int().tolist()
    [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]
    """
    check_images("patchify", images, view, flip, crop, size)
    require_float_dtype("patchify", dtype)
    if images.is_floating_point():
        images = images.permute(0, 2, 3, 1)
    if crop is not None:
        images = crop_windows(images, crop, size)
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(2), images)
    batch, height, width, channels = images.shape
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    # One multiply-add a value: (x / unit - mean) / std.
    mean = torch.tensor(view.mean, dtype=dtype, device=images.device)
    std = torch.tensor(view.std, dtype=dtype, device=images.device)
    x = images.to(dtype) * (1 / (unit * std)) - mean / std
    p = view.patch
    x = x.view(batch, height // p, p, width // p, p, channels).transpose(2, 3)
    return x.reshape(batch, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, view: ImageView, height: int, width: int) -> Tensor:
    """Normalised patches (B, T, P), in patchify's order, -> images (B, H, W, C) in their dtype.

    patches: of a float dtype. height, width: H and W in pixels, multiples of view.patch. What came
    from uint8 images has values 0..1, not clipped. Differentiable. Raises ValueError naming a bad
    argument. Source: as patchify, which it undoes (Dosovitskiy et al., 2021).

    >>> images = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    >>> back = unpatchify(patchify(images, ImageView(2)), ImageView(2), 4, 6)
    >>> torch.equal((back * 255).round().byte(), images)
    True
    """
    op = "unpatchify"
    require_floats(op, patches=patches)
    require_view(op, view)
    require_whole(op, "height", height)
    require_whole(op, "width", width)
    p, channels = view.patch, len(view.mean)
    if height % p != 0 or width % p != 0:
        refuse(op, "view.patch", f"a divisor of {height} and {width}", p)
    shape = (height // p * (width // p), p * p * channels)
    if patches.dim() != 3 or patches.shape[1:] != shape:
        refuse(op, "patches", f"(B, {shape[0]}, {shape[1]})", patches.shape)
    batch = len(patches)
    x = patches.view(batch, height // p, width // p, p, p, channels).transpose(2, 3)
    x = x.reshape(batch, height, width, channels)
    return x * x.new_tensor(view.std) + x.new_tensor(view.mean)
