"""The train step of transformers' masked autoencoder (ViT-MAE) in the model's shape.

Encoder and decoder have the width, depth and heads of the model's two halves. `mask` is the share
of tokens that the encoder does not see: 0.75 as the method has it, or 0 for a single token, which
makes the work that of a denoising autoencoder.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ldae_fast.config import Config


def refusal() -> str:
    """Why it cannot run here; '' when it can."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install transformers"
    return ""


def step(
    config: Config, batches: list, device: str, dtype: torch.dtype, compiled: bool, mask: float
) -> Callable[[int], Tensor]:
    """A function of the step's number that trains on its batch and returns the loss."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    m = config.model
    tokens = (config.data.image_size // m.patch) ** 2
    model = ViTMAEForPreTraining(ViTMAEConfig(
        image_size=config.data.image_size, patch_size=m.patch, mask_ratio=mask or 1 / tokens,
        hidden_size=m.width, num_hidden_layers=m.depth, num_attention_heads=m.heads,
        intermediate_size=m.mlp_ratio * m.width, decoder_hidden_size=m.width,
        decoder_num_hidden_layers=m.decoder_depth, decoder_num_attention_heads=m.heads,
        decoder_intermediate_size=m.mlp_ratio * m.width,
    )).to(device)  # fmt: skip
    network = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    autocast = functools.partial(torch.autocast, device, dtype, enabled=dtype != torch.float32)

    def advance(number: int) -> Tensor:
        batch = batches[number % len(batches)]
        images = torch.where(batch.flip[:, None, None, None], batch.images.flip(2), batch.images)
        pixels = images.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        optimizer.zero_grad()
        with autocast():
            loss = network(pixels).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return advance
