"""The network of the masked autoencoder (MAE, He et al., 2021), built of the same blocks.

Its modulation is told t = 0 always, so it is a constant: the encoder is a plain ViT, and is probed,
saved and exported as LatentDAE's is.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .model import (
    Block,
    Decoder,
    Encoder,
    Modulation,
    block_products,
    block_vectors,
    modulation_products,
    read_stream,
    run_encoder,
    sincos_positions,
)


def visible_tokens(tokens: int, ratio: float) -> int:
    """How many of an image's tokens the encoder is shown: at least one, and not all."""
    return max(1, min(int(tokens * (1 - ratio)), tokens - 1))


def decoder_width(config: ModelConfig) -> int:
    return config.decoder_width or config.width // 2


class MaskedAutoencoder(nn.Module):
    """Patches (B, T, P) and the order to show them in -> prediction of the hidden ones.

    The encoder runs on the visible tokens alone; a narrower decoder puts one learnt mask token in
    the place of each hidden one. Both add fixed positions of their own width.
    """

    def __init__(self, config: ModelConfig, values: int, tokens_per_side: int, ratio: float):
        super().__init__()
        self.gates, self.visible = config.gates, visible_tokens(tokens_per_side**2, ratio)
        narrow = replace(config, width=decoder_width(config))
        self.encoder = Encoder(config, values, tokens_per_side)
        self.modulation = Modulation(config.width, 6 * config.depth + 2)
        self.bridge = nn.Linear(config.width, narrow.width)
        nn.init.xavier_uniform_(self.bridge.weight)
        nn.init.zeros_(self.bridge.bias)
        self.mask_token = nn.Parameter(0.02 * torch.randn(narrow.width))
        positions = sincos_positions(narrow.width, tokens_per_side)
        self.register_buffer("positions", positions, persistent=False)
        self.decoder = Decoder(narrow, values)
        self.decoder_modulation = Modulation(narrow.width, 6 * config.decoder_depth + 2)

    @property
    def blocks(self) -> list[Block]:
        return [*self.encoder.blocks, *self.decoder.blocks]

    def vectors(self, t: Tensor) -> list[Tensor]:
        """One (6, B, D) an encoder block and the final (2, B, D)."""
        return block_vectors(self.modulation(t), self.gates)

    def forward(self, patches: Tensor, order: Tensor) -> Tensor:
        """order (B, T) int64: a permutation of each image's tokens, the visible ones first.

        Returns (B, T - visible, P): the hidden patches in this order.
        """
        t = torch.zeros_like(order[:, 0])
        seen = order[:, : self.visible]
        shown = patches.gather(1, seen[..., None].expand(-1, -1, patches.shape[2]))
        x = self.encoder.embed(shown)
        x = x + self.encoder.positions.to(x.dtype)[seen]
        h = self.bridge(run(self.encoder.blocks, x, self.vectors(t)))
        masks = self.mask_token.to(h.dtype).expand(len(h), order.shape[1] - self.visible, -1)
        x = torch.cat([h, masks], dim=1) + self.positions.to(h.dtype)[order]
        vectors = block_vectors(self.decoder_modulation(t), self.gates)
        h = run(self.decoder.blocks, x, vectors)
        return self.decoder.out(h[:, self.visible :])

    def encode(self, tokens: Tensor, t: Tensor, cut: int = 0) -> Tensor:
        """Tokens of the whole image after block `cut` (0: the encoder's last), (B, T, D)."""
        blocks = self.encoder.blocks[: cut or None]
        return run_encoder(self.encoder, blocks, tokens, self.vectors(t))


def run(blocks: nn.ModuleList, x: Tensor, vectors: list[Tensor]) -> Tensor:
    """Tokens (B, T, D) through the blocks and a last modulated LayerNorm."""
    *vectors, (shift, scale) = vectors
    stream = x, None, None
    for block, six in zip(blocks, vectors):
        stream = block(stream, six)
    return read_stream(stream, shift, scale)[1]


def masked_training_flop(config: ModelConfig, values: int, tokens: int, ratio: float) -> int:
    """FLOP of one image's training step in matrix products, as model.training_flop counts them."""
    width, narrow = config.width, decoder_width(config)
    seen = visible_tokens(tokens, ratio)
    encoder = config.depth * block_products(width, config.mlp_ratio, seen)
    decoder = config.decoder_depth * block_products(narrow, config.mlp_ratio, tokens)
    ends = seen * width * (values + narrow) + (tokens - seen) * narrow * values
    modulations = modulation_products(width, config.depth)
    modulations += modulation_products(narrow, config.decoder_depth)
    return 3 * 2 * (encoder + decoder + ends + modulations)
