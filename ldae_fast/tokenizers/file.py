"""Reads a tokenizer's file, whichever kind wrote it."""

import json
from pathlib import Path

from safetensors import SafetensorError

from ..config import SettingError
from ..safetensors_file import read_safetensors
from .conv_vae import ConvTokenizer
from .linear import LinearTokenizer

Tokenizer = LinearTokenizer | ConvTokenizer


class TokenizerError(SettingError):
    """A file that is no tokenizer, or not the one that is needed, as one sentence."""


def load_tokenizer(path: Path) -> Tokenizer:
    """What a tokenizer's `to_bytes` wrote; TokenizerError names a file that is something else."""
    try:
        tensors, about = read_safetensors(path)
        about = json.loads(about["tokenizer"]) if "tokenizer" in about else about
        if not isinstance(about, dict):
            raise TypeError("its metadata are no JSON object")
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"its {name} has values that are not finite")
        kind = ConvTokenizer if about.get("kind") == ConvTokenizer.kind else LinearTokenizer
        return kind.from_file(tensors, about)
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror or error
        raise TokenizerError(f"tokenizer file {path} cannot be read ({reason})") from error
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        is_other = isinstance(error, SafetensorError)
        reason = "no safetensors file" if is_other else str(error).splitlines()[0]
        raise TokenizerError(
            f"{path} holds no tokenizer ({reason}); make one by `ldae tokenizer`"
        ) from error
