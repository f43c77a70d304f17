"""A patch tokenizer that is a linear map: what PCA and pixel tokenizers both are."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..ops import ImageView, patchify, unpatchify

SCALES = ("global", "whiten", "none")


@dataclass(frozen=True)
class LinearTokenizer:
    """z = V_d (x - center) / scale for a normalised patch x of P values.

    basis: V (P, P) float32, orthonormal rows by falling variance; the first d encode.
    center: (P,), scale: (d,), variance: (P,) of each component over the fitted patches.
    """

    basis: Tensor
    center: Tensor
    scale: Tensor
    variance: Tensor
    view: ImageView

    @property
    def d(self) -> int:
        return len(self.scale)

    @property
    def values(self) -> int:
        return len(self.center)

    @property
    def encoder(self) -> Tensor:
        """V_d (d, P)."""
        return self.basis[: self.d]

    @property
    def explained(self) -> float:
        """Share of the patches' variance that the d components keep."""
        return float(self.variance[: self.d].sum() / self.variance.sum())

    def encode(self, patches: Tensor) -> Tensor:
        """(..., P) normalised patches -> (..., d) latents."""
        return (patches - self.center) @ self.encoder.T / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(..., d) latents -> (..., P) normalised patches: inverse PCA."""
        return (latents * self.scale) @ self.encoder + self.center

    def patches(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """uint8 (B, H, W, C) -> normalised patches (B, T, P)."""
        return patchify(images, self.view, flip=flip)

    def images(self, patches: Tensor, size: int) -> Tensor:
        """Normalised patches (B, T, P) -> images (B, size, size, C), 0..1 but not clipped."""
        return unpatchify(patches, self.view, size, size)

    def to(self, device) -> "LinearTokenizer":
        moved = {n: getattr(self, n).to(device) for n in ("basis", "center", "scale", "variance")}
        return replace(self, **moved)

    def to_bytes(self) -> bytes:
        """The tokenizer as a safetensors file's content."""
        tensors = {n: getattr(self, n).cpu() for n in ("basis", "center", "scale", "variance")}
        tensors["pixel_mean"] = torch.tensor(self.view.mean, dtype=torch.float64)
        tensors["pixel_std"] = torch.tensor(self.view.std, dtype=torch.float64)
        return save(
            {k: v.contiguous() for k, v in tensors.items()}, {"patch": str(self.view.patch)}
        )


def load_tokenizer(path: Path) -> LinearTokenizer:
    """Reads what `LinearTokenizer.to_bytes` wrote."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        patch = int(file.metadata()["patch"])
    mean, std = (tuple(tensors.pop(n).tolist()) for n in ("pixel_mean", "pixel_std"))
    return LinearTokenizer(**tensors, view=ImageView(patch, mean, std))


def latent_scale(kind: str, variance: Tensor, d: int) -> Tensor:
    """(d,) divisors of the latents.

    global: one scalar, so that the d kept components have unit mean variance. whiten: each
    component's own standard deviation. none: 1. Directions without variance divide by 1, since a
    constant component holds nothing to scale up.
    """
    kept = variance[:d].clamp_min(0)
    if kind == "global":
        kept = kept.mean().expand(d)
    elif kind == "none":
        kept = torch.ones(d)
    elif kind != "whiten":
        raise ValueError(f"scale must be one of {', '.join(SCALES)}; got {kind!r}")
    floor = 1e-7 * max(float(variance.sum()), 1e-30)
    return torch.where(kept > floor, kept.sqrt(), torch.ones_like(kept)).contiguous()
