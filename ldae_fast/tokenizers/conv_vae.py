"""A frozen convolutional autoencoder as a tokenizer: patches to latents, latents to patches."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..ops import ImageView, normal, patchify, unpatchify
from .conv_net import ConvAutoencoder, group, ungroup
from .linear import as_file, latent_scale


@dataclass(frozen=True)
class ConvTokenizer:
    """z = (the posterior's mean - center) / scale, of all the patches of one image together.

    net: in evaluation mode, without gradients. center, scale, variance: (d,), over the latents of
    the images that it was fitted on; explained: the share of those images' variance that decoded
    latents give back. about: how it was trained, as JSON can hold it.
    """

    net: ConvAutoencoder
    center: Tensor
    scale: Tensor
    variance: Tensor
    view: ImageView
    image_size: int
    explained: float
    about: dict

    kind = "conv-vae"
    components = None  # the latents are no linear map's

    @property
    def d(self) -> int:
        return len(self.scale)

    @property
    def values(self) -> int:
        return len(self.view.mean) * self.view.patch**2

    @property
    def plain(self) -> ImageView:
        """Cuts and joins images that are normalised already."""
        return ImageView(self.view.patch)

    @property
    def latent_variance(self) -> Tensor:
        """(d,) variance of each latent over the images that it was fitted on."""
        return self.variance / self.scale**2

    @torch.no_grad()
    def encode(self, patches: Tensor) -> Tensor:
        """(B, T, P) normalised patches of square images -> (B, T, d) latents."""
        side = math.isqrt(patches.shape[1]) * self.view.patch
        with products_of_its_own(patches.device):
            means = [
                self.net.posterior(join(some, self.plain)).mean
                for some in patches.split(at_once(side))
            ]
        return (group(torch.cat(means).float()) - self.center) / self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, T, d) latents -> (B, T, P) normalised patches."""
        maps = latents.float() * self.scale + self.center
        side = math.isqrt(maps.shape[1]) * self.view.patch
        with products_of_its_own(latents.device):
            pixels = [self.net.decoder(ungroup(some)) for some in maps.split(at_once(side))]
        return patchify(torch.cat(pixels).float(), self.plain)

    def patches(self, images: Tensor, flip: Tensor | None = None) -> Tensor:
        """uint8 (B, H, W, C) -> normalised patches (B, T, P)."""
        return patchify(images, self.view, flip=flip)

    def images(self, patches: Tensor, size: int) -> Tensor:
        """Normalised patches (B, T, P) -> images (B, size, size, C), 0..1 but not clipped."""
        return unpatchify(patches, self.view, size, size)

    def add_noise(
        self, images: Tensor, gamma: Tensor, sigma: Tensor, ids: Tensor, *, seed: int, step: int,
        outputs: tuple[str, ...], flip: Tensor | None, impl: str,
    ) -> dict[str, Tensor]:  # fmt: skip
        """z_t = gamma_t z_0 + sigma_t eps (equation 1), eps as `patch_pca_noise` would draw it."""
        clean = self.encode(self.patches(images, flip))  # (B, T, d)
        eps = normal(seed, step, ids, clean[0].numel(), impl=impl).view(clean.shape)
        noisy = gamma[:, None, None] * clean + sigma[:, None, None] * eps
        made = {"clean_latents": clean, "noisy_latents": noisy, "noise": eps}
        if "noisy_patches" in outputs:
            made["noisy_patches"] = self.decode(noisy)
        return {name: made[name] for name in outputs}

    def to(self, device) -> "ConvTokenizer":
        moved = {n: getattr(self, n).to(device) for n in ("center", "scale", "variance")}
        return replace(self, net=self.net.to(device), **moved)

    def to_bytes(self) -> bytes:
        """The tokenizer as a safetensors file's content."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {n: getattr(self, n) for n in ("center", "scale", "variance")}
        tensors["pixel_mean"] = torch.tensor(self.view.mean, dtype=torch.float64)
        tensors["pixel_std"] = torch.tensor(self.view.std, dtype=torch.float64)
        about = {
            "kind": self.kind, "patch": self.view.patch, "image_size": self.image_size,
            "channels": self.net.encoder[0].out_channels, "explained": self.explained,
            "about": self.about,
        }  # fmt: skip
        return as_file(tensors, about)

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], about: dict) -> "ConvTokenizer":
        """What `to_bytes` wrote; an ill-shaped tensor raises RuntimeError."""
        patch, scale = int(about["patch"]), tensors["scale"]
        net = ConvAutoencoder(int(about["channels"]), len(scale), patch)
        own = {n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")}
        net.load_state_dict(own)
        mean, std = (tuple(tensors[n].tolist()) for n in ("pixel_mean", "pixel_std"))
        return cls(
            frozen(net), tensors["center"], scale, tensors["variance"], ImageView(patch, mean, std),
            int(about["image_size"]), float(about["explained"]), dict(about["about"]),
        )  # fmt: skip


def at_once(side: int) -> int:
    """Images that the network takes together: 16 at 256 pixels keep 2 GB of activations alive."""
    return max(1, 2**20 // side**2)


def products_of_its_own(device: torch.device):
    """bfloat16 on a GPU and float32 on a CPU, whoever asks: the latents that a model trains on are
    then those that it is measured on."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def frozen(net: ConvAutoencoder) -> ConvAutoencoder:
    return net.eval().requires_grad_(False)


def join(patches: Tensor, view: ImageView) -> Tensor:
    """Patches (B, T, P) of square images -> (B, C, S, S), values as they are."""
    side = view.patch * math.isqrt(patches.shape[1])
    return unpatchify(patches, view, side, side).permute(0, 3, 1, 2)


@torch.no_grad()
def measure(
    net: ConvAutoencoder, images: Tensor, view: ImageView, scale: str, about: dict
) -> ConvTokenizer:
    """The tokenizer of a trained network, with its latents' statistics over uint8 (N, H, W, C)."""
    net, plain = frozen(net), ImageView(view.patch)
    device = next(net.parameters()).device
    latents, error, total = [], 0.0, 0.0
    for some in images.split(at_once(images.shape[1])):
        patches = patchify(some.to(device), view)
        with products_of_its_own(device):
            mean = net.posterior(join(patches, plain)).mean.float()
            back = patchify(net.decoder(mean).float(), plain)
        latents.append(group(mean).double().cpu().flatten(0, 1))
        error += float((back - patches).double().square().sum())
        total += float((patches - patches.mean((0, 1))).double().square().sum())
    tokens = torch.cat(latents)  # (N T, d)
    variance, center = tokens.var(0).float(), tokens.mean(0).float()
    divisor = latent_scale(scale, variance, len(variance))
    return ConvTokenizer(
        net.cpu(), center, divisor, variance, view, images.shape[1], 1 - error / total, about
    )
