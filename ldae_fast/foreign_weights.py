"""Reads the weights that others have published, of which nothing is run."""

from pathlib import Path

import torch
from torch import Tensor

from .config import SettingError
from .safetensors_file import read_safetensors


def read_weights(option: str, path: Path, network: str) -> dict[str, Tensor]:
    """The tensors by name of a .safetensors file, or of a .pth file that holds nothing else.

    Raises SettingError that names the option, the file and the network whose weights are wanted.
    """
    try:
        if path.suffix == ".safetensors":
            weights, _ = read_safetensors(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SettingError(
            f"{option} {path} cannot be read ({error.strerror or error}); name a file of {network} "
            "weights"
        ) from error
    except Exception as error:  # what a hostile file makes of a reader is not foreseeable
        raise SettingError(
            f"{option} {path} holds no plain tensors; name a .safetensors file, or a .pth file "
            f"of a state dict, of {network} weights"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise SettingError(f"{option} {path} must hold a state dict, names and tensors alone")
    return weights


def pick(weights: dict[str, Tensor], wanted: dict[str, Tensor], refusal: str) -> dict[str, Tensor]:
    """Those of the weights that are wanted; SettingError, begun by `refusal`, for the first that is
    not there in the wanted one's shape."""
    for name, own in wanted.items():
        if name not in weights or weights[name].shape != own.shape:
            came = tuple(weights[name].shape) if name in weights else "none"
            raise SettingError(f"{refusal}: {name} must be {tuple(own.shape)}; got {came}")
    return {name: weights[name] for name in wanted}
