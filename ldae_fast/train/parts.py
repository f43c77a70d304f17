"""The parts that a person sees in a train step, and the bytes and FLOPs each needs at least."""

from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import torch

from ..config import Config
from ..masked_autoencoder import decoder_width, visible_tokens
from ..model import FREQUENCIES
from ..objective import token_widths
from ..tokenizers import ConvTokenizer, Tokenizer

QKV, PROJ, FC1, FC2 = "qkv products", "proj products", "fc1 products", "fc2 products"
ENDS = "embedding, modulation, output"
ATTENTION, ADALN, GELU = "attention", "adaLN ops", "bias + GELU"
NOISE, MASKS, LOSS, OPTIMIZER = "noise op", "patches and masks", "loss", "optimizer"
COPIES = "copies, casts, transposes"
FUSED, CAPTURED = "fused by the compiler", "products in a captured graph"
REST = "everything else"

Work = tuple[int, int]  # bytes, FLOPs


@dataclass(frozen=True)
class Product:
    """x (rows, k) times a weight, to (rows, n), `count` times a step.

    passes: 3 with the gradients of x and of the weight, 2 where only one of them is wanted.
    """

    part: str
    rows: int
    k: int
    n: int
    count: int
    passes: int = 3

    def work(self, dtype: torch.dtype) -> Work:
        """Each pass reads two of the three matrices and writes the third."""
        values = self.rows * self.k + self.k * self.n + self.rows * self.n
        each = self.count * self.passes
        return each * values * dtype.itemsize, each * 2 * self.rows * self.k * self.n

    def forward(self) -> list[tuple[int, int, int]]:
        """(m, k, n) of the product itself."""
        return [(self.rows, self.k, self.n)]

    def backward(self) -> list[tuple[int, int, int]]:
        """(m, k, n) of the gradients of x and of the weight (n, k)."""
        return [(self.rows, self.n, self.k), (self.n, self.rows, self.k)]


class Stack(NamedTuple):
    """Blocks under one modulation, and what they work on: an image's tokens and their width."""

    blocks: int
    tokens: int
    width: int


def stacks(config: Config) -> list[Stack]:
    """The network's, in order: one, or a masked autoencoder's encoder and decoder."""
    model, tokens = config.model, (config.data.image_size // config.model.patch) ** 2
    if not masked(config):
        return [Stack(model.depth + model.decoder_depth, tokens, model.width)]
    seen = visible_tokens(tokens, config.objective.mask_ratio)
    return [
        Stack(model.depth, seen, model.width),
        Stack(model.decoder_depth, tokens, decoder_width(model)),
    ]


def masked(config: Config) -> bool:
    return config.objective.predict == "masked"


def products(config: Config, tokenizer: Tokenizer) -> list[Product]:
    """Every matrix product of a step, attention's apart; config.optimizer.accumulate passes."""
    times, ratio = config.optimizer.accumulate, config.model.mlp_ratio
    batch = config.optimizer.batch // times
    made = []
    for blocks, tokens, width in stacks(config):
        small = width // 4
        made += [
            Product(part, batch * tokens, k * width, n * width, blocks * times)
            for part, k, n in ((QKV, 1, 3), (PROJ, 1, 1), (FC1, 1, ratio), (FC2, ratio, 1))
        ]
        made += [
            Product(ENDS, batch, FREQUENCIES, small, times, passes=2),
            Product(ENDS, batch, small, small, times),
            Product(ENDS, batch, small, (6 * blocks + 2) * width, times),
        ]
    ends = masked_ends if masked(config) else denoising_ends
    return made + ends(config, tokenizer, batch, times)


def denoising_ends(config: Config, tokenizer: Tokenizer, batch: int, times: int) -> list[Product]:
    """The embedding, folded or not, and the output."""
    ((_, tokens, width),) = stacks(config)
    token, out = token_widths(config.objective, tokenizer)
    fold = config.speed.fold and config.objective.input == "image"
    made = [Product(ENDS, batch * tokens, tokenizer.d if fold else token, width, times, passes=2)]
    if fold:
        made.append(Product(ENDS, width, token, tokenizer.d, times, passes=2))
    return [*made, Product(ENDS, batch * tokens, width, out, times)]


def masked_ends(config: Config, tokenizer: Tokenizer, batch: int, times: int) -> list[Product]:
    """The embedding of the visible tokens, their way to the decoder, the output of the hidden."""
    (_, seen, width), (_, tokens, narrow) = stacks(config)
    return [
        Product(ENDS, batch * seen, tokenizer.values, width, times, passes=2),
        Product(ENDS, batch * seen, width, narrow, times),
        Product(ENDS, batch * (tokens - seen), narrow, tokenizer.values, times),
    ]


def least_work(config: Config, tokenizer: Tokenizer, dtype: torch.dtype,
               parameters: list[torch.Size]) -> dict[str, Work]:  # fmt: skip
    """(bytes, FLOPs) that each part of a step needs at least, where that can be said.

    dtype: of the products and activations. parameters: the shapes that the optimizer updates.
    """
    model, batch, side = config.model, config.optimizer.batch, config.data.image_size
    work = dict.fromkeys((QKV, PROJ, FC1, FC2, ENDS, ATTENTION, ADALN, GELU), (0, 0))
    for one in products(config, tokenizer):
        work[one.part] = added(work[one.part], one.work(dtype))
    for blocks, tokens, width in stacks(config):
        shape, heads = (batch, tokens, width), (batch, tokens, model.heads, width // model.heads)
        # u and its activation, then their gradients and u again.
        gelu = 5 * batch * tokens * width * model.mlp_ratio * dtype.itemsize
        joined = op_work("gate_residual_layernorm_modulate", shape, dtype)
        for part, count, each in (
            (ATTENTION, blocks, op_work("attention", heads, dtype)),
            (ADALN, 1, op_work("layernorm_modulate", shape, dtype)),
            (ADALN, 2 * blocks, joined),
            (GELU, blocks, (gelu, 0)),
        ):
            work[part] = added(work[part], scaled(count, each))
    work[OPTIMIZER] = op_work("adamw_ema", parameters, torch.float32, "fwd")
    if masked(config):  # whose patches and loss are no op with a count of its own
        return work
    images = (batch, side, side, 3, model.patch, tokenizer.d)
    if config.tokenizer.kind != ConvTokenizer.kind:
        work[NOISE] = op_work("patch_pca_noise", images, torch.float32, "fwd")
    if config.objective.target == "image":
        work[LOSS] = op_work("denoise_loss", images, dtype)
    return work


def op_work(op: str, shape, dtype: torch.dtype, mode: str = "fwdbwd") -> Work:
    """What an op's own cases say about a shape."""
    return import_module(f"ldae_fast.kernels.{op}.cases").least(shape, dtype, mode)


def scaled(count: int, work: Work) -> Work:
    return count * work[0], count * work[1]


def added(a: Work, b: Work) -> Work:
    return a[0] + b[0], a[1] + b[1]
