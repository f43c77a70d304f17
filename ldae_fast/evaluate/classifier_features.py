"""A classifier trained with the data's own labels as a feature network, where no Inception is."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..classifier import Classifier, as_images, fit_classifier, load_classifier
from ..data import Source
from ..report.atomic import replace_bytes

STEPS = 300  # batches of 128 images; its seed is always 0, whatever the run's


class ClassifierFeatures(nn.Module):
    """The averaged maps of the classifier's last stage."""

    name = "classifier_frechet"

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.stages(as_images(images))[-1].mean((2, 3))


def classifier_features(
    source: Source,
    image_size: int,
    file: Path | None,
    device: torch.device,
    workers: int,
    show: Callable[[float, dict], None],
) -> ClassifierFeatures:
    """The classifier in `file`, or one trained on `source` and kept there where none is yet."""
    if file and file.exists():
        return ClassifierFeatures(load_classifier(file).to(device))
    trained = fit_classifier(
        source, image_size, steps=STEPS, device=device, workers=workers, show=show
    )
    if file:
        replace_bytes(file, trained.to_bytes())
    return ClassifierFeatures(trained)
