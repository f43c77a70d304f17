"""Runs the model on a few images and hands the arrays to report.pictures."""

from pathlib import Path

import torch
from torch import Tensor

from ..data import Batch
from ..noise import Schedule
from ..report import pictures
from ..tokenizers import Tokenizer
from .protocol import Subject

SHOWN_RATIOS = (0.35, 0.7, 1.05, 1.4)  # of noise to signal


def nearest_levels(schedule: Schedule, wanted: tuple[float, ...]) -> list[int]:
    """The level t whose sigma_t / gamma_t is nearest to each wanted one; each once, rising."""
    ratio = schedule.sigma / schedule.gamma.clamp_min(1e-9)
    return sorted({int((ratio - w).abs()[1:].argmin()) + 1 for w in wanted})


def draw(subject: Subject, batch: Batch, folder: Path, rows: int = 6) -> None:
    """Writes masking.png, or denoising.png, noise_levels.png and what the tokenizer does.

    That is pca_filters.png or, where its latents stand for no components, reconstructions.png; of
    pixels as they are, neither.
    """
    objective, tokenizer = subject.objective, subject.objective.tokenizer
    images = batch.images[:rows].to(subject.device)
    ids = batch.ids[:rows].to(subject.device)
    if objective.config.predict == "masked":
        draw_masking(subject, images, ids, folder)
        return
    sigma = objective.schedule.sigma
    levels = nearest_levels(objective.schedule, SHOWN_RATIOS)
    size = images.shape[1]
    noisy, denoised = [], []
    for level in levels:
        t = torch.full((len(images),), level, device=subject.device)
        with subject.autocast():
            made = objective.denoise(subject.models["trained"], images, t, ids)
        noisy.append(tokenizer.images(made["noisy"].float(), size))
        denoised.append(tokenizer.images(made["denoised"].float(), size))
    clean = images.float() / 255
    sigmas = [float(sigma[t]) for t in levels]
    noisy, denoised = array(torch.stack(noisy)), array(torch.stack(denoised))
    pictures.denoising_grid(folder / "denoising.png", array(clean), noisy, denoised, levels, sigmas)
    first = tokenizer.images(tokenizer.decode(tokenizer.encode(tokenizer.patches(images))), size)
    steps = torch.cat([first[None].cpu().clamp(0, 1), torch.from_numpy(noisy)])
    pictures.noise_levels(folder / "noise_levels.png", steps.numpy(), [0.0, *sigmas])
    if tokenizer.kind == "pixel":  # nothing is taken apart
        return
    if tokenizer.components is None:
        draw_reconstructions(tokenizer, images, folder)
        return
    channels, patch = len(tokenizer.view.mean), tokenizer.view.patch
    filters = tokenizer.components[:32].view(-1, patch, patch, channels)
    pictures.pca_filters(
        folder / "pca_filters.png", array(filters, None), array(tokenizer.variance, None)
    )


def draw_reconstructions(tokenizer: Tokenizer, images: Tensor, folder: Path) -> float:
    """Writes reconstructions.png of uint8 images (N, H, W, C); returns their mean PSNR in dB."""
    patches = tokenizer.patches(images)
    decoded = tokenizer.images(tokenizer.decode(tokenizer.encode(patches)), images.shape[1])
    found = psnr(images.float() / 255, decoded.clamp(0, 1))
    pictures.reconstructions(
        folder / "reconstructions.png", array(images / 255), array(decoded), found.tolist()
    )
    return float(found.mean())


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images 0..1 (N, H, W, C) in dB, (N,)."""
    return -10 * (x - y).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def draw_masking(subject: Subject, images: Tensor, ids: Tensor, folder: Path) -> None:
    objective, size = subject.objective, images.shape[1]
    with subject.autocast():
        made = objective.reconstruct(subject.models["trained"], images, ids)
    masked, guessed = (objective.tokenizer.images(x.float(), size) for x in made.values())
    pictures.masking_grid(
        folder / "masking.png", array(images.float() / 255), array(masked), array(guessed),
        objective.config.mask_ratio,
    )  # fmt: skip


def array(x: Tensor, limits: tuple[float, float] | None = (0.0, 1.0)):
    x = x.detach().float().cpu()
    return (x.clamp(*limits) if limits else x).numpy()
