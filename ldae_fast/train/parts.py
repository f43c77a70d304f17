"""The parts that a person sees in a train step, and the bytes and FLOPs each needs at least."""

from dataclasses import dataclass
from importlib import import_module

import torch

from ..config import Config
from ..model import FREQUENCIES
from ..objective import token_widths
from ..tokenizers import ConvTokenizer, Tokenizer

QKV, PROJ, FC1, FC2 = "qkv products", "proj products", "fc1 products", "fc2 products"
ENDS = "embedding, modulation, output"
ATTENTION, ADALN, GELU = "attention", "adaLN ops", "bias + GELU"
NOISE, LOSS, OPTIMIZER = "noise op", "loss", "optimizer"
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


def products(config: Config, tokenizer: Tokenizer) -> list[Product]:
    """Every matrix product of a step, attention's apart; config.optimizer.accumulate passes."""
    model, times = config.model, config.optimizer.accumulate
    batch, width, small = config.optimizer.batch // times, model.width, model.width // 4
    rows, blocks = batch * tokens(config), model.depth + model.decoder_depth
    layers = [
        Product(part, rows, k * width, n * width, blocks * times)
        for part, k, n in (
            (QKV, 1, 3), (PROJ, 1, 1), (FC1, 1, model.mlp_ratio), (FC2, model.mlp_ratio, 1)
        )
    ]  # fmt: skip
    token, out = token_widths(config.objective, tokenizer)
    fold = config.speed.fold and config.objective.input == "image"
    embedding = [Product(ENDS, rows, tokenizer.d if fold else token, width, times, passes=2)]
    if fold:
        embedding.append(Product(ENDS, width, token, tokenizer.d, times, passes=2))
    return [
        *layers,
        *embedding,
        Product(ENDS, batch, FREQUENCIES, small, times, passes=2),
        Product(ENDS, batch, small, small, times),
        Product(ENDS, batch, small, (6 * blocks + 2) * width, times),
        Product(ENDS, rows, width, out, times),
    ]


def tokens(config: Config) -> int:
    """Of an image."""
    return (config.data.image_size // config.model.patch) ** 2


def least_work(config: Config, tokenizer: Tokenizer, dtype: torch.dtype,
               parameters: list[torch.Size]) -> dict[str, Work]:  # fmt: skip
    """(bytes, FLOPs) that each part of a step needs at least, where that can be said.

    dtype: of the products and activations. parameters: the shapes that the optimizer updates.
    """
    model, batch = config.model, config.optimizer.batch
    blocks, side = model.depth + model.decoder_depth, config.data.image_size
    shape = (batch, tokens(config), model.width)
    heads = (*shape[:2], model.heads, model.width // model.heads)
    images = (batch, side, side, 3, model.patch, tokenizer.d)
    work = dict.fromkeys((QKV, PROJ, FC1, FC2, ENDS), (0, 0))
    for one in products(config, tokenizer):
        work[one.part] = added(work[one.part], one.work(dtype))
    first = op_work("layernorm_modulate", shape, dtype)
    others = scaled(2 * blocks, op_work("gate_residual_layernorm_modulate", shape, dtype))
    # u and its activation, then their gradients and u again.
    gelu = 5 * batch * tokens(config) * model.width * model.mlp_ratio * dtype.itemsize
    work |= {
        ATTENTION: scaled(blocks, op_work("attention", heads, dtype)),
        ADALN: added(first, others),
        GELU: (blocks * gelu, 0),
        OPTIMIZER: op_work("adamw_ema", parameters, torch.float32, "fwd"),
    }
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
