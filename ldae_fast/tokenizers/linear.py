"""A patch tokenizer that is a linear map: what all but the convolutional ones are."""

import json
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save
from torch import Tensor

from ..ops import ImageView, patch_pca_noise, patchify, unpatchify

SCALES = ("global", "whiten", "none")
PAIR = {"noisy_latents", "noisy_patches"}  # the second is decoded from the first
TENSORS = ("basis", "center", "scale", "variance")


@dataclass(frozen=True)
class LinearTokenizer:
    """z = V (x - center) / scale for a normalised patch x of P values, and back x = U^T (scale z)
    + center.

    basis: (P, P) float32, orthonormal principal components by falling variance.
    center: (P,), scale: (d,), variance: (P,) of each component over the fitted patches.
    trained: V and U (d, P) of an autoencoder; without them, both are the first d rows of the basis.
    image_size: pixels, the side of the images that it was fitted on; 0 where a file does not say.
    """

    basis: Tensor
    center: Tensor
    scale: Tensor
    variance: Tensor
    view: ImageView
    trained: tuple[Tensor, Tensor] | None = None
    kind: str = "pca"
    image_size: int = 0

    @property
    def d(self) -> int:
        return len(self.scale)

    @property
    def values(self) -> int:
        return len(self.center)

    @property
    def encoder(self) -> Tensor:
        """V (d, P)."""
        return self.trained[0] if self.trained else self.basis[: self.d]

    @property
    def decoder(self) -> Tensor:
        """U (d, P); that of PCA is its encoder."""
        return self.trained[1] if self.trained else self.basis[: self.d]

    @property
    def components(self) -> Tensor | None:
        """Principal components that the latents stand for, (d, P), or None where they stand for
        other directions."""
        return self.encoder if self.kind == "pca" else None

    @property
    def explained(self) -> float:
        """Share of the patches' variance that decoded latents give back."""
        if not self.trained:
            return float(self.variance[: self.d].sum() / self.variance.sum())
        basis, variance = self.basis.double(), self.variance.double()
        residue = basis - (basis @ self.encoder.T.double()) @ self.decoder.double()  # a row each
        return 1 - float((variance * residue.square().sum(1)).sum() / variance.sum())

    @property
    def latent_variance(self) -> Tensor:
        """(d,) variance of each latent over the fitted patches."""
        return (self.encoder @ self.basis.T).square() @ self.variance / self.scale**2

    def encode(self, patches: Tensor) -> Tensor:
        """(..., P) normalised patches -> (..., d) latents, under autocast too in full."""
        with torch.autocast(patches.device.type, enabled=False):
            return (patches.to(self.center.dtype) - self.center) @ self.encoder.T / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(..., d) latents -> (..., P) normalised patches, under autocast too in full."""
        with torch.autocast(latents.device.type, enabled=False):
            return (latents.to(self.center.dtype) * self.scale) @ self.decoder + self.center

    def add_noise(
        self, images: Tensor, gamma: Tensor, sigma: Tensor, ids: Tensor, *, seed: int, step: int,
        outputs: tuple[str, ...], flip: Tensor | None, impl: str,
    ) -> dict[str, Tensor]:  # fmt: skip
        """`patch_pca_noise` of uint8 images, whose inverse is this tokenizer's own."""
        apart = self.trained is not None and "noisy_patches" in outputs
        fused = (*(set(outputs) - PAIR), "noisy_latents") if apart else outputs
        made = patch_pca_noise(
            images, self.encoder, self.center, self.scale, gamma, sigma, ids, seed=seed, step=step,
            view=self.view, outputs=fused, flip=flip, impl=impl,
        )  # fmt: skip
        if apart:
            made["noisy_patches"] = self.decode(made["noisy_latents"])
        return {name: made[name] for name in outputs}

    def patches(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """uint8 (B, H, W, C) -> normalised patches (B, T, P)."""
        return patchify(images, self.view, flip=flip)

    def images(self, patches: Tensor, size: int) -> Tensor:
        """Normalised patches (B, T, P) -> images (B, size, size, C), 0..1 but not clipped."""
        return unpatchify(patches, self.view, size, size)

    def to(self, device) -> "LinearTokenizer":
        moved = {n: getattr(self, n).to(device) for n in TENSORS}
        trained = self.trained and tuple(x.to(device) for x in self.trained)
        return replace(self, **moved, trained=trained)

    def to_bytes(self) -> bytes:
        """The tokenizer as a safetensors file's content."""
        tensors = {n: getattr(self, n) for n in TENSORS}
        tensors["pixel_mean"] = torch.tensor(self.view.mean, dtype=torch.float64)
        tensors["pixel_std"] = torch.tensor(self.view.std, dtype=torch.float64)
        if self.trained:
            tensors |= {"encoder": self.encoder, "decoder": self.decoder}
        about = {"kind": self.kind, "patch": self.view.patch, "image_size": self.image_size}
        return as_file(tensors, about)

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], about: dict) -> "LinearTokenizer":
        """What `to_bytes` wrote; files of before there was more than PCA say their patch alone.

        An ill-shaped tensor raises ValueError.
        """
        mean, std = (tuple(tensors[n].tolist()) for n in ("pixel_mean", "pixel_std"))
        values, d = len(mean) * int(about["patch"]) ** 2, len(tensors["scale"])
        shapes = {"basis": (values, values), "center": (values,), "variance": (values,),
                  "encoder": (d, values), "decoder": (d, values)}  # fmt: skip
        for name in shapes.keys() & tensors.keys():
            if tensors[name].shape != shapes[name]:
                raise ValueError(
                    f"its {name} must be {shapes[name]}; got {tuple(tensors[name].shape)}"
                )
        trained = (tensors["encoder"], tensors["decoder"]) if "encoder" in tensors else None
        return cls(
            *(tensors[n] for n in TENSORS), ImageView(int(about["patch"]), mean, std), trained,
            about.get("kind", "pca"), int(about.get("image_size", 0)),
        )  # fmt: skip


def as_file(tensors: dict[str, Tensor], about: dict) -> bytes:
    """A tokenizer's safetensors file. One entry of metadata: several have no order of their own."""
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    return save(tensors, {"tokenizer": json.dumps(about, sort_keys=True)})


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
