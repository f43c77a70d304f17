"""Moves batches to the device while the steps before them compute."""

from collections.abc import Generator
from contextlib import closing

import torch

from ..data import Batch


def upload(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The same batches on `device`; closing the iterator closes `batches`.

    To a GPU they are copied on a stream of their own, out of memory that it can read by itself, so
    that neither the host nor a step at work waits for a copy.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    with closing(batches):
        for batch in batches:
            yield batch if side is None else sent(batch, device, side)


def sent(batch: Batch, device: torch.device, side: torch.cuda.Stream) -> Batch:
    with torch.cuda.stream(side):
        moved = [x.pin_memory().to(device, non_blocking=True) for x in vars(batch).values()]
    now = torch.cuda.current_stream(device)
    now.wait_stream(side)
    for x in moved:
        x.record_stream(now)  # else its memory could be given away while the step still reads it
    return Batch(*moved)
