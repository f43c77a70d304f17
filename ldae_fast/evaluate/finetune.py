"""Fine-tuning: every weight of the encoder and a linear head, trained on labels (section 3)."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..config import FinetuneConfig
from ..data import Batch, mirror
from ..noise import stream
from ..ops import AdamWEMA
from ..training_state import load_training_state, training_state
from ..vit import ViT, normalise
from .drop_path import drop_path
from .mixing import mix, smooth_targets


class Classifier(nn.Module):
    """Images (B, C, H, W) -> logits (B, classes): average-pooled tokens, LayerNorm, linear.

    The head starts at zero, so that the first steps turn it and leave the encoder alone.
    """

    def __init__(self, encoder: ViT, classes: int):
        super().__init__()
        self.encoder = encoder
        self.fc_norm = nn.LayerNorm(encoder.config.width, eps=1e-6)
        self.head = nn.Linear(encoder.config.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.fc_norm(self.encoder(images, keep).mean(dim=1)))


def layer_of(name: str, depth: int) -> int:
    """0 for the patch embedding, 1 .. depth for the blocks, depth + 1 for what lies above them."""
    if name.startswith("encoder.blocks."):
        return 1 + int(name.split(".")[2])
    return 0 if name.startswith("encoder.") else depth + 1


def parameter_groups(model: Classifier, config: FinetuneConfig) -> list[dict]:
    """A group for the matrices and one for the vectors of each layer, from the lowest up.

    lr_scale: layer_decay to the power of how many layers lie above (Clark et al., 2020), so the
    head's is 1. Vectors, that is biases and norms, have no weight decay.
    """
    depth = len(model.encoder.blocks)
    groups = {}
    for name, p in model.named_parameters():
        layer, matrix = layer_of(name, depth), p.dim() > 1
        group = groups.setdefault(
            (layer, matrix),
            {"params": [], "lr_scale": config.layer_decay ** (depth + 1 - layer),
             "weight_decay": config.weight_decay if matrix else 0.0},
        )  # fmt: skip
        group["params"].append(p)
    return [groups[key] for key in sorted(groups)]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) -sum_k target_k log softmax(logits)_k; both (B, classes)."""
    return -(targets * logits.float().log_softmax(dim=1)).sum(dim=1)


class Finetuner:
    """A classifier, its optimizer, and the step that moves them: a function of seed and step."""

    def __init__(
        self, encoder: ViT, classes: int, config: FinetuneConfig, seed: int, autocast: Callable,
        device: torch.device,
    ):  # fmt: skip
        self.config, self.classes = config, classes
        self.autocast, self.device = autocast, device
        self.mix_seed, self.path_seed = stream(seed, "mixing"), stream(seed, "drop path")
        self.model = Classifier(encoder, classes).to(device)
        self.optimizer = AdamWEMA(
            parameter_groups(self.model, config), betas=(config.beta1, config.beta2),
            ema=config.ema,
        )  # fmt: skip
        self.sound = torch.tensor(True, device=device)  # every step so far was finite
        self.updating = False  # whether a step began to change weights and did not end

    def step(self, batch: Batch, step: int, lr: float) -> Tensor:
        """One update at the head's rate `lr`. Returns the loss on the device.

        From a step on whose loss or gradient is not finite no weight changes, and `sound` is false.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, step)
        norms = torch._foreach_norm(self.optimizer.gradients())
        self.sound = self.sound & torch.isfinite(loss + torch.stack(norms).sum())
        scale = torch.where(self.sound, 1.0, torch.nan)
        self.updating = True
        self.optimizer.step(grad_scale=scale)
        self.updating = False
        return loss

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss of a batch, with its gradients added up in the parameters, part by part."""
        config, encoder = self.config, self.model.encoder.config
        images, ids, flip, labels = (
            x.to(self.device) for x in (batch.images, batch.ids, batch.flip, batch.labels)
        )
        targets = smooth_targets(labels, self.classes, config.smoothing)
        images, targets = mix(
            normalise(mirror(images, flip), encoder), targets, config, self.mix_seed, step
        )
        keep = drop_path(self.path_seed, step, ids, encoder.depth, config.drop_path)
        total = torch.zeros((), device=self.device)
        for some in zip(*(x.chunk(config.accumulate) for x in (images, keep, targets))):
            total += self.part(*some, 1 / len(ids))
        return total

    def part(self, images: Tensor, keep: Tensor, targets: Tensor, share: float) -> Tensor:
        """`share` times the summed loss of some images; its gradients add up in the parameters."""
        with self.autocast():
            logits = self.model(images, keep)
        loss = soft_cross_entropy(logits, targets).sum() * share
        loss.backward()
        return loss.detach()

    def models(self) -> dict[str, Classifier]:
        """The trained network and its moving average, a copy."""
        average = copy.deepcopy(self.model)
        average.load_state_dict(self.state()["ema"], strict=False)  # all but fixed positions
        return {"trained": self.model, "ema": average}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a resumed run needs, as named tensors: weights, ema, optimizer."""
        return training_state(self.model, self.optimizer)

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Takes back what `state` gave; a missing or ill-shaped tensor raises."""
        load_training_state(self.model, self.optimizer, state)


@torch.no_grad()
def top1(
    models: dict[str, Classifier], batches: Iterable[Batch], autocast: Callable,
    device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """Share of the images that each model classifies rightly, all in one pass over them."""
    hits, count = dict.fromkeys(models, 0), 0
    for batch in batches:
        labels = batch.labels.to(device)
        for name, model in models.items():
            images = normalise(mirror(batch.images, batch.flip).to(device), model.encoder.config)
            with autocast():
                hits[name] += (model(images).argmax(1) == labels).sum()
        count += len(labels)
    return {name: float(right) / max(1, count) for name, right in hits.items()}
