"""Images from a trained run: its network as a denoiser of latents, their decoding to pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import SettingError
from .protocol import Subject
from .sample import Predict, Sampling, sample


def class_count(subject: Subject) -> int:
    """Classes that the network can be told; 0 where it is told none."""
    model = subject.config.model
    return model.classes if model.conditional else 0


def denoiser(subject: Subject) -> Predict:
    """The run's network from latents to what `sample` takes, whatever it is given and gives back.

    A network of images reads the picture that the noisy latents decode to, or the latents
    themselves through the folded embedding. A predicted image is encoded.
    """
    objective, model = subject.objective, subject.models["trained"]
    tokenizer, reads_latents = objective.tokenizer, objective.input_name() == "noisy_latents"

    def predict(z_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        noisy = z_t if reads_latents else tokenizer.decode(z_t)
        with subject.autocast():
            pred = objective.predict(model, noisy, t, labels)
        pred = pred.float()
        return pred if objective.config.target == "latent" else tokenizer.encode(pred)

    return predict


def generate(
    subject: Subject,
    ids: Tensor,
    how: Sampling,
    labels: Tensor | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Images (B, S, S, 3) uint8 of samples ids (B,). SettingError where they are not finite."""
    objective, tokenizer = subject.objective, subject.objective.tokenizer
    tokens = len(subject.models["trained"].encoder.positions)
    z = sample(
        denoiser(subject), objective.config.predict, objective.schedule, tokenizer.latent_variance,
        ids.to(subject.device), tokens, how, labels, tick,
    )  # fmt: skip
    if not z.isfinite().all():
        raise SettingError(
            "the samples are not finite numbers; take more --steps, less --guidance, or a run "
            "whose loss fell"
        )
    pixels = tokenizer.images(tokenizer.decode(z), subject.config.data.image_size)
    return (255 * pixels.clamp(0, 1)).round().to(torch.uint8)
