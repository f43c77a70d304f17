"""The convolutional autoencoder of Latent Diffusion's f8-KL family (Rombach et al., CVPR 2022)."""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import ImageView, patchify, unpatchify

MULTIPLIERS = (1, 2, 4, 4)  # of the channels, a level each
BLOCKS = 2  # residual blocks a level of the encoder; the decoder has one more


def norm(channels: int) -> nn.GroupNorm:
    """32 groups at the family's size, fewer where there are less than 128 channels."""
    return nn.GroupNorm(math.gcd(channels // 4, 32), channels, eps=1e-6)


def conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=0 if stride == 2 else 1)


class Residual(nn.Module):
    """x + two convolutions of x, each after GroupNorm and SiLU."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = norm(before), conv(before, after)
        self.norm2, self.conv2 = norm(after), conv(after, after)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SelfAttention(nn.Module):
    """x + one head of attention over all places."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, 3)  # (B, 1, HW, C)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(mixed.squeeze(1).mT.reshape(x.shape))


class Down(nn.Module):
    """Half the side, by a convolution that sees one more pixel at the right and at the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Twice the side: each value repeated, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int) -> list[nn.Module]:
    return [Residual(channels, channels), SelfAttention(channels), Residual(channels, channels)]


class Posterior(NamedTuple):
    """A diagonal Gaussian a latent: mean and log_variance (B, z, h, w)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL to a standard normal, summed over each sample's latents, (B,)."""
        m, s = self.mean, self.log_variance
        return 0.5 * (m.square() + s.exp() - 1 - s).sum((1, 2, 3))


class ConvAutoencoder(nn.Module):
    """Images (B, 3, S, S) to a grid of latents (B, d / 4, 2 S / patch, 2 S / patch), and back.

    channels: of the first level, a multiple of 4; 128 in the family. The latent grid's stride is
    half a patch, so that 2 x 2 latents make one token of d values.
    """

    def __init__(self, channels: int, d: int, patch: int):
        super().__init__()
        levels = patch.bit_length() - 1  # stride patch / 2 takes one downsampling less than levels
        widths = [channels * m for m in MULTIPLIERS[:levels]]
        latent, last = d // 4, widths[-1]
        layers: list[nn.Module] = [conv(3, channels)]
        for level, (before, after) in enumerate(zip([channels, *widths], widths)):
            layers += [Residual(before if i == 0 else after, after) for i in range(BLOCKS)]
            layers += [Down(after)] if level < levels - 1 else []
        layers += [*middle(last), norm(last), nn.SiLU(), conv(last, 2 * latent)]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(2 * latent, 2 * latent, 1))
        layers = [nn.Conv2d(latent, latent, 1), conv(latent, last), *middle(last)]
        for level in reversed(range(levels)):
            before, after = widths[min(level + 1, levels - 1)], widths[level]
            layers += [Residual(before if i == 0 else after, after) for i in range(BLOCKS + 1)]
            layers += [Up(after)] if level else []
        self.decoder = nn.Sequential(*layers, norm(channels), nn.SiLU(), conv(channels, 3))

    def posterior(self, x: Tensor) -> Posterior:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return Posterior(mean, log_variance.clamp(-30, 20))


def group(latents: Tensor) -> Tensor:
    """Latents (B, z, h, w) -> tokens (B, T, 4 z) of 2 x 2 neighbours each, row by row."""
    z = latents.shape[1]
    return patchify(latents, ImageView(2, (0.0,) * z, (1.0,) * z), dtype=latents.dtype)


def ungroup(tokens: Tensor) -> Tensor:
    """Tokens (B, T, 4 z) of a square image -> latents (B, z, h, w)."""
    z, side = tokens.shape[2] // 4, 2 * math.isqrt(tokens.shape[1])
    return unpatchify(tokens, ImageView(2, (0.0,) * z, (1.0,) * z), side, side).permute(0, 3, 1, 2)
