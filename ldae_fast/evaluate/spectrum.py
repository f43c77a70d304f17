"""How many directions the features use, and what that says about the run."""

import torch
from torch import Tensor


def effective_rank(values: Tensor) -> float:
    """exp(entropy) of the singular values of centred features (N, D), 1 to min(N, D).

    0 where a feature is not finite. Source: Roy and Vetterli, "The effective rank" (2007); RankMe
    (2022) uses it for representations.
    """
    if not values.isfinite().all():
        return 0.0
    centred = (values - values.mean(0)).double()
    singular = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-300)
    return float(torch.special.entr(share).sum().exp())


def verdict(
    rank: float, width: int, top1: float, untrained: float, chance: float, images: int
) -> str:
    """One plain word first: diverged, collapsed, learning, not learning, or undecided; of one class
    that it says nothing.

    top1, untrained: shares of `images` test images. Learning is a gain of more than two standard
    errors of their difference, as if the two had erred independently.
    """
    if rank == 0:
        return "diverged: the features are not finite; train anew with a lower --optimizer.base_lr"
    if chance == 1:
        return "one class: nothing to tell apart, the probe says nothing"
    least = max(2.0, 0.01 * width)
    if rank < least and images >= 10 * least:  # fewer have few directions under any encoder
        return f"collapsed: the features use {rank:.1f} of {width} directions"
    used = f"the features use {rank:.0f} of {width} directions"
    gain = top1 - untrained
    error = ((top1 * (1 - top1) + untrained * (1 - untrained)) / images) ** 0.5
    beaten = {"the untrained encoder": gain > 0, "chance": top1 > 1.5 * chance}
    if not all(beaten.values()):
        above = " or ".join(name for name, held in beaten.items() if not held)
        return f"not learning: no better than {above}, {used}"
    told = f"{100 * gain:.1f} points above the untrained encoder"
    if gain <= 2 * error:
        return f"undecided: {told}, which luck may do on {images:,} test images, {used}"
    return f"learning: {told}, {used}"
