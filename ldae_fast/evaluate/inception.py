"""Inception-v3 (Szegedy et al., 2016) as a feature network, its weights read from a local file.

Parameters have torchvision's names, which pytorch-fid's file has too. Two sets of weights are
known. FID is defined by those of TensorFlow's 2015 graph, of 1008 classes: its average pools leave
the border out of the mean, and the last block pools by the maximum. torchvision's, of 1000 classes,
were trained otherwise, and their distances are not comparable with any published FID.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SettingError
from ..foreign_weights import pick, read_weights

SIDE = 299
FID_CLASSES, TORCHVISION_CLASSES = 1008, 1000

# A block's branches: name -> its convolutions, each (channels, kernel) or (channels, kernel,
# stride); a pair at the end reads the same input and gives two outputs. Kernels are (height, width)
# or the side of a square.
ROW, COLUMN = (1, 7), (7, 1)
SPLIT = ((384, (1, 3)), (384, (3, 1)))


def fine(pooled: int) -> dict:
    """35 x 35."""
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pooled, 1)],
    }


def middle(c: int) -> dict:
    """17 x 17, with 7 x 7 convolutions taken apart into rows and columns."""
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, ROW), (192, COLUMN)],
        "branch7x7dbl": [(c, 1), (c, COLUMN), (c, ROW), (c, COLUMN), (192, ROW)],
        "branch_pool": [(192, 1)],
    }


COARSE = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), SPLIT],
    "branch3x3dbl": [(448, 1), (384, 3), SPLIT],
    "branch_pool": [(192, 1)],
}
TO_MIDDLE = {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}
TO_COARSE = {
    "branch3x3": [(192, 1), (320, 3, 2)],
    "branch7x7x3": [(192, 1), (192, ROW), (192, COLUMN), (192, 3, 2)],
}
MIXED = {
    "Mixed_5b": fine(32),
    "Mixed_5c": fine(64),
    "Mixed_5d": fine(64),
    "Mixed_6a": TO_MIDDLE,
    "Mixed_6b": middle(128),
    "Mixed_6c": middle(160),
    "Mixed_6d": middle(160),
    "Mixed_6e": middle(192),
    "Mixed_7a": TO_COARSE,
    "Mixed_7b": COARSE,
    "Mixed_7c": COARSE,
}


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int, kernel, stride: int = 1, padding=None):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:  # a stride leaves the border out, all else keeps the size
            padding = (0, 0) if stride > 1 else tuple(side // 2 for side in kernel)
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches over the same input, their outputs joined by channels, the pooled one last."""

    def __init__(self, before: int, branches: dict, pool: str):
        super().__init__()
        self.pool, self.branches, self.width = pool, [], 0
        for branch, chain in branches.items():
            width, names = before, []
            for place, layer in enumerate(chain, 1):
                ends = layer if isinstance(layer[0], tuple) else (layer,)
                number = f"_{place}" if len(chain) > 1 else ""
                letters = "ab" if len(ends) > 1 else [""]
                names.append([f"{branch}{number}{letter}" for letter in letters])
                for name, end in zip(names[-1], ends):
                    self.add_module(name, Conv(width, *end))
                width = sum(end[0] for end in ends)
            self.branches.append(names)
            self.width += width
        if "branch_pool" not in branches:
            self.width += before

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool == "down":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "max":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.pool == "mean with border")

    def forward(self, x: Tensor) -> Tensor:
        pooled, joined = self.pooled(x), []
        for names in self.branches:
            y = pooled if names[0][0] == "branch_pool" else x
            for layer in names:
                y = [self.get_submodule(name)(y) for name in layer]
                y = torch.cat(y, 1) if len(y) > 1 else y[0]
            joined.append(y)
        if self.pool == "down":
            joined.append(pooled)
        return torch.cat(joined, 1)


class Inception(nn.Module):
    """uint8 images (B, H, W, 3) to the 2,048 averaged features of the last block; evaluation only.

    fid: whether it pools as TensorFlow's graph does. The classifier and the auxiliary head, which
    features do not need, are left out.
    """

    def __init__(self, fid: bool):
        super().__init__()
        self.name = "fid" if fid else "torchvision_inception_frechet"
        stem = {
            "Conv2d_1a_3x3": (3, 32, 3, 2),
            "Conv2d_2a_3x3": (32, 32, 3, 1, 0),
            "Conv2d_2b_3x3": (32, 64, 3),
            "Conv2d_3b_1x1": (64, 80, 1),
            "Conv2d_4a_3x3": (80, 192, 3, 1, 0),
        }
        for name, sizes in stem.items():
            self.add_module(name, Conv(*sizes))
        width = 192
        for name, branches in MIXED.items():
            pool = "mean" if fid else "mean with border"
            if "branch_pool" not in branches:
                pool = "down"
            elif fid and name == "Mixed_7c":
                pool = "max"
            block = Mixed(width, branches, pool)
            self.add_module(name, block)
            width = block.width
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = 2 * x - 1
        for name, layer in self.named_children():
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


def load_inception(path: Path) -> Inception:
    """The network of a weights file; SettingError that names the file if it is another's."""
    weights = read_weights("--inception", path, "Inception-v3")
    head = weights.get("fc.weight", torch.empty(0))
    if len(head) not in (FID_CLASSES, TORCHVISION_CLASSES):
        raise SettingError(
            f"--inception {path} is no Inception-v3: fc.weight must have {FID_CLASSES} rows (FID's "
            f"own weights, as pytorch-fid has them) or {TORCHVISION_CLASSES} (torchvision's); got "
            f"{tuple(head.shape) if 'fc.weight' in weights else 'none'}"
        )
    network = Inception(fid=len(head) == FID_CLASSES)
    wanted = network.state_dict()
    # Files from before 2018 do not count the batches, which plays no part in evaluation.
    wanted = {n: v for n, v in wanted.items() if not n.endswith("num_batches_tracked")}
    found = pick(weights, wanted, f"--inception {path} is no Inception-v3")
    network.load_state_dict(found, strict=False)
    return network
