"""A small convolutional classifier, trained here with labels: features for comparing images."""

import math
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from .data import DataError, Loader, Source, mirror
from .noise import stream
from .safetensors_file import read_safetensors

STAGES = 4  # the width doubles and the side halves from one to the next
GROUP = 8  # channels that are normalised together


class Classifier(nn.Module):
    """Images (B, 3, H, W), float 0..1, to logits (B, classes).

    GroupNorm, so that an image's features do not depend on the others in its batch. width: channels
    of the first stage, a multiple of 8.
    """

    def __init__(self, classes: int, width: int = 32):
        super().__init__()
        if width < 1 or width % GROUP:
            raise ValueError(f"width must be a multiple of {GROUP}; got {width}")
        self.classes, self.width = classes, width
        widths = [3, *(width * 2**stage for stage in range(STAGES))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=1 if stage == 0 else 2, padding=1, bias=False),
                nn.GroupNorm(after // GROUP, after),
                nn.ReLU(),
            )
            for stage, (before, after) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], classes)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each stage, (B, width 2^s, H / 2^s, W / 2^s), finest first."""
        x, maps = 4 * x - 2, []  # about zero mean and unit variance
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x)[-1].mean((2, 3)))

    def to_bytes(self) -> bytes:
        """The classifier as a safetensors file's content."""
        tensors = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        return save(tensors, {"classes": str(self.classes), "width": str(self.width)})


def load_classifier(path: Path) -> Classifier:
    """Reads what `Classifier.to_bytes` wrote; DataError that names the file if it is another."""
    try:
        tensors, about = read_safetensors(path)
        classifier = Classifier(int(about["classes"]), int(about["width"]))
        classifier.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path} holds no classifier of ldae_fast ({reason}); name another file"
        ) from error
    return classifier.eval()


def as_images(images: Tensor, flip: Tensor | None = None) -> Tensor:
    """uint8 (B, H, W, 3), mirrored where flip (B,), to float (B, 3, H, W), 0..1."""
    if flip is not None:
        images = mirror(images, flip)
    return images.permute(0, 3, 1, 2).float() / 255


def fit_classifier(
    source: Source,
    image_size: int,
    *,
    steps: int,
    seed: int = 0,
    width: int = 32,
    batch: int = 128,
    lr: float = 4e-3,
    flip: bool = True,
    device: str | torch.device = "cpu",
    workers: int = 2,
    bad_images: str = "replace",
    show: Callable[[float, dict], None] = lambda share, fields: None,
) -> Classifier:
    """Trains on `steps` batches of a labelled training split; the seed decides all that is drawn.

    AdamW with a short warm-up, then cosine decay. show: called with the share done and the loss.
    Raises DataError where there is nothing to tell apart. The result is in evaluation mode.
    """
    if len(source.classes) < 2:
        raise DataError(
            f"{source.name} has {len(source.classes)} class, so no classifier can be trained on it;"
            " use labelled data"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "classifier weights"))
        classifier = Classifier(len(source.classes), width).to(device)
    loader = Loader(
        source, batch_size=batch, image_size=image_size, seed=stream(seed, "classifier"),
        flip=flip, workers=workers, bad_images=bad_images,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(classifier.parameters(), lr, weight_decay=0.05)
    warmup = max(1, steps // 20)
    with closing(loader.iterate()) as batches:
        for step in range(steps):
            given = next(batches)
            images = as_images(given.images.to(device), given.flip.to(device))
            loss = F.cross_entropy(classifier(images), given.labels.to(device))
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = lr * min(decay, (step + 1) / warmup)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                show(step / steps, {"step": f"{step:,}/{steps:,}", "loss": loss.item()})
    return classifier.eval()
