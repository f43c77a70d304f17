"""Saves checkpoints one after the other until it is killed, for test_checkpoint.py.

python tests/saver.py FOLDER STEP KEEP

A file of its own, as test_checkpoint.py would load all that pytest's conftest.py does.
"""

import sys
from pathlib import Path

import torch

from ldae_fast.train.checkpoint import save_checkpoint


def state(step: int) -> dict:
    g = torch.Generator().manual_seed(step)
    return {
        "model": {"a.weight": torch.randn(20, 30, generator=g), "n": torch.tensor(step)},
        "ema": {"a.weight": torch.randn(20, 30, generator=g)},
    }


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, state(step), {"state.json": b'{"step": %d}' % step}, keep)


if __name__ == "__main__":
    step, keep = map(int, sys.argv[2:])
    print("ready", flush=True)
    while True:
        step += 1
        save(Path(sys.argv[1]), step, keep)
        print(step, flush=True)
