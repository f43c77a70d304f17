"""The network: patch embedding, encoder, decoder; DiT blocks with adaLN on the noise level."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .ops import (
    attention_packed,
    gate_residual_layernorm_modulate,
    layernorm_modulate,
    mlp_gelu,
)

FREQUENCIES = 256


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine position embedding (side * side, width): rows first, then columns."""
    omega = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, width / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat(
        [line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)], dim=2
    )
    return grid.reshape(side * side, width).float()


def timestep_embedding(t: Tensor) -> Tensor:
    """Sinusoids of t (B,) -> (B, 256), as in DiT."""
    half = FREQUENCIES // 2
    omega = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angle = t[:, None].float() * omega
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Modulation(nn.Module):
    """Noise level t -> every shift, scale and gate of the network, from one product.

    The hidden width is a quarter of the model's. The last layer starts at zero, so each block
    starts as the identity (adaLN-Zero). Where there are classes, the label's embedding is added to
    the level's; no label stands for a vector that stays zero, so that a network which is told none
    is the one without classes.
    """

    def __init__(self, width: int, vectors: int, conditional: bool = False, classes: int = 0):
        super().__init__()
        self.width, self.vectors = width, vectors
        self.time = nn.Sequential(
            nn.Linear(FREQUENCIES, width // 4),
            nn.SiLU(),
            nn.Linear(width // 4, width // 4),
            nn.SiLU(),
        )
        self.out = nn.Linear(width // 4, vectors * width)
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.labels = None
        if conditional:  # last, so that all other first weights are those of the other network
            self.labels = nn.Embedding(classes + 1, width // 4, padding_idx=classes)
            nn.init.normal_(self.labels.weight[:classes], std=0.02)

    def forward(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """t (B,), labels (B,) int64 with -1 for none -> (vectors, B, width)."""
        hidden = self.time[:3](timestep_embedding(t).to(self.out.weight.dtype))
        if labels is not None:
            hidden = hidden + self.labels(labels % self.labels.num_embeddings)
        return self.out(self.time[3](hidden)).view(-1, self.vectors, self.width).transpose(0, 1)


class Block(nn.Module):
    """One transformer block with adaLN modulation.

    The residual stream comes as (x, y, gate): a sum x + gate y that is not made yet, so that it can
    be made together with the LayerNorm that reads it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.heads, self.gelu = config.heads, config.gelu
        # What makes the four products; the engine may put those of float8 here.
        self.linear, self.perceptron = F.linear, mlp_gelu
        self.around = None  # what calls `compute` in place of `forward`, such as a checkpoint
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        for layer in (self.qkv, self.proj, self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def attend(self, h: Tensor) -> Tensor:
        batch, tokens, width = h.shape
        packed = self.linear(h, self.qkv.weight, self.qkv.bias)
        packed = packed.view(batch, tokens, 3, self.heads, width // self.heads)
        mixed = attention_packed(packed).reshape(batch, tokens, width)
        return self.linear(mixed, self.proj.weight, self.proj.bias)

    def mlp(self, h: Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        return self.perceptron(
            h, first.weight, first.bias, second.weight, second.bias, approximate=self.gelu
        )

    def forward(self, stream: tuple, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """vectors: (6, B, D), shift, scale, gate of attention, then of the MLP."""
        if self.around is not None:
            return self.around(self.compute, stream, vectors)
        return self.compute(stream, vectors)

    def compute(self, stream: tuple, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        x, h = read_stream(stream, shift1, scale1)
        x, h = gate_residual_layernorm_modulate(x, self.attend(h), gate1, shift2, scale2)
        return x, self.mlp(h), gate2


def read_stream(stream: tuple, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Makes the pending sum; returns (x, LayerNorm(x) modulated), each (B, T, D)."""
    x, y, gate = stream
    if y is None:
        return x, layernorm_modulate(x, shift, scale)
    return gate_residual_layernorm_modulate(x, y, gate, shift, scale)


class Encoder(nn.Module):
    """Embeds tokens, adds positions, runs the first stack of blocks."""

    def __init__(self, config: ModelConfig, token_width: int, tokens_per_side: int):
        super().__init__()
        self.embed = nn.Linear(token_width, config.width)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        positions = sincos_positions(config.width, tokens_per_side)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, tokens: Tensor, fold: tuple[Tensor, Tensor] | None) -> tuple:
        """tokens (B, T, token_width), or (B, T, d) with the embedding that `fold` replaces."""
        weight, bias = fold or (self.embed.weight, self.embed.bias)
        x = F.linear(tokens, weight, bias)
        return x + self.positions.to(x.dtype), None, None


def block_vectors(vectors: Tensor, gates: bool) -> list[Tensor]:
    """A Modulation's output as one (6, B, D) a block and the final (2, B, D).

    Without gates these are 1.
    """
    *blocks, final = vectors.split(6)
    if gates:
        return [*blocks, final]
    halves = (b.unflatten(0, (2, 3)) for b in blocks)  # of attention, of the MLP
    ungated = (torch.cat([h[:, :2], torch.ones_like(h[:, 2:])], 1) for h in halves)
    return [*(u.flatten(0, 1) for u in ungated), final]


def run_encoder(
    encoder: Encoder, blocks: Iterable[Block], tokens: Tensor, vectors: list[Tensor], fold=None
) -> Tensor:
    """Tokens (B, T, D) after the last of the blocks, no sum pending."""
    stream = encoder(tokens, fold)
    for block, six in zip(blocks, vectors):
        stream = block(stream, six)
    x, y, gate = stream
    return x + gate[:, None] * y


class Decoder(nn.Module):
    """The second stack of blocks, then a modulated LayerNorm and a linear map to each token."""

    def __init__(self, config: ModelConfig, out_width: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.decoder_depth))
        self.out = nn.Linear(config.width, out_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)


class LatentDAE(nn.Module):
    """Noisy tokens (B, T, token_width) at level t (B,) -> prediction (B, T, out_width)."""

    def __init__(self, config: ModelConfig, token_width: int, out_width: int, tokens_per_side: int):
        super().__init__()
        self.gates = config.gates
        self.encoder = Encoder(config, token_width, tokens_per_side)
        self.decoder = Decoder(config, out_width)
        blocks = config.depth + config.decoder_depth
        self.modulation = Modulation(
            config.width, 6 * blocks + 2, config.conditional, config.classes
        )

    @property
    def blocks(self) -> list[Block]:
        return [*self.encoder.blocks, *self.decoder.blocks]

    def vectors(self, t: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """One (6, B, D) a block and the final (2, B, D)."""
        return block_vectors(self.modulation(t, labels), self.gates)

    def forward(self, tokens: Tensor, t: Tensor, fold=None, labels: Tensor | None = None) -> Tensor:
        """fold: (weight (D, d), bias (D,)) from `fold_embedding`, when tokens are latents.

        labels: (B,) int64, -1 for none, where the network knows classes.
        """
        *vectors, (shift, scale) = self.vectors(t, labels)
        stream = self.encoder(tokens, fold)
        for block, six in zip(self.blocks, vectors):
            stream = block(stream, six)
        _, h = read_stream(stream, shift, scale)
        return self.decoder.out(h)

    def encode(self, tokens: Tensor, t: Tensor, cut: int = 0, fold=None) -> Tensor:
        """Tokens after block `cut` (0: the encoder's last), (B, T, D)."""
        blocks = self.blocks[: cut or len(self.encoder.blocks)]
        return run_encoder(self.encoder, blocks, tokens, self.vectors(t), fold)

    def fold_embedding(self, basis: Tensor, scale: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding weight and bias for latents z instead of patches V_d^T (scale z) + center.

        W (V_d^T (s z) + m) + b = (W V_d^T diag(s)) z + (W m + b): exact, since both are linear.
        basis: V_d (d, P), or another decoder; scale: (d,), center: (P,). Returns (D, d) and (D,).
        """
        embed = self.encoder.embed
        # The fold is tiny; in float32 it costs nothing and adds no rounding of its own.
        with torch.autocast(basis.device.type, enabled=False):
            weight = embed.weight @ (basis.T * scale)
            return weight, embed.bias + embed.weight @ center


def block_products(width: int, mlp_ratio: int, tokens: int) -> int:
    """Multiply-adds of a block's matrix products on one image's tokens, forward."""
    return tokens * (4 + 2 * mlp_ratio) * width**2 + 2 * tokens**2 * width


def modulation_products(width: int, blocks: int) -> int:
    """Multiply-adds of the product that gives all shifts, scales and gates of one image."""
    return (6 * blocks + 2) * width * width // 4


def training_flop(config: ModelConfig, values: int, tokens: int) -> int:
    """FLOP of one image's training step in matrix products, `values` a token in and out.

    A multiply-add is 2 FLOP, the backward pass twice the forward one; nothing made again counts.
    """
    width, blocks = config.width, config.depth + config.decoder_depth
    ends = 2 * tokens * values * width + modulation_products(width, blocks)
    return 3 * 2 * (blocks * block_products(width, config.mlp_ratio, tokens) + ends)
