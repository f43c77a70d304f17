"""The perceptual distance of images: how far a network's features of them lie apart."""

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ..foreign_weights import pick, read_weights

# Channels of VGG16's 13 convolutions (Simonyan and Zisserman, 2015), a line a stage.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the images that it was trained on


class Stages(Protocol):
    """A network that gives feature maps (B, C, h, w) of images (B, 3, H, W) in 0..1."""

    def stages(self, x: Tensor) -> list[Tensor]: ...


class Vgg16(nn.Module):
    """The convolutions of VGG16, named as in torchvision, so that its weight files fit."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage in VGG16:
            for after in stage:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def stages(self, x: Tensor) -> list[Tensor]:
        """relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, as in LPIPS."""
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
                if x.shape[-1] < 2:  # an image too small for the next stage
                    break
            x = layer(x)
        return maps


def load_vgg16(path: Path) -> Vgg16:
    """From torchvision's weights as .safetensors or .pth; SettingError that names a wrong file.

    Nothing in the file can run.
    """
    tensors, network = read_weights("--tokenizer.vgg", path, "VGG16"), Vgg16()
    refusal = f"--tokenizer.vgg {path} does not hold the weights of VGG16 as torchvision names them"
    network.load_state_dict(pick(tensors, network.state_dict(), refusal))
    return network.eval().requires_grad_(False)


def perceptual_distance(network: Stages, x: Tensor, y: Tensor) -> Tensor:
    """How far images (B, 3, H, W) in 0..1 lie apart in a network's features, (B,).

    LPIPS (Zhang et al., CVPR 2018) with all weights one: at each place of each stage the channels
    are scaled to unit length; squared differences add up over channels and stages, and are averaged
    over places.
    """
    return sum(
        (unit(a) - unit(b)).square().sum(1).mean((1, 2))
        for a, b in zip(network.stages(x), network.stages(y))
    )


def unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()
