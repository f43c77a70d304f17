"""Masked autoencoding: which patches are hidden, and the error of what is made of them."""

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .kernels.normal import philox
from .masked_autoencoder import MaskedAutoencoder
from .noise import Schedule, stream
from .objective import Guess
from .tokenizers import Tokenizer


class MaskedObjective:
    """The loss of one batch, over hidden patches alone; stands where Objective does.

    Its schedule has the clean level alone, so the encoder is told t = 0 in evaluation too.
    """

    def __init__(self, config: ObjectiveConfig, tokenizer: Tokenizer, seed: int):
        self.config, self.tokenizer = config, tokenizer
        self.mask_seed = stream(seed, "mask")
        clean = torch.ones(1, dtype=torch.float64)
        self.schedule = Schedule(clean, 0 * clean)

    def order(self, step: int, ids: Tensor, tokens: int) -> Tensor:
        """(B, tokens) int64: a random permutation a sample, whose first ones are visible.

        A function of (seed, step, sample id) alone.
        """
        words = philox(self.mask_seed, step, ids, -(-tokens // 4)).flatten(1)[:, :tokens]
        return words.argsort(dim=1, stable=True)

    def guess(
        self, model: MaskedAutoencoder, images: Tensor, ids: Tensor, flip: Tensor, step: int,
        labels: None = None,
    ) -> Guess:  # fmt: skip
        """The prediction of the patches that are hidden in this step, and what they are.

        labels: there for Objective's sake; this network is never told them.
        """
        patches = self.tokenizer.patches(images, flip)
        order = self.order(step, ids, patches.shape[1])
        pred = self.predict(model, patches, order)
        wanted = self.wanted(pick(patches, order[:, -pred.shape[1] :]))
        return Guess(pred, torch.ones_like(wanted[:, 0, 0]), wanted)

    def predict(self, model: MaskedAutoencoder, patches: Tensor, order: Tensor) -> Tensor:
        """patches (B, T, P), order (B, T). Returns the hidden ones in this order."""
        return model(patches, order)

    def wanted(self, patches: Tensor) -> Tensor:
        """Patches (..., P), where config.mask_norm says so with zero mean and unit variance."""
        if not self.config.mask_norm:
            return patches
        mean, std = statistics(patches)
        return (patches - mean) / std

    def loss(
        self, model: MaskedAutoencoder, images: Tensor, ids: Tensor, flip: Tensor, step: int
    ) -> Tensor:
        """images: uint8 (B, H, W, C). Returns one loss a sample, (B,) float32."""
        return self.guess(model, images, ids, flip, step).error()

    def backward(self, guess: Guess, images: Tensor, flip: Tensor, share: float) -> Tensor:
        """One loss a sample, (B,), after adding the gradients of `share` times their sum."""
        losses = guess.error()
        (losses.sum() * share).backward()
        return losses.detach()

    @torch.no_grad()
    def reconstruct(
        self, model: MaskedAutoencoder, images: Tensor, ids: Tensor
    ) -> dict[str, Tensor]:
        """Normalised patches (B, T, P) for looking at: hidden ones at 0, and as predicted.

        Where the loss is of normalised patches, each gets its original's mean and contrast back.
        """
        patches = self.tokenizer.patches(images)
        order = self.order(0, ids, patches.shape[1])
        pred = self.predict(model, patches, order).float()
        hidden = order[:, -pred.shape[1] :]
        if self.config.mask_norm:
            mean, std = statistics(pick(patches, hidden))
            pred = pred * std + mean
        place = hidden[..., None].expand(-1, -1, patches.shape[2])
        return {"masked": patches.scatter(1, place, 0.0),
                "reconstruction": patches.scatter(1, place, pred)}  # fmt: skip


def pick(patches: Tensor, tokens: Tensor) -> Tensor:
    """Patches (B, T, P) at tokens (B, N) -> (B, N, P)."""
    return patches.gather(1, tokens[..., None].expand(-1, -1, patches.shape[2]))


def statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch (..., P), (..., 1); as in MAE, n - 1 and 1e-6."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
