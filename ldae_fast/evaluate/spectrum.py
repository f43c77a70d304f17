"""How many directions the features use, and what that says about the run."""

import torch
from torch import Tensor


def effective_rank(values: Tensor) -> float:
    """exp(entropy) of the singular values of centred features (N, D), 1 to min(N, D).

    Roy and Vetterli, "The effective rank" (2007); RankMe (2022) uses it for representations.
    """
    centred = (values - values.mean(0)).double()
    singular = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-300)
    return float(torch.special.entr(share).sum().exp())


def verdict(rank: float, width: int, top1: float, untrained: float, chance: float) -> str:
    """One plain word first: collapsed, learning, or not learning."""
    if rank < max(2.0, 0.01 * width):
        return f"collapsed: the features use {rank:.1f} of {width} directions"
    used = f"the features use {rank:.0f} of {width} directions"
    if top1 > untrained and top1 > 1.5 * chance:
        return (
            f"learning: {100 * (top1 - untrained):.1f} points above the untrained encoder, {used}"
        )
    return f"not learning: no better than the untrained encoder or chance, {used}"
