"""What others offer for the same work, as functions of an op's arguments and options.

PEERS: op -> name -> factory(arguments, options) that returns a call with the op's signature.
PLAIN: plain torch in the arguments' dtype where an op's definition computes in a wider one; it is
the yardstick of the accuracy gate.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ldae_fast.kernels.attention import cases
from torch import Tensor


def randn(arguments: list, options: dict) -> Callable:
    """torch's own generator: serial on a CPU, and its noise depends on the batch."""

    def run(seed, step, sample_ids, elements, *, dtype=torch.float32):
        return torch.randn(len(sample_ids), elements, dtype=dtype, device=sample_ids.device)

    return run


def compiled_randn(arguments: list, options: dict) -> Callable:
    return torch.compile(randn(arguments, options), dynamic=False)


def scaled_dot_product(arguments: list, options: dict) -> Callable:
    def run(q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return run


def fused_adamw(arguments: list, options: dict) -> Callable:
    """torch.optim.AdamW(fused=True), then the average by foreach; it does not scale gradients."""
    params, grads, _, _, emas = arguments[:5]
    names = {key: options[key] for key in ("lr", "betas", "eps", "weight_decay")}
    own = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, g in zip(own, grads):
        p.grad = g
    optimizer = torch.optim.AdamW(own, fused=True, **names)

    def run(*_, **__):
        optimizer.step()
        torch._foreach_lerp_(emas, own, 1 - options["ema_decay"])

    return run


def layer_norm(arguments: list, options: dict) -> Callable:
    def run(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=eps)
        return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])

    return run


def residual_layer_norm(arguments: list, options: dict) -> Callable:
    def run(x, y, gate, shift, scale, *, eps: float = 1e-6):
        h = torch.addcmul(x, gate[:, None], y)
        normed = F.layer_norm(h, h.shape[-1:], eps=eps)
        return h, torch.addcmul(shift[:, None], normed, 1 + scale[:, None])

    return run


def linear_gelu(arguments: list, options: dict) -> Callable:
    def run(x, weight1, bias1, weight2, bias2, *, approximate: str = "none"):
        return F.linear(
            F.gelu(F.linear(x, weight1, bias1), approximate=approximate), weight2, bias2
        )

    return run


PEERS = {
    "normal": {"torch.randn": randn, "compiled torch.randn": compiled_randn},
    "attention": {"sdpa": scaled_dot_product},
    "adamw_ema": {"fused AdamW + foreach EMA": fused_adamw},
    "layernorm_modulate": {"F.layer_norm + pointwise": layer_norm},
    "gate_residual_layernorm_modulate": {"F.layer_norm + pointwise": residual_layer_norm},
    "mlp_gelu": {"F.linear + F.gelu": linear_gelu},
}
PLAIN = {"attention": cases.plain}
