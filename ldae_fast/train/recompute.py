"""Trades time for memory: a block keeps its products and makes its cheap activations again."""

import functools

from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ..model import LatentDAE

# By operator name: what takes long to compute, beside attention. LayerNorm, modulation, GELU, gates
# and casts are cheap and yet most of what a block keeps.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")


def policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
    name = operator.name()  # FlashAttention's own operators are named by their package alone
    kept = operator.__name__.split(".")[0] in PRODUCTS or "attention" in name or "flash" in name
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


contexts = functools.partial(create_selective_checkpoint_contexts, policy)


def recompute_cheap(network: LatentDAE) -> None:
    """Makes every block of the network do so, in place; its results stay the same bit for bit."""
    for block in network.blocks:
        block.around = functools.partial(
            checkpoint,
            use_reentrant=False,
            context_fn=contexts,
            preserve_rng_state=False,  # nothing in a block is drawn at random
        )
