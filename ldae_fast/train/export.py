"""`ldae export`: a run's encoder alone, as a plain ViT in one safetensors file, and back.

At a fixed noise level the modulation is a constant (section 4, item 5): scale and shift become the
LayerNorms' weight and bias, gates fold into the linears before them.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config import Config, SettingError
from ..evaluate.protocol import Subject
from ..safetensors_file import read_safetensors
from ..tokenizers import LinearTokenizer
from ..vit import ViT, ViTConfig
from .checkpoint import CheckpointError, replace_durably
from .probe import load_subject

FORMAT = "ldae_fast encoder 1"


def export(path: Path, out: Path, weights: str, overrides: dict) -> ViT:
    """Writes the encoder of the run in `path` to `out`, whole or not at all."""
    subject = load_subject(path, weights, overrides)
    vit = plain_vit(subject)
    source = {"run": str(path), "recipe": subject.config.recipe, "weights": weights,
              "t": level(subject)}  # fmt: skip
    replace_durably(out.absolute(), to_bytes(vit, source))
    return vit


# --- The fold -------------------------------------------------------------------------------------


def level(subject: Subject) -> int:
    """The noise level that the encoder is told in evaluation."""
    return min(subject.config.evaluate.t, subject.objective.schedule.levels)


def vit_config(config: Config, tokenizer: LinearTokenizer) -> ViTConfig:
    model, view = config.model, tokenizer.view
    return ViTConfig(
        config.data.image_size, model.patch, model.width, config.evaluate.cut or model.depth,
        model.heads, model.mlp_ratio, model.gelu, view.mean, view.std,
    )  # fmt: skip


@torch.no_grad()
def plain_vit(subject: Subject) -> ViT:
    """The subject's encoder at its evaluation's level and cut, on the CPU in float32.

    ViT(images) is model.encode(patches, t, cut) up to rounding.
    """
    model, tokenizer = subject.models["trained"], subject.objective.tokenizer
    if not isinstance(tokenizer, LinearTokenizer):
        raise SettingError(
            f"{subject.config.recipe} reads the latents of a convolutional network, so its encoder "
            "is no plain ViT; `ldae export` and `ldae finetune` take row5 to row13, `ldae probe` "
            "takes every run"
        )
    vit = ViT(vit_config(subject.config, tokenizer))
    config = vit.config
    weight, bias = embedding(model.encoder.embed, subject)
    p, channels = config.patch, len(config.mean)
    vit.patch_embed.proj.weight.copy_(weight.view(-1, p, p, channels).permute(0, 3, 1, 2))
    vit.patch_embed.proj.bias.copy_(bias)
    vit.pos_embed.copy_(model.encoder.positions)
    t = torch.tensor([level(subject)], device=model.encoder.positions.device)
    for block, plain, six in zip(model.blocks, vit.blocks, model.vectors(t)):
        shift1, scale1, gate1, shift2, scale2, gate2 = six[:, 0].cpu()
        plain.norm1.weight.copy_(1 + scale1)
        plain.norm1.bias.copy_(shift1)
        plain.norm2.weight.copy_(1 + scale2)
        plain.norm2.bias.copy_(shift2)
        plain.attn.qkv.load_state_dict(block.qkv.state_dict())
        plain.mlp.fc1.load_state_dict(block.fc1.state_dict())
        for gate, gated, linear in ((gate1, block.proj, plain.attn.proj),
                                    (gate2, block.fc2, plain.mlp.fc2)):  # fmt: skip
            linear.weight.copy_(gate[:, None] * gated.weight.cpu())
            linear.bias.copy_(gate * gated.bias.cpu())
    return vit.eval()


def embedding(embed: torch.nn.Linear, subject: Subject) -> tuple[Tensor, Tensor]:
    """Weight (D, P) and bias (D,) for normalised patches, also where the model takes latents."""
    weight, bias = embed.weight, embed.bias
    if subject.objective.config.input == "latent":  # W ((V x - V c) / s) + b
        tokenizer = subject.objective.tokenizer
        weight = (weight / tokenizer.scale) @ tokenizer.encoder
        bias = bias - weight @ tokenizer.center
    return weight.cpu(), bias.cpu()


# --- The file -------------------------------------------------------------------------------------


def to_bytes(vit: ViT, source: dict) -> bytes:
    """A safetensors file; its metadata are the format, the config, the source and a digest."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in vit.state_dict().items()}
    words = {"format": FORMAT, "config": json.dumps(asdict(vit.config)),
             "source": json.dumps(source)}  # fmt: skip
    return save(tensors, words | {"sha256": digest(tensors, words)})


def digest(tensors: dict[str, Tensor], words: dict[str, str]) -> str:
    """SHA-256 of everything that the file says."""
    total = hashlib.sha256(json.dumps(sorted(words.items())).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def is_export(path: Path) -> bool:
    """Whether `export` wrote the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load_vit(path: Path) -> ViT:
    """The encoder that `export` wrote; CheckpointError where the file is foreign or damaged."""
    try:
        tensors, words = read_safetensors(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file; `ldae export` writes one") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error})") from error
    if words.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no encoder written by `ldae export`")
    sealed = words.pop("sha256", None)
    try:
        if digest(tensors, words) != sealed:
            raise ValueError("its digest is not what the file says")
        return build(json.loads(words["config"]), tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; export it again") from error


def build(settings: dict, tensors: dict[str, Tensor]) -> ViT:
    """A ViT around the tensors, made only once their shapes are known to be the config's."""
    channels = {name: tuple(map(float, settings[name])) for name in ("mean", "std")}
    config = ViTConfig(**settings | channels)
    sizes = (config.image_size, config.patch, config.width, config.depth, config.heads)
    if min(sizes) < 1 or config.depth > len(tensors) or config.width % config.heads:
        raise ValueError(f"its config makes no encoder ({settings})")
    if any(t.dtype != torch.float32 for t in tensors.values()):
        raise ValueError("its tensors are not float32")
    with torch.device("meta"):
        vit = ViT(config)
    vit.load_state_dict(tensors, assign=True)
    return vit.eval()
