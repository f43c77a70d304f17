"""The same model and step as most repositories write them: nothing of this package in the step.

A DiT with SDPA, F.layer_norm and adaLN by broadcasting under autocast, torch's own noise, PCA and
inverse PCA as products, the loss by the full basis, fused AdamW and a foreach average.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (v[:, None] for v in vectors.unbind(1))
        batch, tokens, width = x.shape
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + gate1 * self.proj(h)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Model(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, values: int, tokens: int):
        super().__init__()
        self.width, self.depth = width, depth
        self.embed = nn.Linear(values, width)
        self.positions = nn.Parameter(torch.randn(tokens, width) * 0.02, requires_grad=False)
        self.time = nn.Sequential(nn.Linear(256, width // 4), nn.SiLU(),
                                  nn.Linear(width // 4, width // 4), nn.SiLU(),
                                  nn.Linear(width // 4, (6 * depth + 2) * width))  # fmt: skip
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.out = nn.Linear(width, values)
        for layer in (self.time[-1], self.out):
            nn.init.zeros_(layer.weight)

    def forward(self, patches: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(128, device=t.device) * (-9.21 / 128))
        angle = t[:, None].float() * rates
        vectors = self.time(torch.cat([angle.cos(), angle.sin()], 1))
        vectors = vectors.view(len(t), -1, self.width)
        x = self.embed(patches) + self.positions
        for i, block in enumerate(self.blocks):
            x = block(x, vectors[:, 6 * i : 6 * i + 6])
        shift, scale = vectors[:, -2, None], vectors[:, -1, None]
        return self.out(self.norm(x) * (1 + scale) + shift)


def step(
    config, tokenizer, batches: list, device: str, dtype: torch.dtype, compiled: str
) -> Callable[[int], Tensor]:
    """A function of the step's number that trains on its batch and returns the loss.

    compiled: by torch.compile; off, blocks (each for itself, in one graph), on (all as one) or
    graph (that, launched as CUDA graphs by torch.compile's mode "reduce-overhead").
    """
    torch.manual_seed(0)
    m, view = config.model, tokenizer.view
    patch, values = m.patch, tokenizer.values
    side = config.data.image_size // patch
    model = Model(m.width, m.depth + m.decoder_depth, m.heads, values, side**2).to(device)
    network = model
    if compiled in ("on", "graph"):
        network = torch.compile(model, mode="reduce-overhead" if compiled == "graph" else None)
    for block in model.blocks if compiled == "blocks" else ():
        block.compile()
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4,
                                  betas=(0.9, 0.95), weight_decay=0.05, fused=True)  # fmt: skip
    mean, std = (torch.tensor(v, device=device) for v in (view.mean, view.std))
    kept, center = tokenizer.encoder.to(device), tokenizer.center.to(device)
    spread = tokenizer.scale.to(device)

    def advance(number: int) -> Tensor:
        if compiled == "graph":
            torch.compiler.cudagraph_mark_step_begin()
        batch = batches[number % len(batches)]
        images = torch.where(batch.flip[:, None, None, None], batch.images.flip(2), batch.images)
        pixels = (images.to(device).float() / 255 - mean) / std
        b = len(pixels)
        grid = pixels.view(b, side, patch, side, patch, 3).transpose(2, 3)
        patches = grid.reshape(b, side**2, values)
        t = torch.randint(0, 1000, (b,), device=device)
        sigma = (t.float() / 999)[:, None, None] * 1.4142
        latents = (patches - center) @ kept.T / spread
        noisy = (latents + sigma * torch.randn_like(latents)) * spread @ kept + center
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            pred = network(noisy, t)
        error = patches - pred.float()
        inside = (error @ kept.T).square().sum((1, 2))
        whole = error.square().sum((1, 2))
        weight = 1 / (1 + sigma[:, 0, 0] ** 2)
        loss = (weight * (inside + 0.1 * (whole - inside)) / error[0].numel()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1e-4)
        return loss.detach()

    return advance
