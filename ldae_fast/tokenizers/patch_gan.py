"""The adversarial loss of the VQGAN family: a PatchGAN, hinge losses, an adaptive weight."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchGan(nn.Sequential):
    """Images (B, 3, S, S) to a grid of verdicts, high for real ones (Isola et al., CVPR 2017).

    channels: of the first layer, 64 in the family. Three layers halve the side, fewer where an
    image has less than 32 pixels.
    """

    def __init__(self, channels: int, side: int):
        halvings = max(1, min(3, (side // 4).bit_length() - 1))
        widths = [channels * min(2**i, 8) for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if i < halvings else 1
            layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: (E relu(1 - D(x)) + E relu(1 + D(x'))) / 2."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much the adversarial loss counts so that both pull the last layer equally hard.

    ||d reconstruction / d last|| / (||d adversarial / d last|| + 1e-4), at most 1e4 (Esser et al.,
    CVPR 2021, equation 7); no gradient flows through it.
    """
    (ours,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
