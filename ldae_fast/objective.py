"""What the network is given, what it must predict, and how the error is weighted."""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import NoiseConfig, ObjectiveConfig
from .model import LatentDAE
from .noise import Schedule, draw_levels, drop_labels, make_schedule, stream
from .ops import denoise_loss, denoise_loss_and_gradient
from .tokenizers import Tokenizer


def token_widths(objective: ObjectiveConfig, tokenizer: Tokenizer) -> tuple[int, int]:
    """Values per token that the network takes and gives."""
    token = tokenizer.d if objective.input == "latent" else tokenizer.values
    out = tokenizer.d if objective.target == "latent" else tokenizer.values
    return token, out


class Guess(NamedTuple):
    """What the network says about a batch, and what it is held against."""

    pred: Tensor  # (B, T, .)
    level_weight: Tensor  # (B,)
    wanted: Tensor | None  # (B, T, .); None where it is the image itself

    def error(self) -> Tensor:
        """Weighted mean squared error a sample, (B,)."""
        return self.level_weight * (self.wanted - self.pred.float()).square().mean(dim=(1, 2))


class Objective:
    """The denoising loss of one batch, and the noisy inputs it is made from.

    `fold=True` feeds latents through the folded embedding where the input is an image.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        noise: NoiseConfig,
        tokenizer: Tokenizer,
        seed: int,
        fold: bool = True,
        impl: str = "auto",
    ):
        self.config, self.tokenizer, self.impl = config, tokenizer, impl
        self.seed, self.noise_seed = seed, stream(seed, "noise")
        schedule = make_schedule(noise.schedule, noise.levels, noise.single_sigma)
        self.schedule: Schedule = schedule.to(tokenizer.scale.device)  # else each step would wait
        self.fold = fold and config.input == "image"

    def add_noise(
        self, images: Tensor, t: Tensor, ids: Tensor, step: int, outputs: tuple[str, ...], flip=None
    ) -> dict[str, Tensor]:
        """The tokenizer's latents and their noise at levels t (B,), with this run's noise key."""
        gamma, sigma = self.schedule.at(t)
        return self.tokenizer.add_noise(
            images, gamma, sigma, ids, seed=self.noise_seed, step=step, outputs=outputs, flip=flip,
            impl=self.impl,
        )  # fmt: skip

    def fold_for(self, model: LatentDAE) -> tuple[Tensor, Tensor] | None:
        """The folded embedding where latents stand for the image they decode to."""
        if not self.fold:
            return None
        tokenizer = self.tokenizer
        return model.fold_embedding(tokenizer.decoder, tokenizer.scale, tokenizer.center)

    def input_name(self) -> str:
        latent = self.config.input == "latent" or self.fold
        return "noisy_latents" if latent else "noisy_patches"

    def predict(
        self, model: LatentDAE, noisy: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """noisy: what `input_name` names, (B, T, .). Returns the network's output (B, T, .)."""
        told = () if labels is None else (labels,)
        return model(noisy, t, self.fold_for(model), *told)

    def loss(
        self, model: LatentDAE, images: Tensor, ids: Tensor, flip: Tensor, step: int
    ) -> Tensor:
        """images: uint8 (B, H, W, C). Returns one loss a sample, (B,) float32."""
        guess = self.guess(model, images, ids, flip, step)
        if guess.wanted is None:
            return denoise_loss(*self.residue(guess, images), **self.view(flip))
        return guess.error()

    def backward(self, guess: Guess, images: Tensor, flip: Tensor, share: float) -> Tensor:
        """One loss a sample, (B,), after adding the gradients of `share` times their sum."""
        if guess.wanted is None:
            upstream = torch.full_like(guess.level_weight, share)
            losses, dpred = denoise_loss_and_gradient(
                *self.residue(guess, images), upstream, **self.view(flip)
            )
            guess.pred.backward(dpred)
            return losses
        losses = guess.error()
        (losses.sum() * share).backward()
        return losses.detach()

    def guess(
        self, model: LatentDAE, images: Tensor, ids: Tensor, flip: Tensor, step: int,
        labels: Tensor | None = None,
    ) -> Guess:  # fmt: skip
        """The prediction for a batch at the levels and with the noise of this step.

        labels: (B,) int64 for a network that is told them, of which some are dropped.
        """
        t = draw_levels(self.seed, step, ids, self.schedule.levels)
        target = self.config.target
        extra = {"latent": "clean_latents", "reconstruction": "clean_latents"}.get(target)
        if self.config.predict == "noise":
            extra = "noise"
        outputs = (self.input_name(), extra) if extra else (self.input_name(),)
        made = self.add_noise(images, t, ids, step, outputs, flip)
        if labels is not None:
            labels = drop_labels(self.seed, step, ids, labels, self.config.label_dropout)
        pred = self.predict(model, made[self.input_name()], t, labels)
        level_weight = self.schedule.level_weight(self.config.level_weight, t)
        if target == "image":
            return Guess(pred, level_weight, None)
        wanted = made[extra]
        if target == "reconstruction":
            wanted = self.tokenizer.decode(wanted)
        return Guess(pred, level_weight, wanted)

    def residue(self, guess: Guess, images: Tensor) -> tuple[Tensor, ...]:
        basis = self.tokenizer.basis[: self.tokenizer.d]  # V_d, which an autoencoder's V is not
        return guess.pred, images, basis, guess.level_weight

    def view(self, flip: Tensor) -> dict:
        weights = (1.0, self.config.rest_weight)
        return {"weights": weights, "view": self.tokenizer.view, "flip": flip, "impl": self.impl}

    @torch.no_grad()
    def denoise(
        self, model: LatentDAE, images: Tensor, t: Tensor, ids: Tensor
    ) -> dict[str, Tensor]:
        """Noisy and denoised patches (B, T, P) in normalised pixels, for looking at."""
        outputs = ("noisy_patches", "noisy_latents")
        made = self.add_noise(images, t, ids, 0, outputs)
        pred = self.predict(model, made[self.input_name()], t).float()
        if self.config.target == "latent":
            if self.config.predict == "noise":
                gamma, sigma = (v[:, None, None] for v in self.schedule.at(t))
                pred = (made["noisy_latents"] - sigma * pred) / gamma.clamp_min(1e-3)
            pred = self.tokenizer.decode(pred)
        return {"noisy": made["noisy_patches"], "denoised": pred}
