"""The order of the samples: a new permutation each epoch, a pure function of (seed, epoch)."""

from functools import lru_cache
from threading import Lock

import numpy as np
import torch

from ldae_fast.kernels.normal.reference import philox

# torch runs larger tensors on threads of its own, which would contend with the training step.
CHUNK = 16_384


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) int64: a permutation of 0..count-1, the order of a random key an index."""
    keys = np.empty(count, np.uint64)
    for start in range(0, count, CHUNK):
        # Ids below zero: the order shares no random number with the augmentation of any index.
        ids = ~torch.arange(start, min(start + CHUNK, count))
        words = philox(seed, epoch, ids, 1)[:, 0].numpy().astype(np.uint64)  # (chunk, 4)
        keys[start : start + CHUNK] = words[:, 0] << np.uint64(32) | words[:, 1]
    return np.argsort(keys, kind="stable")


class Order:
    """Endless sample order over `count` images: sample g is image permutation(g // N)[g % N]."""

    def __init__(self, seed: int, count: int):
        self.count, self.lock = count, Lock()
        self.epoch = lru_cache(maxsize=3)(lambda epoch: permutation(seed, epoch, count))

    def slices(self, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """Samples start..stop-1 as (epoch, image indices) pairs, one for each epoch touched."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.count)
            end = min(self.count, offset + stop - start)
            with self.lock:  # or every worker would sort the new epoch
                pieces.append((epoch, self.epoch(epoch)[offset:end]))
            start += end - offset
        return pieces
