"""Shapes and inputs that tests and benchmarks run the op on."""

import torch

from ..patches import ImageView

SHAPES = {  # name: (B, H, W, C, patch, d, how)
    "one": (1, 2, 2, 1, 2, 1, ""),
    "odd": (3, 15, 10, 3, 5, 7, "flip"),
    "prime": (2, 19, 21, 3, 4, 13, "flip crop"),
    "small": (4, 32, 32, 3, 4, 16, "flip"),
    "float": (2, 8, 12, 3, 4, 33, "float flip"),
    "full": (2, 8, 8, 3, 4, 48, ""),
    "empty": (0, 8, 8, 3, 4, 5, ""),
}
BENCH = {
    "cpu-d16": (64, 256, 256, 3, 16, 16, "flip"),
    "cpu-d32": (64, 256, 256, 3, 16, 32, "flip"),
    "cpu-32px": (128, 32, 32, 3, 4, 16, "flip"),
    "gpu-d16": (256, 256, 256, 3, 16, 16, "flip"),
    "gpu-d32": (256, 256, 256, 3, 16, 32, "flip"),
}
DIFFERENTIABLE = ()
MEAN, STD = (0.48, 0.45, 0.41), (0.23, 0.22, 0.24)


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list, dict]:
    """Images, basis, center, scale, gamma, sigma, sample_ids; the rest as options.

    Test shapes ask for every output, benchmark shapes for the noisy latents alone.
    """
    batch, height, width, channels, patch, d, how = (SHAPES | BENCH)[name]
    g = torch.Generator().manual_seed(seed)
    values = patch * patch * channels
    images = torch.randint(0, 256, (batch, height, width, channels), generator=g)
    images = images.to(torch.uint8)
    view = ImageView(patch, MEAN[:channels], STD[:channels])
    if "float" in how:
        images, view = images.permute(0, 3, 1, 2) / 255, view
    square = torch.randn(values, values, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(square).Q.T[:d].float().contiguous()
    center = 0.3 * torch.randn(values, generator=g)
    scale = 0.5 + torch.rand(d, generator=g)
    gamma, sigma = torch.rand(batch, generator=g), 1.4 * torch.rand(batch, generator=g)
    ids = torch.randint(0, 2**62, (batch,), generator=g)
    options = {"seed": 2**63 + seed, "step": 9, "view": view, "dtype": dtype}
    if "flip" in how:
        options["flip"] = torch.rand(batch, generator=g) < 0.5
    if "crop" in how:
        options |= {"crop": torch.randint(0, 3, (batch, 2), generator=g), "size": 16}
    if name in SHAPES:
        options["outputs"] = ("clean_latents", "noisy_latents", "noisy_patches", "noise")
    return [images, basis, center, scale, gamma, sigma, ids], options


def least(shape: tuple, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes: images in, noisy latents out; FLOPs of the projection and of 25 a normal).

    shape: (B, H, W, C, patch, d, ...); dtype: of the latents.
    """
    batch, height, width, channels, patch, d, *_ = shape
    tokens, values = (height // patch) * (width // patch), patch * patch * channels
    moved = batch * (height * width * channels + tokens * d * dtype.itemsize)
    return moved, batch * tokens * d * (2 * values + 25)


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """`least` of a named case."""
    return least((SHAPES | BENCH)[name], dtype, mode)
