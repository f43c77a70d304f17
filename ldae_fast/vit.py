"""A plain vision transformer: what an encoder is once its noise level is fixed (section 4, item 5).

Parameters are named and shaped as is usual for a ViT without a class token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .ops import attention_packed, mlp_gelu


@dataclass(frozen=True)
class ViTConfig:
    """mean, std: a value a channel, in units of value / 255: images are normalised by them."""

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: int
    gelu: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        batch, tokens, width = h.shape
        packed = self.qkv(h).view(batch, tokens, 3, self.heads, width // self.heads)
        return self.proj(attention_packed(packed).reshape(batch, tokens, width))


class Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: str):
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        return mlp_gelu(
            h, first.weight, first.bias, second.weight, second.bias, approximate=self.gelu
        )


class ViTBlock(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and on a residual branch."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Perceptron(config.width, config.width * config.mlp_ratio, config.gelu)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x (B, T, D); keep (B, 2): factors of the two branches, from `drop_path`."""
        first, second = (1, 1) if keep is None else keep[:, :, None, None].to(x.dtype).unbind(1)
        x = x + first * self.attn(self.norm1(x))
        return x + second * self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.proj = nn.Conv2d(len(config.mean), config.width, config.patch, stride=config.patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D), tokens row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Normalised images (B, C, H, W) -> tokens (B, T, D), not normalised at the end."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.register_buffer("pos_embed", torch.zeros(1, config.tokens, config.width))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: (B, depth, 2) factors of the residual branches, from `drop_path`; None keeps."""
        x = self.patch_embed(images)
        x = x + self.pos_embed.to(x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, None if keep is None else keep[:, index])
        return x


def normalise(images: Tensor, config: ViTConfig) -> Tensor:
    """uint8 (B, H, W, C) -> (B, C, H, W) float32 by the config's mean and std."""
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (x.new_tensor(v)[:, None, None] for v in (config.mean, config.std))
    return (x - mean) / std
